"""Sources to spans: list what was named, identify each file by its content, cut its time into a fixed
grid."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import IO, Any

from infra import hashing, storage
from infra.errors import UsageError
from infra.storage import FileInfo

MEDIA_SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *(
            "3gp",
            "avi",
            "flv",
            "gif",
            "m2ts",
            "m2v",
            "m4v",
            "mjpeg",
            "mjpg",
            "mkv",
            "mov",
            "mp4",
            "mpeg",
            "mpg",
        ),
        *("ogg", "ogv", "ts", "webm", "wmv"),
        *("bmp", "jpeg", "jpg", "png", "tif", "tiff", "webp"),
    )
)
"""What is taken from a folder. A file named by itself, or by a glob, is taken whatever it is called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    source_id: str
    """Hash of the name, the size, and the SHA-256 of the first, middle and last MiB."""
    name: str
    """Relative to the folder or to the fixed part of the glob that named it."""
    uri: str
    size: int
    modified: str
    duration_seconds: float | None
    """What its container promises; None where it cannot be opened or does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    span_id: str
    source_id: str
    source: str
    uri: str
    start_seconds: float
    end_seconds: float | None
    """None for the last span of a source, which goes on to its end."""


def list_videos(videos: Iterable[str]) -> list[FileInfo]:
    """Files named by folders, globs and URIs, each once. Raises UsageError where there is none."""
    found = {file.uri: file for video in videos for file in _expand(storage.absolute(video))}
    if not found:
        raise UsageError(
            f"no videos in {', '.join(videos) or 'nothing'}; give files, folders, globs or fsspec URIs of "
            f"media files ({', '.join(sorted(MEDIA_SUFFIXES)[:6])}, ...)"
        )
    times_named = Counter(file.name for file in found.values())
    twins = sorted(file.uri for file in found.values() if times_named[file.name] > 1)
    if twins:
        raise UsageError(
            f"{twins[0]} and {twins[1]} have one name relative to the folders given; give their parent"
        )
    return sorted(found.values(), key=lambda file: file.name)


def identify(file: FileInfo, opened: IO[bytes], duration_seconds: float | None) -> Source:
    return Source(
        source_id=_content_id(file, opened),
        name=file.name,
        uri=file.uri,
        size=file.size,
        modified=file.modified,
        duration_seconds=duration_seconds,
    )


def cut_spans(source: Source, span_seconds: float) -> Iterator[Span]:
    """[0, s), [s, 2s), ... up to the duration, the last one open; one open span where the duration is
    unknown."""
    count = max(1, math.ceil((source.duration_seconds or 0) / span_seconds))
    for k in range(count):
        yield Span(
            span_id=f"{source.source_id}/{k:05d}",
            source_id=source.source_id,
            source=source.name,
            uri=source.uri,
            start_seconds=k * span_seconds,
            end_seconds=(k + 1) * span_seconds if k + 1 < count else None,
        )


def held_out(sources: Iterable[Source], names: tuple[str, ...], share: float) -> frozenset[str]:
    """Ids of the validation sources: those named, else the ceil(share) with the lowest ids."""
    ordered = sorted(sources, key=lambda source: source.source_id)
    if names:
        return frozenset(source.source_id for source in ordered if source.name in names)
    if share == 0 or len(ordered) < 2:
        return frozenset()
    return frozenset(source.source_id for source in ordered[: math.ceil(share * len(ordered))])


def row(record: Source | Span) -> dict[str, Any]:
    return asdict(record)


def _expand(video: str) -> list[FileInfo]:
    """A file, a folder, or a glob, in this order: names may hold brackets."""
    one = storage.describe(video)
    if one is not None:
        return [one]
    found = [file for file in storage.list_files(video) if _suffix(file.name) in MEDIA_SUFFIXES]
    return found or (storage.matching(video) if any(sign in video for sign in "*?[") else [])


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2].lower()


def _content_id(file: FileInfo, opened: IO[bytes]) -> str:
    parts = []
    for start in (0, max(0, (file.size - hashing.MIB) // 2), max(0, file.size - hashing.MIB)):
        opened.seek(start)
        parts.append(hashlib.sha256(opened.read(hashing.MIB)).hexdigest())
    return hashing.digest([file.name, file.size, *parts])[:16]
