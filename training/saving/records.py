"""What the other ranks tell rank 0, which commits: the files that each has written, in one more beside them.

checkpoints/step-00000040-5c1f20ab/rank-00001.files.json

So that no step has to carry it from rank to rank. Once it is committed, the manifest says the same.
"""

from collections.abc import Iterable, Iterator

from infra import configs, storage
from training.saving.manifest import FileRecord


def leave(root: str, name: str, rank: int, records: Iterable[FileRecord]) -> None:
    """To be called once the files are on the disk."""
    storage.write_json(_path(root, name, rank), [configs.to_dict(record) for record in records])


def left(root: str, name: str, ranks: Iterable[int]) -> Iterator[FileRecord]:
    """Raises StorageError where one of `ranks` has left none."""
    for rank in ranks:
        for values in storage.read_json(_path(root, name, rank)):
            yield configs.from_dict(FileRecord, values)


def _path(root: str, name: str, rank: int) -> str:
    return storage.join(root, name, f"rank-{rank:05d}.files.json")
