import contextlib
import threading
import time

import pytest

from infra.errors import ShardError
from training.loading.read_ahead import ReadAhead


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_steps_come_in_order_whatever_the_depth(depth: int) -> None:
    with ReadAhead(lambda step: step * step, [1, 2, 5, 6], depth=depth) as ahead:
        assert list(ahead) == [(1, 1), (2, 4), (5, 25), (6, 36)]


def test_it_is_never_further_ahead_than_its_depth() -> None:
    made: list[int] = []
    with ReadAhead(made.append, range(1, 10), depth=2) as ahead:
        for step, _ in ahead:
            time.sleep(0.01)
            assert max(made) <= step + 2
    assert made == list(range(1, 10))


def test_what_goes_wrong_goes_wrong_in_its_step() -> None:
    def make(step: int) -> int:
        if step == 3:
            raise ShardError("row group 7 is damaged")
        return step

    with ReadAhead(make, range(1, 10), depth=4) as ahead:
        steps = iter(ahead)
        assert [next(steps), next(steps)] == [(1, 1), (2, 2)]
        with pytest.raises(ShardError, match="row group 7"):
            next(steps)


def test_no_thread_is_left_when_a_step_fails() -> None:
    before = threading.active_count()
    with contextlib.suppress(ZeroDivisionError), ReadAhead(float, range(100), depth=3) as ahead:
        for step, _ in ahead:
            step // (step - 5)
    assert threading.active_count() == before


def test_only_what_is_waited_for_counts_as_waiting() -> None:
    with ReadAhead(lambda _: time.sleep(0.02), range(5), depth=1) as ahead:
        waits = []
        for _ in ahead:
            waits.append(ahead.waited_seconds)
            time.sleep(0.1)
    assert waits[0] > 0.01
    assert sum(waits[1:]) < 0.04
