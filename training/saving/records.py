"""What the other ranks tell rank 0, which commits: each lists its files in one more beside them.

checkpoints/step-00000040-5c1f20ab/rank-00001.files.json

So that no step has to carry it from rank to rank. Once it is committed, the manifest says the same.
"""

from collections.abc import Iterable, Iterator

from infra import configs, storage
from infra.errors import ConfigError, StorageError
from training.saving.manifest import FileRecord


def leave(root: str, name: str, rank: int, records: Iterable[FileRecord]) -> None:
    """To be called once the files are on the disk."""
    storage.write_json(_path(root, name, rank), [configs.to_dict(record) for record in records])


def found(root: str, name: str, ranks: Iterable[int]) -> Iterator[FileRecord]:
    """What `ranks` have left. Raises StorageError where one has left nothing that rank 0 sees."""
    for rank in ranks:
        try:
            values = storage.read_json(_path(root, name, rank))
            yield from [configs.from_dict(FileRecord, record) for record in values]
        except (StorageError, ConfigError) as error:
            raise StorageError(
                f"rank {rank} has written its part of {root}/{name}, and rank 0 does not find it ({error}); "
                f"give a --run-dir that all machines share"
            ) from None


def _path(root: str, name: str, rank: int) -> str:
    return storage.join(root, name, f"rank-{rank:05d}.files.json")
