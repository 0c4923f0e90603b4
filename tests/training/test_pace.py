"""What a run is told to do a second."""

import time

import pytest

from training.pace import Pace


def test_mfu_is_of_the_peak_of_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace("tokens", units=1000)
    pace._peak = 2.0  # TFLOPs a second, of each of two
    for flops in (3e12, 5e12):
        pace.stepped(waited_seconds=0.5, flops=flops)
    now[0] += 4.0
    metrics = pace.metrics(1400, world_size=2)
    assert metrics["mfu"] == pytest.approx((3 + 5) / 4 / (2 * 2))
    assert metrics["tokens_per_second"] == 100.0
    assert metrics["loader_wait_share"] == pytest.approx(1.0 / 4)
    pace.stepped(waited_seconds=0.0, flops=0.0)
    now[0] += 1.0
    assert "mfu" not in pace.metrics(1400, world_size=2)
