"""How fast it went: rates from the first call to the last, the limit of the hardware, what binds."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.building.pace import REST, WAITING, Devices, Meter, Pace, record, recorded, sentence


def rows(*reported: dict[str, float]) -> pa.Table:
    return pa.Table.from_pylist([dict.fromkeys(("num_clips", "num_frames"), 0) | one for one in reported])


def unit(
    *, clips: int = 4, decode: float = 1.0, tokenize: float = 2.0, worker: float = 3.5
) -> dict[str, float]:
    return {
        "num_clips": clips,
        "num_frames": 8 * clips,
        "decode_cpu_seconds": decode,
        "tokenize_seconds": tokenize,
        "worker_seconds": worker,
    }


def measured(arrivals: Iterable[tuple[float, pa.Table]], devices: Devices, asked: float = 100.0) -> Pace:
    """Tables that came at these times, after the work was asked for."""
    now = asked
    meter = Meter(clock=lambda: now)
    for now, table in arrivals:  # noqa: B007 - the meter's clock reads it
        meter.add(table)
    return meter.pace(devices, seconds_per_clip=None, fps=8.0)


def test_rates_count_from_the_first_call_and_the_start_is_told_apart() -> None:
    arrivals = [
        (110.0, rows(unit(worker=4.0))),
        (112.0, rows(unit(worker=5.0))),
        (116.0, rows(unit(), unit())),
    ]
    pace = measured(arrivals, Devices(cores=2))
    assert (pace.start_seconds, pace.working_seconds) == (6.0, 10.0)
    assert pace.summary()["clips_per_second"] == 1.6
    assert pace.summary()["video_hours_per_hour"] == 1.6  # 16 clips of 8 frames, 8 frames a second


def test_on_cores_alone_both_stages_share_them_and_with_gpus_the_slower_one_is_the_limit() -> None:
    arrivals = [(107.0, rows(unit(worker=7.0))), (110.0, rows(unit(decode=6.0, tokenize=4.0, worker=10.0)))]
    shared = measured(arrivals, Devices(cores=2))
    assert shared.limit_seconds == (7 + 6) / 2
    assert shared.share_of_limit == 0.65
    assert measured(arrivals, Devices(cores=4, gpus=1)).limit_seconds == max(7 / 4, 6 / 1)


@pytest.mark.parametrize(
    ("seconds", "binds"),
    [
        ({"decode": 8.0, "tokenize": 1.0, "worker": 9.5}, "decoding"),
        ({"decode": 1.0, "tokenize": 8.0, "worker": 9.5}, "tokenizing"),
        ({"decode": 1.0, "tokenize": 1.0, "worker": 9.5}, REST),
    ],
)
def test_the_stage_that_takes_most_of_the_time_is_named(seconds: dict[str, Any], binds: str) -> None:
    pace = measured([(110.0, rows(unit(**seconds)))], Devices(cores=1))
    assert pace.bottleneck == binds
    assert sum(pace.stages.values()) == pytest.approx(pace.working_seconds)
    assert binds in sentence(pace.summary())


def test_workers_without_work_are_named() -> None:
    pace = measured([(110.0, rows(unit(worker=10.0, decode=5.0, tokenize=5.0)))], Devices(cores=4))
    assert pace.bottleneck == WAITING
    assert pace.share_of_limit == 0.25


def test_a_decoder_that_keeps_a_gpu_waiting_is_named() -> None:
    pace = measured([(110.0, rows(unit(decode=18.0, tokenize=3.0, worker=4.0)))], Devices(cores=2, gpus=1))
    assert pace.bottleneck == "decoding"
    assert measured([(110.0, rows(unit()).slice(0, 0))], Devices(cores=2)).share_of_limit == 0.0


def test_what_is_recorded_beside_a_set_is_what_was_measured(tmp_path: Path) -> None:
    assert recorded(str(tmp_path)) is None
    pace = measured([(110.0, rows(unit()))], Devices(cores=2))
    record(str(tmp_path), pace)
    assert recorded(str(tmp_path)) == pace.summary()
