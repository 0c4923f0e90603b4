"""What makes two things the same: SHA-256 over bytes, files and canonical JSON."""

import hashlib
import json
from typing import Any

MIB = 1 << 20


def canonical_json(value: Any) -> bytes:
    """One byte string for one value: sorted keys, no spaces, ASCII; NaN and infinities are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, in hex."""
    return sha256_bytes(canonical_json(value))


def sha256_bytes(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
