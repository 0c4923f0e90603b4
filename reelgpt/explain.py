"""`reelgpt explain`: where one clip came from - source, time, scores, hashes - and its picture."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from rich.table import Table
from tyro.conf import Positional

from infra import hashing, storage
from infra.errors import UsageError
from pipelines.shards import ShardSet
from reelgpt.command import InputUri, Outcome, OutputUri

LISTED = 10
DRAWN_PIXELS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Explain:
    """Where one clip came from: source video, time, scores, hashes, and its picture. Without --clip, lists
    some.

    Example: reelgpt explain tokens --clip 3f2a9c/00000/0004 --picture clip.png
    """

    shards: Positional[InputUri]
    """A shard set."""
    clip: str | None = None
    """Id of the clip."""
    picture: OutputUri | None = None
    """Where to put a PNG of the clip's frames; codes are decoded anew from the source video."""
    json: bool = False
    """One JSON object as the last line of stdout."""

    def run(self) -> Outcome:
        shard_set = ShardSet.open(self.shards)
        if self.clip is None:
            if self.picture is not None:
                raise UsageError("--picture needs --clip, the id of the clip to show")
            return _some_clips(shard_set)
        row, split = shard_set.find_clip(self.clip)
        facts = _facts(shard_set, row, split)
        if self.picture is not None:
            _draw(shard_set, row, facts["uri"], self.picture)
            facts["picture"] = self.picture
        return Outcome(summary=facts, text=_table(facts))


def _some_clips(shard_set: ShardSet) -> Outcome:
    manifest = shard_set.manifest
    clips = (
        {"clip_id": row["clip_id"], "source": row["source"], "start_seconds": row["start_seconds"]}
        for split in ("train", "validation")
        for table in shard_set.tables(split, ["clip_id", "source", "start_seconds"])
        for row in table.to_pylist()
    )
    listed = list(islice(clips, LISTED))
    text = Table("clip", "source", "start, s")
    for clip in listed:
        text.add_row(clip["clip_id"], clip["source"], f"{clip['start_seconds']:.2f}")
    return Outcome(
        summary={
            "shards": shard_set.uri,
            "num_clips": sum(entry.rows for entry in manifest.shards),
            "clips": listed,
        },
        text=text,
    )


def _facts(shard_set: ShardSet, row: dict[str, Any], split: str) -> dict[str, Any]:
    manifest = shard_set.manifest
    shape, data = (row["grid"], row["codes"]) if manifest.kind == "tokens" else (row["shape"], row["frames"])
    source = next(s for s in shard_set.sources().to_pylist() if s["source_id"] == row["source_id"])
    return {
        "clip_id": row["clip_id"],
        "split": split,
        "source": row["source"],
        "source_id": row["source_id"],
        "uri": source["uri"],
        "span_id": row["span_id"],
        "start_seconds": row["start_seconds"],
        "end_seconds": row["start_seconds"] + row["num_frames"] / row["fps"],
        "fps": row["fps"],
        "repeated_frames": row["repeated_frames"],
        "scores": dict(row["scores"] or []),
        "label": row["label"],
        "caption": row["caption"],
        "shape": shape,
        "content_sha256": hashing.sha256_bytes(data),
        "shard_set": manifest.fingerprint,
        "tokenizer": manifest.tokenizer_fingerprint,
    }


def _draw(shard_set: ShardSet, row: dict[str, Any], source: str, picture: str) -> None:
    from reelgpt.pictures import film_strip

    storage.write(storage.absolute(picture), film_strip({row["clip_id"]: _frames(shard_set, row, source)}))


def _frames(shard_set: ShardSet, row: dict[str, Any], source: str) -> np.ndarray:
    """The clip's frames (T, H, W, 3) uint8: those stored, else decoded from the source at the clip's own
    times."""
    if shard_set.manifest.kind == "frames":
        return np.frombuffer(row["frames"], np.uint8).reshape(row["shape"])
    from pipelines.decode import read_frames

    return read_frames(
        source,
        size=DRAWN_PIXELS,
        fps=row["fps"],
        num_frames=row["num_frames"],
        start_seconds=row["start_seconds"],
    )


def _table(facts: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None:
            table.add_row(
                name, ", ".join(f"{k} {v:.3f}" for k, v in value.items()) if name == "scores" else str(value)
            )
    return table
