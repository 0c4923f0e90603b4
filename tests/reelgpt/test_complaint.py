"""A wrong option is refused in a sentence that names what was given and what is right."""

import pytest

from infra.errors import UsageError
from reelgpt.main import parse

RUN = "train gpt_tiny --data tokens --run-dir run"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train", "reelgpt train needs RECIPE, --data, --run-dir"),
        (f"{RUN} --step 7 --lrr 4", "reelgpt train has no option --step; did you mean --steps?"),
        (f"{RUN} --lr 3", "did you mean --optimizer.peak-lr or --optimizer.final-lr-share?"),
        (f"{RUN} --engine.zero 3", "has no option --engine.zero; did you mean --engine.zero-stage?"),
        (f"{RUN} --steps 1.5", "--steps '1.5' is not a whole number"),
        (f"{RUN} --optimizer.peak-lr 1e", "--optimizer.peak-lr '1e' is not a number"),
        (f"{RUN} --optimizer.schedule flat", "--optimizer.schedule 'flat' is none of 'cosine', 'wsd'"),
        (f"{RUN} more", "reelgpt train has no use for 'more'"),
        ("generate gpt --input a --out b.mp4 --top-k None", "--top-k 'None' is not a whole number"),
        (
            "extract videos --out frames --sampling.fps -3",
            "fps=-3 is not a sampling rate; give frames a second",
        ),
        ("explain tokens --clip", "--clip needs a value"),
        ("models", "it needs one of list, show, search,"),
        ("models shwo gpt", "reelgpt models has no use for 'shwo'; it has list, show, search,"),
    ],
)
def test_a_wrong_command_line_is_told_without_the_help_of_what_is_right(line: str, said: str) -> None:
    name, *args = line.split()
    with pytest.raises(UsageError) as refusal:
        parse(name, args)
    sentence = str(refusal.value)
    assert said in sentence
    assert sentence.endswith(f"`reelgpt {name} --help` shows what it takes")
    assert len(sentence) < 250
