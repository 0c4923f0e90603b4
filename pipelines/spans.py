"""Sources to spans: list what was named, identify each file by its content, cut its time into a fixed
grid."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra import hashing, storage
from infra.errors import UsageError
from infra.storage import FileInfo
from pipelines.config import SplitConfig
from pipelines.source_errors import failing_disk

MEDIA_SUFFIXES = frozenset(
    {
        ".264", ".265", ".3g2", ".3gp", ".asf", ".avc", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gxf",
        ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg",
        ".mjpg", ".mk3d", ".mkv", ".mov", ".mp2v", ".mp4", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf",
        ".nut", ".obu", ".ogg", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tod", ".trp", ".ts", ".vob",
        ".webm", ".wmv", ".wtv", ".y4m",
        ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
"""What is taken from a folder. A file named by itself, or by a glob, is taken whatever it is called."""


UNREADABLE = "unreadable-"
"""How the ids of sources begin that had no content to hash."""
SOURCE_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()),
        ("name", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.string()),
        ("duration_seconds", pa.float64()),
    ]
)
INSPECTED_SCHEMA = SOURCE_SCHEMA.append(pa.field("left", pa.string()))
"""What comes of looking into a file: the source, or why the file is left, beside what was listed of it."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    files: list[FileInfo]
    """Each once, sorted by name."""
    passed_over: list[str]
    """URIs of the files of the folders that are no media files by their suffix, sorted."""


def list_videos(videos: Iterable[str]) -> list[FileInfo]:
    return find_videos(videos).files


def find_videos(videos: Iterable[str], exclude: tuple[str, ...] = ()) -> Listing:
    """Files named by folders, globs and URIs, without those whose names or URIs `exclude` says.

    Raises UsageError where there is none, or nothing at one, or nothing to exclude.
    """
    videos = list(videos)
    for video in videos:
        _check_given(video)
    expanded = [_expand(storage.absolute(video)) for video in videos]
    found = {file.uri: file for taken, _ in expanded for file in taken}
    others = {file.uri for _, passed_over in expanded for file in passed_over} - found.keys()
    if not found:
        raise UsageError(
            f"no videos in {', '.join(videos) or 'nothing'}; give files, folders, globs or fsspec URIs of "
            f"media files ({', '.join(sorted(MEDIA_SUFFIXES)[:6])}, ...)"
        )
    for video, named in zip(videos, expanded, strict=True):
        if not any(named) and not _is_glob(video) and not storage.exists(video):
            raise UsageError(f"there is nothing at {video}; correct the name, or leave it out")
    found = _remaining(found, exclude)
    times_named = Counter(file.name for file in found.values())
    twins = sorted(file.uri for file in found.values() if times_named[file.name] > 1)
    if twins:
        raise UsageError(
            f"{twins[0]} and {twins[1]} have one name relative to the folders given; give their parent"
        )
    files = sorted(found.values(), key=lambda file: file.name)
    return Listing(files=files, passed_over=sorted(others))


def _remaining(found: dict[str, FileInfo], exclude: tuple[str, ...]) -> dict[str, FileInfo]:
    names = {file.name for file in found.values()}
    for name in exclude:
        if name not in names and name not in found:
            some = ", ".join(sorted(names)[:5])
            raise UsageError(f"no video is named {name!r} to exclude; there are {some}")
    stays = {uri: file for uri, file in found.items() if file.name not in exclude and uri not in exclude}
    if not stays:
        raise UsageError(f"no video remains without {', '.join(exclude[:5])}; exclude fewer")
    return stays


def _check_given(video: str) -> None:
    """What is listed may be called anything; but Ray does not start under a command that is not UTF-8."""
    try:
        video.encode()
    except UnicodeEncodeError:
        uri = storage.file_uri(storage.absolute(video))
        raise UsageError(
            f"{video!a} is not UTF-8; give its folder, a quoted glob that matches it, or {uri}"
        ) from None


def identify(file: FileInfo, opened: IO[bytes] | None, duration_seconds: float | None) -> Source:
    """`opened` is None where the file cannot be read."""
    return Source(
        source_id=content_id(file.name, opened) if opened else UNREADABLE + hashing.digest(file.name)[:16],
        name=file.name,
        uri=file.uri,
        size=file.size,
        modified=file.modified,
        duration_seconds=duration_seconds,
    )


