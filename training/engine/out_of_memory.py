"""What a person can do where a step needs more memory than the device has."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from infra.errors import TrainingError


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        raise TrainingError(
            f"the device has too little memory for a step ({reason}); repeat the command with more workers "
            f"or a higher --engine.zero-stage, or begin in another --run-dir with a smaller "
            f"--batches.micro-batch, --engine.checkpoint-activations or --engine.offload-optimizer: "
            f"`reelgpt plan train` tells what each needs"
        ) from None
