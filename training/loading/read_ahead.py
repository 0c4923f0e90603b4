"""What the next steps need, made ready in the background while a step computes.

What is made is the same however far ahead it is; what goes wrong while making it goes wrong in the step that
needs it.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Ready = TypeVar("Ready")


class ReadAhead(Generic[Ready]):
    """Iterates over (step, `make(step)`). Inside a `with` block one thread is up to `depth` steps ahead."""

    def __init__(self, make: Callable[[int], Ready], steps: Iterable[int], *, depth: int) -> None:
        self._make = make
        self._steps = iter(steps)
        self._depth = depth
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead: deque[tuple[int, Future[Ready]]] = deque()
        self.waited_seconds = 0.0
        """What the newest step had to wait."""

    def __enter__(self) -> "ReadAhead[Ready]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[int, Ready]]:
        while self._begin(max(1, self._depth)):
            step, made = self._ahead.popleft()
            began = time.monotonic()
            ready = made.result()
            self.waited_seconds = time.monotonic() - began
            self._begin(self._depth)
            yield step, ready

    def _begin(self, num_steps: int) -> bool:
        """Gives the thread the next steps, until it has `num_steps`; False once all have been taken."""
        while len(self._ahead) < num_steps:
            step = next(self._steps, None)
            if step is None:
                break
            self._ahead.append((step, self._thread.submit(self._make, step)))
        return bool(self._ahead)
