"""A disk that is full for whatever a run writes next."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.training import faults, runs
from tests.training.faults import Bench, Moment
from tests.training.test_faults_saving import options_of, small_disk

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.faults]


@pytest.mark.exhaustive
@pytest.mark.parametrize("place", ["data", "update"])
def test_a_disk_that_is_full_for_whatever_is_written_next_ends_the_run_with_one_sentence(
    bench: Bench, tmp_path: Path, place: str
) -> None:
    """Once step 3 is saved: the checkpoint of step 6, or a line of metrics."""
    options = options_of(2)
    with small_disk(tmp_path / "disk", kilobytes=20_000) as disk:
        run_dir, rest = disk / "run", disk / "rest"
        fill = f"os.system('dd if=/dev/zero of={rest} bs=1k 2>/dev/null')"
        refusal = bench.run(run_dir, *options, faults=[faults.at(Moment(0, 7, place), fill)], code=1)
        assert "no space is left there" in refusal["error"] or "No space left on device" in refusal["error"]
        assert "Traceback" not in refusal["stderr"]
        rest.unlink()
        assert runs.newest_committed(run_dir) in (3, 6)
        bench.goes_on(run_dir, *options)


@pytest.mark.exhaustive
def test_a_disk_without_room_to_convert_a_checkpoint_ends_the_run_with_one_sentence(
    bench: Bench, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", kilobytes=20_000) as disk:
        run_dir = disk / "run"
        bench.unfinished(run_dir)
        used = shutil.disk_usage(disk).used // 1024
        subprocess.run(["mount", "-o", f"remount,size={used + 120}k", str(disk)], check=True)
        refusal = bench.run(run_dir, world_size=1, code=1)
        assert "cannot be converted for another world size or ZeRO stage: " in refusal["error"]
        assert "GB are free) and repeat the command" in refusal["error"]
        assert "Traceback" not in refusal["stderr"]
        assert not list(run_dir.glob("checkpoints/*/universal*"))
