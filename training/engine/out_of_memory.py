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
            f"the device has too little memory for a step ({reason}); repeat the command with more workers, "
            f"a higher --engine.zero-stage, --engine.checkpoint-activations or --engine.offload-optimizer, "
            f"or begin in another --run-dir with a smaller --batches.micro-batch: `reelgpt plan train` tells "
            f"what each needs"
        ) from None
