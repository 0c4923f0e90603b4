"""What may happen while a checkpoint is written: a kill in any file of it, a slow worker, a full disk."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training import faults, runs
from tests.training.faults import HALVE, KILL, SLEEP_UNTIL, Bench, Moment
from training.saving.manifest import MANIFEST

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.faults]

STEP = 6
FOLDER = f"/step-{STEP:08d}"
AVERAGED = "--optimizer.ema-decay=0.9"
BESIDE = (("ema-00000.safetensors", 0), ("ema-00001.safetensors", 1), ("rank-00001.files.json", 1))
STAGE_FILES = {
    0: (("mp_rank_00_model_states.pt", 0), *BESIDE),
    2: (
        ("mp_rank_00_model_states.pt", 0), ("zero_pp_rank_0_mp_rank_00_optim_states.pt", 0),
        ("zero_pp_rank_1_mp_rank_00_optim_states.pt", 1), *BESIDE,
    ),
    3: (
        ("zero_pp_rank_0_mp_rank_00_model_states.pt", 0), ("zero_pp_rank_1_mp_rank_00_model_states.pt", 1),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", 0), ("zero_pp_rank_1_mp_rank_00_optim_states.pt", 1),
        *BESIDE,
    ),
}  # fmt: skip
"""Of a run of two workers that keeps an average: each file, and who writes it."""
FILES = [(stage, name, rank) for stage, files in STAGE_FILES.items() for name, rank in files]


def options_of(stage: int) -> tuple[str, ...]:
    return f"--engine.zero-stage={stage}", AVERAGED


def die_in(bench: Bench, run_dir: Path, stage: int, rank: int, **where: str) -> None:
    bench.killed(run_dir, *options_of(stage), rank=rank, faults=[faults.in_file(rank=rank, **where)])


@pytest.mark.exhaustive
@pytest.mark.parametrize("stage", STAGE_FILES)
def test_a_checkpoint_has_the_files_that_are_tried_here(bench: Bench, stage: int) -> None:
    newest = faults.newest_checkpoint(bench.undisturbed(*options_of(stage)).run_dir)
    assert {path.name for path in newest.iterdir()} == {name for name, _ in STAGE_FILES[stage]} | {MANIFEST}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("stage", "name", "rank", "deed"),
    [(*file, f"{HALVE}; {KILL}") for file in FILES] + [(*file, KILL) for file in FILES if file[0] == 2],
)
def test_killed_while_a_file_is_written_it_goes_on_from_the_checkpoint_before(
    bench: Bench, tmp_path: Path, stage: int, name: str, rank: int, deed: str
) -> None:
    """Whole, but not on the disk, or half of it."""
    run_dir = tmp_path / "run"
    die_in(bench, run_dir, stage, rank, name=name, part=FOLDER, before=deed)
    assert any(run_dir.glob(f"checkpoints{FOLDER}-*/*{name}*"))
    bench.goes_on(run_dir, *options_of(stage), resumed_from=3)


def test_killed_while_the_manifest_is_written_it_goes_on_from_the_checkpoint_before(
    bench: Bench, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    die_in(bench, run_dir, 2, 0, name=MANIFEST, part=FOLDER, before=f"{HALVE}; {KILL}")
    assert runs.newest_committed(run_dir) == 3
    bench.goes_on(run_dir, *options_of(2), resumed_from=3)
    assert not [path for path in run_dir.rglob(f"*{MANIFEST}*") if path.name != MANIFEST]


@pytest.mark.exhaustive
def test_killed_once_the_manifest_is_there_it_goes_on_from_it(bench: Bench, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    die_in(bench, run_dir, 2, 0, name=MANIFEST, part=FOLDER, after=KILL)
    bench.goes_on(run_dir, *options_of(2), resumed_from=STEP)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("/config.json", "config"), ("/samples/", "step-"), ("/bundles/", ""), ("/model/", ""),
        ("/model/", "bundle.json"), ("/result.json", "result"),
    ],
)  # fmt: skip
def test_killed_in_any_other_file_of_the_run_it_ends_the_same(
    bench: Bench, tmp_path: Path, part: str, name: str
) -> None:
    run_dir = tmp_path / "run"
    die_in(bench, run_dir, 2, 0, name=name, part=part, before=f"{HALVE}; {KILL}")
    bench.goes_on(run_dir, *options_of(2))


def test_a_slow_worker_holds_up_no_step_before_the_next_save(bench: Bench, tmp_path: Path) -> None:
    """The slow one writes the checkpoint of step 3 until step 5 has been done."""
    run_dir, reached = tmp_path / "run", tmp_path / "reached"
    slow = faults.in_file("rank_1", part="/step-00000003", before=SLEEP_UNTIL.format(path=str(reached)))
    reaching = faults.at(Moment(0, 5, "beside"), f"open({str(reached)!r}, 'w')")
    summary = bench.run(run_dir, *options_of(2), faults=[slow, reaching])
    faults.require_same(run_dir, summary, bench.undisturbed(*options_of(2)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_while_a_slow_worker_writes_it_goes_on_from_the_checkpoint_before(
    bench: Bench, tmp_path: Path, rank: int
) -> None:
    run_dir, struck = tmp_path / "run", tmp_path / "struck"
    slow = faults.in_file("rank_1", part=FOLDER, before=SLEEP_UNTIL.format(path=str(struck)))
    strike = faults.at(Moment(rank, 8, "update"), f"open({str(struck)!r}, 'w'); {KILL}")
    bench.killed(run_dir, *options_of(2), rank=rank, faults=[slow, strike])
    bench.goes_on(run_dir, *options_of(2), resumed_from=3)


@contextlib.contextmanager
def small_disk(folder: Path, *, kilobytes: int) -> Iterator[Path]:
    """A file system that really is that small. Skips where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_the_remedy_and_with_room_it_goes_on(
    bench: Bench, tmp_path: Path
) -> None:
    """Room for one checkpoint beside another that is kept, and not for two: the second save finds none."""
    options = (*options_of(2), "--checkpoints.keep-last=3", "--evaluation.keep-bundles=0")
    with small_disk(tmp_path / "disk", kilobytes=1900) as disk:
        run_dir = disk / "run"
        refusal = bench.run(run_dir, *options, code=1)
        assert "cannot be written: " in refusal["error"]
        assert "No space left on device; make room and repeat the command" in refusal["error"]
        saved = runs.newest_committed(run_dir)
        assert 0 < saved < runs.STEPS
        whole = {path.parent for path in run_dir.glob(f"checkpoints/*/{MANIFEST}")}
        assert set((run_dir / "checkpoints").iterdir()) == whole
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        bench.goes_on(run_dir, *options, resumed_from=saved)


@pytest.mark.exhaustive
@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_whose_files_may_not_grow_ends_the_run_for_all(
    bench: Bench, tmp_path: Path, rank: int
) -> None:
    """As on a disk or within a quota that only one of them has used up: once all of step 3 is written."""
    run_dir, options = tmp_path / "run", (*options_of(2), "--evaluation.keep-bundles=0")
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))"
    deed = f"import resource; time.sleep(3); {limit}"
    group = bench.start(run_dir, *options, faults=[faults.at(Moment(rank, 4, "data"), deed)])
    assert group.codes() == [1, 1], group.said()
    assert "File too large; make room and repeat the command" in group.output()
    assert runs.newest_committed(run_dir) == 3
    bench.goes_on(run_dir, *options, resumed_from=3)
