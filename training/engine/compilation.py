"""torch.compile where there is a compiler; where there is none, a clear word and the model as it is."""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from infra.errors import TrainingError
from training.objectives import Examples
from training.ranks import Ranks


def compile_model(model: nn.Module, ranks: Ranks) -> None:
    """Compiles `model` in place at its first call, on all ranks or on none: last bits depend on it."""
    found = ranks.gather(_has_compiler())
    if all(found):
        model.compile()
    elif ranks.is_first:
        sys.stderr.write(
            f"engine.compile: {found.count(False)} of {len(found)} workers have no "
            f"{' or '.join(_compilers())} on their PATH; going on without compiling\n"
        )


@contextmanager
def compiling_explained() -> Iterator[None]:
    """Inside, a failure of torch's compiler is one sentence: a kill may have cut a file of its cache. A rank
    that went on without it would compute other last bits than the others."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        lines = str(error).splitlines()
        reason = next((line for line in lines if line and not line.endswith("raised:")), lines[0])
        raise TrainingError(
            f"torch.compile failed ({reason}); delete its cache, {cache_dir()}, and repeat the command, or "
            f"train with --engine.no-compile"
        ) from None


class CompiledShapes:
    """Those of the micro-batches that the model was compiled for."""

    def __init__(self) -> None:
        self._known: set[tuple[torch.Size, ...]] = set()

    def are_new(self, micro_batches: Sequence[Examples]) -> bool:
        """Whether some of these are compiled for now. Says so once."""
        here = {
            tuple(tensor.shape for tensor in examples.values() if not _is_of_any_length(tensor))
            for examples in micro_batches
        }
        are_new = not here <= self._known
        self._known |= here
        return are_new


def allow_any_length(examples: Examples) -> None:
    """One compilation serves lists of all lengths."""
    for tensor in filter(_is_of_any_length, examples.values()):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


def _is_of_any_length(tensor: Tensor) -> bool:
    return tensor.ndim == 1


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in _compilers())


def _compilers() -> tuple[str, ...]:
    """Which of them torch calls: for C++ on a CPU; on a GPU for the C that launches Triton's kernels."""
    if torch.cuda.is_available():
        return (os.environ.get("CC", "gcc"), "clang")
    return (os.environ.get("CXX", "g++"), "clang++")
