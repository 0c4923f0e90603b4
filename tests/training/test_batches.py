from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import chain

import numpy as np
import pytest

from infra.errors import ConfigError
from pipelines.shards import ShardSet
from training.configs.batches import BatchesConfig
from training.loading.batches import Batches
from training.loading.shelf import Shelf, clips_of_some_groups, stored_clips

CONFIG = BatchesConfig(global_batch=12, micro_batch=2, window_groups=3)
UNEVEN = replace(CONFIG, allow_uneven=True)


@pytest.fixture(params=["one set", "two grids", "mixture"])
def shard_sets(request: pytest.FixtureRequest, token_set: ShardSet, two_grid_set: ShardSet) -> list[ShardSet]:
    of = {"one set": [token_set], "two grids": [two_grid_set], "mixture": [token_set, two_grid_set]}
    return of[request.param]


def shelf(shard_set: ShardSet) -> Shelf:
    return Shelf(shard_set, tuple(shard_set.shards("train")))


def batches(
    *shard_sets: ShardSet, rank: int = 0, world_size: int = 1, config: BatchesConfig = CONFIG
) -> Batches:
    shares = [Fraction(1)] if len(shard_sets) == 1 else [Fraction("0.3"), Fraction("0.7")]
    shelves = [shelf(shard_set) for shard_set in shard_sets]
    return Batches(shelves, shares, config, seed=0, rank=rank, world_size=world_size)


def ids_of_step(
    shard_sets: list[ShardSet], step: int, world_size: int = 1, config: BatchesConfig = CONFIG
) -> list[tuple[str, ...]]:
    """Clip ids of each micro-batch of a step, by its index, whichever rank has it."""
    ranks = [
        batches(*shard_sets, rank=rank, world_size=world_size, config=config) for rank in range(world_size)
    ]
    parts = {part.index: part.clip_ids for rank in ranks for part in rank.micro_batches(step)}
    return [parts[index] for index in sorted(parts)]


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_what_a_step_takes_does_not_depend_on_the_world_size(
    shard_sets: list[ShardSet], world_size: int
) -> None:
    for step in (1, 2, 7):
        assert ids_of_step(shard_sets, step, world_size) == ids_of_step(shard_sets, step)


@pytest.mark.parametrize("world_size", [4, 5])
def test_uneven_shares_are_of_the_same_micro_batches(shard_sets: list[ShardSet], world_size: int) -> None:
    for step in (1, 2, 7):
        assert ids_of_step(shard_sets, step, world_size, UNEVEN) == ids_of_step(shard_sets, step)


def test_resuming_at_a_step_continues_the_same_sequence(shard_sets: list[ShardSet]) -> None:
    going = batches(*shard_sets)
    uninterrupted = [[part.clip_ids for part in going.micro_batches(step)] for step in range(1, 15)]
    for step in (14, 2, 7):
        assert ids_of_step(shard_sets, step) == uninterrupted[step - 1]


def test_a_clip_comes_with_its_own_id_and_others_of_its_shape(shard_sets: list[ShardSet]) -> None:
    known = dict(stored_clips([shelf(shard_set) for shard_set in shard_sets]))
    for part in batches(*shard_sets).micro_batches(3):
        assert len(part.clip_ids) == len(part.clips) == CONFIG.micro_batch
        for clip_id, clip in zip(part.clip_ids, part.clips, strict=True):
            np.testing.assert_array_equal(clip, known[clip_id])


def test_a_batch_stays_what_it_was_when_its_window_has_been_read_over(shard_sets: list[ShardSet]) -> None:
    known = dict(stored_clips([shelf(shard_set) for shard_set in shard_sets]))
    reading = batches(*shard_sets)
    kept = [part for step in (*range(1, 15), 40, 3, 2) for part in reading.micro_batches(step)]
    assert len({clip_id for part in kept for clip_id in part.clip_ids}) == len(known)
    for part in kept:
        np.testing.assert_array_equal(part.clips, np.stack([known[clip_id] for clip_id in part.clip_ids]))


def test_the_tail_of_an_epoch_runs_into_the_next(token_set: ShardSet) -> None:
    num_clips = token_set.num_clips("train")
    assert num_clips % CONFIG.global_batch
    ids = [clip for step in (1, 2, 3, 4) for clip in chain(*ids_of_step([token_set], step))]
    assert len(set(ids[:num_clips])) == num_clips
    assert len(set(ids[num_clips : 2 * num_clips])) == num_clips


def test_every_grid_has_its_epochs(two_grid_set: ShardSet) -> None:
    """Ten epochs hold every clip ten times, but for less than a micro-batch of each of the two grids."""
    num_steps = 10 * two_grid_set.num_clips("train") // CONFIG.global_batch
    going = batches(two_grid_set)
    counts = Counter(
        clip_id
        for step in range(1, num_steps + 1)
        for part in going.micro_batches(step)
        for clip_id in part.clip_ids
    )
    assert len(counts) == two_grid_set.num_clips("train")
    assert set(counts.values()) <= {9, 10, 11}


def test_a_batch_that_does_not_divide_is_refused(token_set: ShardSet) -> None:
    with pytest.raises(ConfigError, match="5 workers x micro-batches of 2"):
        batches(token_set, world_size=5)


def test_held_out_clips_are_taken_evenly(frame_set: ShardSet) -> None:
    held_out = [Shelf(frame_set, tuple(frame_set.shards("validation")))]
    every = [clip_id for clip_id, _ in stored_clips(held_out)]
    assert len(every) == len(set(every)) == 5
    some = [clip_id for clip_id, _ in stored_clips(held_out, max_clips=2)]
    assert some == [every[0], every[2]]
    assert all(isinstance(clip, np.ndarray) for _, clip in stored_clips(held_out, max_clips=1))


@pytest.mark.parametrize(("max_values", "num_groups"), [(10**9, None), (128, 2), (1, 1)])
def test_a_part_of_a_set_is_whole_row_groups_from_all_over_it(
    token_set: ShardSet, max_values: int, num_groups: int | None
) -> None:
    every = [clip.tobytes() for _, clip in stored_clips([shelf(token_set)])]
    sizes = [rows for entry in shelf(token_set).entries for rows in entry.row_groups]
    some = [clip.tobytes() for clip in clips_of_some_groups([shelf(token_set)], max_values=max_values)]
    starts = np.cumsum([0, *sizes])
    wanted = len(sizes) if num_groups is None else num_groups
    chosen = [i * len(sizes) // wanted for i in range(wanted)]
    assert some == [clip for group in chosen for clip in every[starts[group] : starts[group + 1]]]
