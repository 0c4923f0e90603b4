"""Checkpoints that rot, file by file: the older one is taken, and the run ends as if nothing had happened."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.matrix import SEED
from tests.training import faults, runs
from tests.training.faults import HALVE, KILL, Bench
from training.saving import manifest
from training.saving.manifest import MANIFEST, UNREADABLE

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.faults]

OPTIONS = "--engine.zero-stage=2", "--optimizer.ema-decay=0.9"
FILES = (
    "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "zero_pp_rank_1_mp_rank_00_optim_states.pt", "ema-00000.safetensors", "ema-00001.safetensors", MANIFEST,
)  # fmt: skip
Damage = Callable[[Path, random.Random], None]


def cut_off(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def flip_a_bit(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def fill_with_zeros(path: Path, chance: random.Random) -> None:
    """A page of it, or what a file system leaves of one whose bytes never came to the disk."""
    data = bytearray(path.read_bytes())
    start = chance.randrange(0, len(data), 4096)
    assert any(data[start : start + 4096])
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    path.write_bytes(data)


def take_away(path: Path, _: random.Random) -> None:
    path.unlink()


def rot(bench: Bench, run_dir: Path, name: str, damage: Damage) -> None:
    """The newest checkpoint rots in one file, and the command is repeated."""
    bench.unfinished(run_dir, *OPTIONS)
    newest = faults.newest_checkpoint(run_dir)
    damage(newest / name, random.Random(f"{SEED} {name} {damage.__name__}"))
    summary = bench.goes_on(run_dir, *OPTIONS, resumed_from=9)
    assert f"passed over a damaged checkpoint: {newest.name}: " in summary["stderr"]
    assert name in summary["stderr"]
    assert newest not in (run_dir / "checkpoints").iterdir()


@pytest.mark.exhaustive
def test_a_checkpoint_has_the_files_that_rot_here(bench: Bench) -> None:
    newest = faults.newest_checkpoint(bench.undisturbed(*OPTIONS).run_dir)
    assert {path.name for path in newest.iterdir()} == {*FILES, "rank-00001.files.json"}  # read by nobody now


def test_a_file_that_rots_is_named_and_the_older_checkpoint_taken(bench: Bench, tmp_path: Path) -> None:
    rot(bench, tmp_path / "run", random.Random(SEED).choice(FILES), flip_a_bit)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in FILES
        for damage in (cut_off, flip_a_bit, fill_with_zeros, take_away)
        if (name, damage) != (MANIFEST, take_away)  # then it is no checkpoint
    ],
)
def test_whichever_file_rots_the_older_checkpoint_is_taken(
    bench: Bench, tmp_path: Path, name: str, damage: Damage
) -> None:
    rot(bench, tmp_path / "run", name, damage)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FILES)
def test_where_all_checkpoints_have_rotted_the_run_stops(bench: Bench, tmp_path: Path, name: str) -> None:
    run_dir = tmp_path / "run"
    bench.unfinished(run_dir, *OPTIONS)
    places = sorted((run_dir / "checkpoints").iterdir())
    for place in places:
        flip_a_bit(place / name, random.Random(f"{SEED} {place.name[:13]} {name}"))
    before = sorted(run_dir.rglob("*"))
    refusal = bench.run(run_dir, *OPTIONS, code=1)
    assert "is whole" in refusal["error"]
    assert "restore one of them, or start anew" in refusal["error"]
    assert all(place.name in refusal["error"] for place in places)
    kept = [path for path in before if path.name not in ("lease.json", "config.json")]
    assert all(path.exists() for path in kept)


@pytest.mark.exhaustive
def test_killed_while_a_checkpoint_is_converted_it_is_converted_anew(bench: Bench, tmp_path: Path) -> None:
    """All is there but the file that says so, of which there is half."""
    run_dir, alone = tmp_path / "run", ("--engine.zero-stage=1", "--optimizer.ema-decay=0.9")
    expected = bench.unfinished(run_dir, *OPTIONS)
    cut = faults.in_file("universal.json", before=f"{HALVE}; {KILL}")
    bench.killed(run_dir, *alone, rank=0, world_size=1, faults=[cut])
    (unused,) = faults.newest_checkpoint(run_dir).glob("universal-*/")
    summary = bench.run(run_dir, *alone, world_size=1)
    assert summary["resumed_from"] == runs.STEPS
    assert not unused.exists()
    assert faults.clips_taken(run_dir) == faults.clips_taken(expected.run_dir)


@pytest.mark.exhaustive
def test_a_converted_form_that_rots_is_told_and_converted_again(bench: Bench, tmp_path: Path) -> None:
    """Of a checkpoint that was made fit for other workers and did not get further than that."""
    run_dir = tmp_path / "run"
    expected = bench.unfinished(run_dir, *OPTIONS)
    alone = "--engine.zero-stage=1", "--optimizer.ema-decay=0.9"
    newest = faults.newest_checkpoint(run_dir)
    bench.killed(run_dir, *alone, rank=0, world_size=1, faults=[faults.in_file("universal.json", after=KILL)])
    parts = sorted(newest.glob("universal-*/zero/*/exp_avg.pt"))
    flip_a_bit(parts[len(parts) // 2], random.Random(SEED))
    refusal = bench.run(run_dir, *alone, code=1, world_size=1)
    assert "as converted for another world size or ZeRO stage is damaged" in refusal["error"]
    bench.run(run_dir, *alone, world_size=1)
    assert faults.clips_taken(run_dir) == faults.clips_taken(expected.run_dir)


def test_going_on_under_another_version_is_said(bench: Bench, tmp_path: Path) -> None:
    bench.unfinished(tmp_path / "run", *OPTIONS)
    newest = faults.newest_checkpoint(tmp_path / "run")
    root, name = str(newest.parent), newest.name
    saved = manifest.read_manifest(root, name)
    saved.state["versions"]["torch"] = "1.0"
    manifest.write_manifest(root, saved)
    refusal = bench.run(tmp_path / "run", *OPTIONS, code=1)  # the files say otherwise
    assert "saved under torch 1.0, gone on with under" in refusal["stderr"]


def test_no_bit_of_a_manifest_can_flip_unnoticed(bench: Bench, tmp_path: Path) -> None:
    newest = faults.newest_checkpoint(bench.undisturbed(*OPTIONS).run_dir)
    root, name = str(newest.parent), newest.name
    (tmp_path / name).mkdir()
    known, data = manifest.read_manifest(root, name), (newest / MANIFEST).read_bytes()
    chance, unnoticed = random.Random(SEED), []
    for bit in chance.sample(range(len(data) * 8), 600):
        rotten = bytearray(data)
        rotten[bit // 8] ^= 1 << bit % 8
        (tmp_path / name / MANIFEST).write_bytes(rotten)
        try:
            if manifest.read_manifest(str(tmp_path), name) != known:
                unnoticed.append(bit)
        except UNREADABLE:
            pass
    assert unnoticed == []


@pytest.mark.exhaustive
def test_the_newest_two_rot_in_turn(bench: Bench, tmp_path: Path) -> None:
    """A run that keeps three goes on from the oldest, and both that rotted are named."""
    run_dir, options = tmp_path / "run", (*OPTIONS, "--checkpoints.keep-last=3")
    bench.unfinished(run_dir, *options)
    *_, second, newest = sorted((run_dir / "checkpoints").iterdir())
    cut_off(newest / FILES[0], random.Random(SEED))
    flip_a_bit(second / FILES[1], random.Random(SEED))
    summary = bench.goes_on(run_dir, *options, resumed_from=runs.STEPS - 6)
    assert all(f"{place.name}: " in summary["stderr"] for place in (newest, second))
