from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest

from infra.errors import ConfigError
from pipelines.shards import ShardSet
from training.batches import Batches, Order, shuffled, stored_clips
from training.batches_config import BatchesConfig

SIZES = [4, 4, 3, 4, 1, 4, 2]
CONFIG = BatchesConfig(global_batch=12, micro_batch=2, window_groups=3)


def order(seed: int = 0, window_groups: int = 3) -> Order:
    return Order(SIZES, seed=seed, window_groups=window_groups)


def batches(shard_set: ShardSet, *, rank: int = 0, world_size: int = 1, seed: int = 0) -> Batches:
    return Batches(shard_set, shard_set.shards("train"), CONFIG, seed=seed, rank=rank, world_size=world_size)


def ids_of_step(shard_set: ShardSet, step: int, world_size: int = 1) -> list[tuple[str, ...]]:
    """Clip ids of each micro-batch of a step, by its index, whichever rank has it."""
    ranks = [batches(shard_set, rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = {part.index: part.clip_ids for rank in ranks for part in rank.micro_batches(step)}
    return [parts[index] for index in sorted(parts)]


@pytest.mark.parametrize("window_groups", [1, 3, 100])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_has_every_clip_once(window_groups: int, epoch: int) -> None:
    clips = order(window_groups=window_groups)
    size = clips.clips_per_epoch
    places = [clips.place(position) for position in range(epoch * size, (epoch + 1) * size)]
    assert sorted(places) == [(group, row) for group, rows in enumerate(SIZES) for row in range(rows)]


def test_epochs_and_seeds_differ_in_their_order() -> None:
    size = order().clips_per_epoch
    first = [order().place(p) for p in range(size)]
    assert first != [order().place(p) for p in range(size, 2 * size)]
    assert first != [order(seed=1).place(p) for p in range(size)]


def test_rows_are_shuffled_across_the_groups_of_a_window() -> None:
    groups = [order(window_groups=len(SIZES)).place(p)[0] for p in range(sum(SIZES))]
    changes = sum(a != b for a, b in pairwise(groups))
    assert changes > len(SIZES)


def test_a_permutation_is_pinned_for_good() -> None:
    """A run resumed with another numpy must meet the same clips."""
    assert shuffled(8, 0, 0).tolist() == [3, 2, 1, 4, 5, 7, 0, 6]
    assert sorted(shuffled(1000, 7).tolist()) == list(range(1000))


def test_a_permutation_puts_everything_everywhere() -> None:
    firsts = Counter(int(shuffled(4, seed)[0]) for seed in range(2000))
    assert all(400 < count < 600 for count in firsts.values())


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_what_a_step_takes_does_not_depend_on_the_world_size(token_set: ShardSet, world_size: int) -> None:
    for step in (1, 2, 7):
        assert ids_of_step(token_set, step, world_size) == ids_of_step(token_set, step)


def test_resuming_at_a_step_continues_the_same_sequence(token_set: ShardSet) -> None:
    going = batches(token_set)
    uninterrupted = [[part.clip_ids for part in going.micro_batches(step)] for step in range(1, 8)]
    assert ids_of_step(token_set, 7) == uninterrupted[6]


def test_the_tail_of_an_epoch_runs_into_the_next(token_set: ShardSet) -> None:
    num_clips = token_set.num_clips("train")
    assert num_clips % CONFIG.global_batch
    ids = [clip for step in (1, 2, 3, 4) for clip in chain(*ids_of_step(token_set, step))]
    assert len(set(ids[:num_clips])) == num_clips
    assert len(set(ids[num_clips : 2 * num_clips])) == num_clips


def test_a_clip_comes_with_its_own_id(token_set: ShardSet) -> None:
    for part in batches(token_set).micro_batches(3):
        for clip_id, clip in zip(part.clip_ids, part.clips, strict=True):
            row, _ = token_set.find_clip(clip_id)
            assert row["codes"] == clip.astype("<u2").tobytes()


def test_a_batch_that_does_not_divide_is_refused(token_set: ShardSet) -> None:
    with pytest.raises(ConfigError, match="5 workers x micro-batches of 2"):
        batches(token_set, world_size=5)


def test_no_clips_are_refused(token_set: ShardSet) -> None:
    with pytest.raises(ConfigError, match="has no clip to train on"):
        Batches(token_set, [], CONFIG, seed=0)


def test_held_out_clips_are_taken_evenly(frame_set: ShardSet) -> None:
    entries = frame_set.shards("validation")
    every = [clip_id for clip_id, _ in stored_clips(frame_set, entries)]
    assert len(every) == len(set(every)) == 5
    some = [clip_id for clip_id, _ in stored_clips(frame_set, entries, max_clips=2)]
    assert some == [every[0], every[2]]
    assert all(isinstance(clip, np.ndarray) for _, clip in stored_clips(frame_set, entries, max_clips=1))