def span_table(sources: pa.Table, span_seconds: float) -> pa.Table:
    """[0, s), [s, 2s), ... up to the duration, the last one open; one open span where the duration is
    unknown. Columns: those of Span; the spans of a source follow each other."""
    durations = pc.fill_null(sources.column("duration_seconds"), 0.0).to_numpy()
    counts = np.maximum(1, np.ceil(durations / span_seconds)).astype(np.int64)
    of_source = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(of_source)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_last = number + 1 == counts[of_source]
    repeated = sources.select(["source_id", "name", "uri"]).take(pa.array(of_source))
    padded = pc.utf8_lpad(pc.cast(pa.array(number), pa.string()), 5, "0")
    ids = pc.binary_join_element_wise(repeated.column("source_id"), padded, "/")
    return pa.table(
        {
            "span_id": ids,
            "source_id": repeated.column("source_id"),
            "source": repeated.column("name"),
            "uri": repeated.column("uri"),
            "start_seconds": number * span_seconds,
            "end_seconds": pa.array((number + 1) * span_seconds, mask=is_last),
        }
    )


def held_out(sources: pa.Table, split: SplitConfig, earlier: pa.Table | None = None) -> frozenset[str]:
    """Ids of the validation sources: those named, else the ceil(share) with the lowest ids.

    `earlier` are sources with the `split` that they had before, and keep: the new ones with the lowest ids
    fill up the share.
    """
    ids: list[str] = sorted(sources.column("source_id").to_pylist())
    kept, known = set[str](), set[str]()
    if earlier is not None:
        known = set(earlier.column("source_id").to_pylist())
        kept = set(validation_of(earlier))
    if split.validation:
        named = pc.is_in(sources.column("name"), pa.array(split.validation))
        return frozenset(kept | set(sources.filter(named).column("source_id").to_pylist()) - (known - kept))
    if split.validation_share == 0 or len(ids) < 2:
        return frozenset(kept)
    wanted = math.ceil(split.validation_share * len(ids)) - len(kept)
    new = [one for one in ids if one not in known]
    return frozenset(kept | set(new[: max(0, wanted)]))


def validation_of(sources: pa.Table) -> frozenset[str]:
    """Ids of the sources whose `split` says so."""
    chosen = sources.filter(pc.equal(sources.column("split"), "validation"))
    return frozenset(chosen.column("source_id").to_pylist())


def row(record: Source | Span) -> dict[str, Any]:
    return asdict(record)


def _expand(video: str) -> tuple[list[FileInfo], list[FileInfo]]:
    """A file, a folder, or a glob, in this order: names may hold brackets. What is taken, and passed over.

    A folder that may not be read is taken too, as a source that cannot be read: nobody knows what is in it.
    """
    one = storage.describe(video, irregular=True)
    if one is not None:
        return [one], []
    taken, others = list[FileInfo](), list[FileInfo]()
    for file in storage.list_files(video, irregular=True):
        (taken if _is_media(file) else others).append(file)
    if not taken and _is_glob(video):
        return storage.matching(video), []
    return taken, others


def _is_glob(video: str) -> bool:
    return any(sign in video for sign in "*?[")


def _is_media(file: FileInfo) -> bool:
    is_locked_folder = file.name.endswith("/")
    return is_locked_folder or "." + file.name.rpartition(".")[2].lower() in MEDIA_SUFFIXES


def content_id(name: str, opened: IO[bytes]) -> str:
    """Of a source: its name, its size, and the SHA-256 of its first, middle and last MiB.

    Raises StorageError where the disk fails, SourceError where it has lost this one.
    """
    size = os.fstat(opened.fileno()).st_size
    parts = []
    for start in (0, max(0, (size - hashing.MIB) // 2), max(0, size - hashing.MIB)):
        try:
            opened.seek(start)
            data = opened.read(hashing.MIB) or b""  # None: a device that has nothing to say now
        except OSError as error:
            raise failing_disk(opened, error.errno, f"{error.strerror} behind byte {start}") from None
        parts.append(hashlib.sha256(data).hexdigest())
    return hashing.digest([name, size, *parts])[:16]
