"""Lists on the command line: whole, or refused."""

import pytest

from infra.errors import UsageError
from reelgpt.extract import Extract
from reelgpt.main import parse, parse_with_tyro

VIDEOS = ["videos", "--out", "frames"]


@pytest.mark.parametrize(
    "option", ["--validation", "--exclude", "--sampling.buckets", "--sampling.buckets=1x1 --sampling.buckets"]
)
def test_a_list_that_is_given_in_pieces_is_refused_with_the_way_to_give_it(option: str) -> None:
    name = option.partition("=")[0]
    with pytest.raises(UsageError, match=f"{name} is given more than once; give all its values after one"):
        parse("extract", [*VIDEOS, *option.split(), "160x96", name, "96x160"])


def test_a_list_after_one_option_is_taken_whole_and_a_single_value_that_is_given_again_replaces() -> None:
    options = parse_with_tyro(
        Extract,
        "extract",
        [*VIDEOS, "--validation", "a", "b", "--validation-share", "0.1", "--validation-share", "0.2"],
    )
    assert (options.validation, options.validation_share) == (("a", "b"), 0.2)
