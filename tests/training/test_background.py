import threading
from concurrent.futures import wait

import pytest

from training.saving.background import in_background


def test_it_works_while_others_go_on() -> None:
    go = threading.Event()
    work = in_background(lambda: go.wait(10))
    assert not work.done()
    go.set()
    assert work.result()
    assert work.done()


def test_what_it_failed_with_is_raised_to_who_asks() -> None:
    def fail() -> None:
        raise OSError("no space left on device")

    work = in_background(fail)
    wait([work])
    with pytest.raises(OSError, match="no space"):
        work.result()
