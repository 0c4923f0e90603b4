"""A step that needs more memory than there is ends the run with a sentence, and what was saved stays."""

from pathlib import Path

import pytest

from pipelines.shards import ShardSet
from tests.training import faults, runs
from tests.training.faults import Moment
from tests.training.workers import Workers

OUT_OF_MEMORY = """
import torch, torch.nn.functional as functional
def refuse(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8 GiB.")
functional.embedding = refuse
"""


@pytest.mark.deepspeed
@pytest.mark.slow
def test_it_says_what_helps_and_the_command_repeated_goes_on(
    workers: Workers, token_set: ShardSet, tmp_path: Path
) -> None:
    command = runs.gpt(token_set, tmp_path / "run")
    deed = f"exec({OUT_OF_MEMORY!r}, {{}})"
    group = workers.start(*command, world_size=1, faults=[faults.at(Moment(0, 8, "update"), deed)])
    assert group.codes() == [1]
    said = group.said()
    assert "too little memory for a step (CUDA out of memory); repeat the command with more workers" in said
    assert "Traceback" not in said
    assert workers.run(*command, world_size=1)["resumed_from"] >= 3
