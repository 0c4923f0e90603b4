"""Shards on a real S3 server, read through the cache of a machine."""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import s3fs

from infra.errors import StorageError
from pipelines.shards import ShardSet
from tests.object_store import ObjectStore, object_store
from training.configs.batches import BatchesConfig
from training.loading.batches import Batches, MicroBatch
from training.loading.shelf import Shelf, stored_clips

pytestmark = pytest.mark.slow

STEPS = range(1, 5)
CONFIG = BatchesConfig(global_batch=12, micro_batch=2, window_groups=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as started:
        yield started


@pytest.fixture
def remote_set(
    store: ObjectStore, token_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ShardSet]:
    """`token_set`, on the server."""
    for name, value in (store.environment | {"AWS_MAX_ATTEMPTS": "2"}).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    fs, bucket = s3fs.S3FileSystem(), tmp_path.name.replace("_", "-")
    fs.mkdir(bucket)
    fs.put(token_set.uri, f"{bucket}/tokens", recursive=True)
    yield ShardSet.open(f"s3://{bucket}/tokens")
    s3fs.S3FileSystem.clear_instance_cache()


def read(shard_set: ShardSet, config: BatchesConfig) -> list[MicroBatch]:
    shelf = Shelf(shard_set, tuple(shard_set.shards("train")), caching=config)
    reading = Batches([shelf], [Fraction(1)], config, seed=0)
    try:
        return [part for step in STEPS for part in reading.micro_batches(step)]
    finally:
        reading.close()


def assert_same(ones: list[MicroBatch], others: list[MicroBatch]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert one.clip_ids == other.clip_ids
        np.testing.assert_array_equal(one.clips, other.clips)


def test_what_was_read_once_is_read_without_the_server(
    store: ObjectStore, token_set: ShardSet, remote_set: ShardSet, tmp_path: Path
) -> None:
    config = replace(CONFIG, cache_dir=str(tmp_path / "cache"))
    assert_same(read(remote_set, config), read(token_set, CONFIG))
    store.go_away()
    try:
        assert_same(read(remote_set, config), read(token_set, CONFIG))
        with pytest.raises(StorageError):
            read(remote_set, replace(CONFIG, cache_dir=str(tmp_path / "another")))
    finally:
        store.come_back()


def test_what_is_measured_was_read_once_too(
    store: ObjectStore, token_set: ShardSet, remote_set: ShardSet, tmp_path: Path
) -> None:
    config = replace(CONFIG, cache_dir=str(tmp_path / "cache"))
    here, there = (Shelf(each, tuple(each.shards("validation")), config) for each in (token_set, remote_set))

    def clips(shelf: Shelf) -> list[tuple[str, bytes]]:
        return [(clip_id, clip.tobytes()) for clip_id, clip in stored_clips([shelf])]

    expected = clips(here)
    assert expected
    assert clips(there) == expected
    store.go_away()
    try:
        assert clips(there) == expected
    finally:
        store.come_back()


def test_a_cache_that_is_too_small_for_the_set_stays_within_its_bound(
    token_set: ShardSet, remote_set: ShardSet, tmp_path: Path
) -> None:
    bound = 4_000
    config = replace(CONFIG, cache_dir=str(tmp_path / "cache"), cache_gb=bound / 1e9)
    assert_same(read(remote_set, config), read(token_set, CONFIG))
    sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert 0 < sum(sizes) <= bound


def test_a_damaged_entry_of_the_cache_is_fetched_anew(
    token_set: ShardSet, remote_set: ShardSet, tmp_path: Path
) -> None:
    config = replace(CONFIG, cache_dir=str(tmp_path / "cache"))
    read(remote_set, config)
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file() and (data := bytearray(path.read_bytes())):
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    assert_same(read(remote_set, config), read(token_set, CONFIG))
