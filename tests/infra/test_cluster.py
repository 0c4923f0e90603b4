"""What Ray's core would say on the terminal while it starts."""

import os

import pytest

from infra.cluster import _stderr_without


def test_what_is_kept_back_comes_out_after_all_but_for_the_lines_with_the_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with _stderr_without("RAY_BACKEND_LOG_LEVEL"):
        os.write(2, b"one\nI logging.cc: RAY_BACKEND_LOG_LEVEL to 3\ntwo\n")
        assert capfd.readouterr().err == ""
    os.write(2, b"three\n")
    assert capfd.readouterr().err == "one\ntwo\nthree\n"


def test_what_was_said_before_a_failure_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with _stderr_without("level"):
            os.write(2, b"last words\nthe level\n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert capfd.readouterr().err == "last words\n"
