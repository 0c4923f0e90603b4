"""A sample of a set's clips, decoded again from their sources and tokenized again: do they come out the same?

A span is decoded as it was at first, whole, since a decoder may answer otherwise when it starts elsewhere.
No Ray here: a sample is small.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra import storage
from infra.errors import UsageError
from pipelines.building import claim, inventory, stages
from pipelines.building.job import TokenizerRef
from pipelines.building.tokenizing import Encoder
from pipelines.config import ExtractConfig
from pipelines.decoding.decode import Decoded
from pipelines.decoding.source_cache import UnreadableError, opened_locally
from pipelines.selection.scores import content_hash
from pipelines.shards import PAYLOAD, ShardSet
from pipelines.spans import Span, content_id, span_table

Row = dict[str, Any]


@dataclass(slots=True)
class Comparison:
    sampled: int
    compared: int = 0
    """Clips that could be decoded again."""
    equal: int = 0
    problems: list[str] = field(default_factory=list)


class NotDecodableError(Exception):
    """Why the clips of a source cannot be compared."""


def compare(
    shard_set: ShardSet,
    *,
    num_clips: int,
    seed: int,
    tokenizer: TokenizerRef | None = None,
    on_clip: Callable[[int, int], None] = lambda *_: None,
) -> Comparison:
    """Raises UsageError where the tokenizer is not the one that made the codes."""
    _check_tokenizer(shard_set, tokenizer)
    rows = sample(shard_set, num_clips, seed)
    found = Comparison(sampled=len(rows))
    again = _decoded_again(shard_set, rows, found)
    if tokenizer is not None:
        again = _tokenized_again(again, Encoder(tokenizer.uri, claim.CLIPS_PER_BATCH))
    for row, clip in again:
        found.compared += 1
        problem = _difference(row, clip, shard_set)
        found.equal += not problem
        found.problems += [problem] if problem else []
        on_clip(found.compared, len(rows))
    return found


def sample(shard_set: ShardSet, num_clips: int, seed: int) -> list[Row]:
    """Rows of so many clips, or of all, drawn alike from every shard; those of a span follow each other."""
    groups = [
        (entry, index, count)
        for entry in shard_set.manifest.shards
        for index, count in enumerate(entry.row_groups)
    ]
    total, start = sum(count for *_, count in groups), 0
    drawn = np.array(sorted(random.Random(seed).sample(range(total), min(num_clips, total))))
    rows: list[Row] = []
    for entry, index, count in groups:
        inside = drawn[(drawn >= start) & (drawn < start + count)] - start
        if len(inside):
            rows += shard_set.read_row_group(entry, index).take(pa.array(inside)).to_pylist()
        start += count
    return sorted(rows, key=lambda row: str(row["clip_id"]))


def decode_clip(shard_set: ShardSet, row: Row) -> tuple[np.ndarray, bool]:
    """The frames (T, H, W, 3) uint8 of one clip as its source gives them now, and whether they are those that
    it was made of. Raises UsageError where the source is away or another one."""
    config = claim.extract_config(shard_set.manifest.config)
    span = _spans_of(shard_set, [row], config)[row["span_id"]]
    try:
        clip = _clip_of(row, span, _decode(span, config))
    except NotDecodableError as error:
        raise UsageError(f"{error}; {row['clip_id']} cannot be shown") from None
    finally:
        stages.decoder_of_this_process(config.limits).close()
    frames = np.frombuffer(clip["frames"], np.uint8).reshape(clip["shape"])
    return frames, row["content_hash"] in (None, clip["content_hash"])


def _check_tokenizer(shard_set: ShardSet, tokenizer: TokenizerRef | None) -> None:
    made_by = shard_set.manifest.tokenizer_fingerprint
    if made_by != (tokenizer.fingerprint if tokenizer else None):
        given = f"the tokenizer {tokenizer.fingerprint[:12]}" if tokenizer else "no tokenizer"
        needed = f"its codes were made by {made_by[:12]}" if made_by else "it holds frames"
        raise UsageError(f"{given} was given for {shard_set.uri}, and {needed}")


def _decoded_again(shard_set: ShardSet, rows: list[Row], found: Comparison) -> Iterator[tuple[Row, Row]]:
    """Each row with the clip that it should be; what cannot be decoded is noted in `found`."""
    config = claim.extract_config(shard_set.manifest.config)
    spans = _spans_of(shard_set, rows, config)
    not_decodable: dict[str, int] = {}
    try:
        for span_id, of_span in groupby(rows, key=lambda row: str(row["span_id"])):
            clips = list(of_span)
            try:
                decoded = _decode(spans[span_id], config)
            except NotDecodableError as error:
                not_decodable[str(error)] = not_decodable.get(str(error), 0) + len(clips)
                continue
            for row in clips:
                clip = _clip_of(row, spans[span_id], decoded)
                if clip["shape"][0] == row["num_frames"]:
                    yield row, clip
                else:
                    found.compared += 1
                    found.problems.append(
                        f"{_name(row)} has {row['num_frames']} frames, and {clip['shape'][0]} can be decoded"
                    )
    finally:
        stages.decoder_of_this_process(config.limits).close()
        found.problems += [f"{why}: {n} clips could not be compared" for why, n in not_decodable.items()]


def _spans_of(shard_set: ShardSet, rows: list[Row], config: ExtractConfig) -> dict[str, Span]:
    sources = inventory.located(shard_set.sources(), shard_set.uri)
    wanted = pa.array(sorted({row["source_id"] for row in rows}), pa.string())
    table = span_table(
        sources.filter(pc.is_in(sources.column("source_id"), wanted)), config.sampling.span_seconds
    )
    return {fields["span_id"]: Span(**fields) for fields in table.to_pylist()}


def _decode(span: Span, config: ExtractConfig) -> Decoded:
    """Raises NotDecodableError where the source is away or another one, or nothing comes of it."""
    if not storage.exists(span.uri):
        raise NotDecodableError(f"the source {span.uri} is missing")
    try:
        with opened_locally(span.uri) as opened:
            if content_id(span.source, opened) != span.source_id:
                raise NotDecodableError(f"the source {span.uri} has changed since its clips were made")
    except UnreadableError as error:
        raise NotDecodableError(str(error)) from None
    decoded = stages.decoded(span, config)
    if not len(decoded.frames):
        raise NotDecodableError(
            f"nothing of {span.uri} can be decoded from {span.start_seconds:g} s on any more "
            f"({decoded.error_class}: {decoded.error})"
        )
    return decoded


def _clip_of(row: Row, span: Span, decoded: Decoded) -> Row:
    """Its frames and their shape, both as a record has them, and the hash of its pictures."""
    start = round((row["start_seconds"] - span.start_seconds) * row["fps"])
    frames = decoded.frames[start : start + row["num_frames"]]
    return {"shape": list(frames.shape), "frames": frames.tobytes(), "content_hash": content_hash(frames)}


def _tokenized_again(clips: Iterator[tuple[Row, Row]], encoder: Encoder) -> Iterator[tuple[Row, Row]]:
    rows: list[Row] = []

    def records() -> Iterator[Row]:
        for row, clip in clips:
            rows.append(row)
            yield {"tokenize_seconds": 0.0, "clips": [clip]}

    done = encoder.encode(records())
    return ((row, record["clips"][0]) for row, record in zip(rows, done, strict=True))


def _difference(row: Row, clip: Row, shard_set: ShardSet) -> str | None:
    """What of a clip has come out otherwise; None where nothing has."""
    payload, shape = PAYLOAD[shard_set.manifest.kind]
    known = row["content_hash"]
    same_pictures = known is None or known == clip["content_hash"]
    if same_pictures and (row[shape], row[payload]) == (clip[shape], clip[payload]):
        return None
    name = _name(row)
    if row[shape] != clip[shape]:
        return f"{name} comes out as {clip[shape]}, and is there as {row[shape]}"
    values = [
        np.frombuffer(data, "<u2" if payload == "codes" else "u1") for data in (row[payload], clip[payload])
    ]
    differing, total = int((values[0] != values[1]).sum()), len(values[0])
    if payload == "frames":
        return f"{name} comes out with {differing:,} of {total:,} values changed"
    pictures = "of the same pictures" if same_pictures else "of other pictures than those that were tokenized"
    return f"{name} comes out {pictures} with {differing:,} of {total:,} codes changed"


def _name(row: Row) -> str:
    return f"{row['clip_id']} ({row['source']} from {row['start_seconds']:.2f} s on)"
