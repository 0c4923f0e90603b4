"""The next step's examples, made in a thread while the step before runs."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Made = TypeVar("Made")


@contextmanager
def prefetched(make: Callable[[int], Made], steps: range) -> Iterator[Iterator[Made]]:
    """Inside, gives `make(step)` of each step in turn, one ahead; what it raises is raised when it is due."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        yield _ahead(pool, make, steps)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _ahead(pool: ThreadPoolExecutor, make: Callable[[int], Made], steps: range) -> Iterator[Made]:
    coming: Future[Made] | None = None
    for step in steps:
        due = coming or pool.submit(make, step)
        coming = pool.submit(make, step + 1) if step + 1 in steps else None
        yield due.result()
