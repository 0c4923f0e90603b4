"""`reelgpt explain`: where one clip came from - source, time, scores, hashes - and its picture."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.compute as pc
from rich.console import Group
from rich.table import Table
from tyro.conf import Positional

from infra import hashing, storage
from infra.errors import UsageError
from pipelines.selection.distributions import distributions
from pipelines.shards import ShardSet
from reelgpt import score_table
from reelgpt.command import InputUri, Outcome, OutputUri

LISTED = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Explain:
    """Where one clip came from: source video, time, scores, hashes, and its picture. Without --clip, lists
    some, and shows how the scores of all lie beside the thresholds.

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
            facts |= {"picture": self.picture, "pictures_unchanged": _draw(shard_set, row, self.picture)}
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
    found = distributions(shard_set)
    return Outcome(
        summary={
            "shards": shard_set.uri,
            "num_clips": sum(entry.rows for entry in manifest.shards),
            "clips": listed,
            "scores": score_table.as_dict(found),
        },
        text=Group(*([text] if listed else []), score_table.as_table(found)),
    )


def _facts(shard_set: ShardSet, row: dict[str, Any], split: str) -> dict[str, Any]:
    manifest = shard_set.manifest
    shape, data = (row["grid"], row["codes"]) if manifest.kind == "tokens" else (row["shape"], row["frames"])
    return {
        "clip_id": row["clip_id"],
        "split": split,
        "source": row["source"],
        "source_id": row["source_id"],
        "uri": _uri_of(shard_set, row["source_id"]),
        "span_id": row["span_id"],
        "start_seconds": row["start_seconds"],
        "end_seconds": row["start_seconds"] + row["num_frames"] / row["fps"],
        "fps": row["fps"],
        "repeated_frames": row["repeated_frames"],
        "scores": dict(row["scores"] or []),
        "label": row["label"],
        "caption": row["caption"],
        "action": row["action"],
        "shape": shape,
        "content_hash": row["content_hash"],
        "perceptual_hash": row["perceptual_hash"],
        "content_sha256": hashing.sha256_bytes(data),
        "shard_set": manifest.fingerprint,
        "tokenizer": manifest.tokenizer_fingerprint,
    }


def _uri_of(shard_set: ShardSet, source_id: str) -> str:
    """Where the source was last."""
    from pipelines.building import inventory

    sources = shard_set.sources()
    of_clip = sources.filter(pc.equal(sources.column("source_id"), source_id))
    uri: str = inventory.located(of_clip, shard_set.uri).column("uri")[0].as_py()
    return uri


def _draw(shard_set: ShardSet, row: dict[str, Any], picture: str) -> bool:
    """Says whether the pictures are those that the clip was made of: codes have none of their own, and their
    source gives them again."""
    from pipelines.checking import deep
    from reelgpt.pictures import film_strip

    if shard_set.manifest.kind == "frames":
        frames, unchanged = np.frombuffer(row["frames"], np.uint8).reshape(row["shape"]), True
    else:
        frames, unchanged = deep.decode_clip(shard_set, row)
    storage.write(storage.absolute(picture), film_strip({row["clip_id"]: frames}))
    return unchanged


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
