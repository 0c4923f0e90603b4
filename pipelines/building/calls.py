"""How much one call of a worker does, and how many workers there are: arithmetic, without Ray."""

import math

from infra.errors import ClusterError
from pipelines.config import Resources

SHARE_OF_THE_REST = 2
"""A call takes one part in so many of what is left for its worker. Smaller ones would end more evenly where
videos take unlike times, and cost more (Hummel, Schonberg, Flynn: Factoring, CACM 35(8), 1992)."""


def sizes(num_units: int, *, workers: int, most: int) -> list[int]:
    """Units of each call, in order; they add up to `num_units`.

    The first call of each worker does one unit, so that the first codes come soon; later ones do up to
    `most`, so that span files are few; towards the end they shrink, so that the workers end together.
    """
    first = [1] * min(workers, num_units)
    rest, later = num_units - len(first), []
    while rest:
        later.append(min(most, math.ceil(rest / (SHARE_OF_THE_REST * workers))))
        rest -= later[-1]
    return first + later


def num_gpus(resources: Resources, there: int, *, may_grow: bool) -> int:
    """GPUs to tokenize with: those asked for, else those there are.

    Raises ClusterError where fewer are there than asked for, and no more can come.
    """
    asked = there if resources.num_gpus is None else resources.num_gpus
    if asked > there and not may_grow:
        raise ClusterError(
            f"--num-gpus {asked} was given, and this machine has {there} that Ray can see; lower it, or 0 to "
            f"tokenize on the CPU"
        )
    return asked


def most_tokenizers(resources: Resources, *, gpus: int, cpus: int) -> int:
    """Upper bound of the pool: one actor a GPU (or as many as its share allows), else one a core."""
    places = int(gpus / resources.gpus_per_tokenizer) if gpus else cpus
    return max(1, min(resources.num_tokenizers or places, places))
