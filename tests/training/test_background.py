import threading

import pytest

from training.saving.background import Background


def test_it_works_while_others_go_on() -> None:
    go = threading.Event()
    work = Background(lambda: go.wait(10))
    assert not work.is_done
    go.set()
    assert work.result()
    assert work.is_done


def test_what_it_failed_with_is_raised_to_who_asks() -> None:
    def fail() -> None:
        raise OSError("no space left on device")

    work = Background(fail)
    work.wait()
    with pytest.raises(OSError, match="no space"):
        work.result()
