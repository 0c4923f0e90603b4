"""The fingerprint of a shard set: a hash of what came out, whatever its files look like.

Clips with their payload, joined facts and split, and the final outcome of each span; never Parquet bytes,
timings, attempts or versions of libraries.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from infra import hashing
from pipelines.shards import PAYLOAD, Kind, Split


def clip_digests(table: pa.Table, kind: Kind, split: Split) -> list[bytes]:
    """What the fingerprint takes of each clip: a hash of its id, split, joined facts and payload."""
    payload, shape = PAYLOAD[kind]
    facts = table.select(["clip_id", "label", "caption", "action", shape]).to_pylist()
    return [
        _digest([split, *row.values(), hashlib.sha256(data.as_buffer()).hexdigest()])
        for row, data in zip(facts, table.column(payload), strict=True)
    ]


def span_digests(spans: pa.Table) -> list[bytes]:
    """What the fingerprint takes of each span: its id and its final outcome."""
    columns = (spans.column(name).to_pylist() for name in ("span_id", "outcome", "error_class"))
    return [_digest([span_id, error or outcome]) for span_id, outcome, error in zip(*columns, strict=True)]


def fingerprint_of(clips: Iterable[list[bytes]], spans: list[bytes]) -> str:
    """Order-independent hash of a shard set's content; holds 32 bytes a clip in memory."""
    joined = b"".join(b"".join(digests) for digests in clips)
    return hashing.digest([_sorted_hash(joined), _sorted_hash(b"".join(spans))])


def _digest(facts: list[Any]) -> bytes:
    return hashlib.sha256(hashing.canonical_json(facts)).digest()


def _sorted_hash(joined: bytes) -> str:
    """SHA-256 over 32-byte digests, sorted."""
    words = np.frombuffer(joined, ">u8").reshape(-1, 4)
    return hashing.sha256_bytes(words[np.lexsort(words.T[::-1])].tobytes())
