"""Frames to codes inside one worker: batches of one padded shape, filled across spans. No Ray here.

A fixed shape makes a clip's codes independent of its neighbours and of its place among them: between shapes,
sums run in another order. So a batch takes clips of any spans, and only the last one of a call is padded.
"""

import time
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from pipelines import records
from pipelines.building.stages import Read, Row, WriteRecords


class TokenizeRecords:
    """Records of frames to records of codes, then into a span file."""

    def __init__(self, *, tokenizer: str, clips_per_batch: int, out: str) -> None:
        self._encoder = Encoder(tokenizer, clips_per_batch)
        self._write = WriteRecords(out)

    def __call__(self, table: pa.Table) -> pa.Table:
        return self.finish(table.to_pylist())

    def finish(self, rows: Iterable[Row]) -> pa.Table:
        """Encodes the records as they come, so that the frames of one span are there at a time."""
        began = time.perf_counter()
        done = self._encoder.encode(rows)
        return self._write(pa.Table.from_pylist(done, schema=records.record_schema("tokens")), began)


class DecodeAndTokenize:
    """Units to records of codes in one process: what cores do that have no GPU to feed.

    The decoding child and the tokenizer take turns on one core. An actor a core then keeps all of them busy,
    whichever of the two costs more, and no frame leaves the process.
    """

    def __init__(self, *, read: Read, tokenizer: str, clips_per_batch: int, out: str) -> None:
        read.prepare()
        self._read = read
        self._records = TokenizeRecords(tokenizer=tokenizer, clips_per_batch=clips_per_batch, out=out)

    def __call__(self, units: pa.Table) -> pa.Table:
        return self._records.finish(self._read(units))


class Encoder:
    """A tokenizer on the device of this process, and the seconds that it takes."""

    def __init__(self, tokenizer: str, clips_per_batch: int) -> None:
        import torch

        from model.bundle import load_tokenizer
        from model.tokenizer import resize

        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            torch.set_num_threads(1)
        self._clock = time.perf_counter if on_gpu else time.thread_time
        self.device = "cuda" if on_gpu else "cpu"
        self._tokenizer = load_tokenizer(tokenizer).to(self.device).eval()
        self._resize = resize
        self._clips_per_batch = clips_per_batch

    def encode(self, rows: Iterable[Row]) -> list[Row]:
        """The rows with `codes` and `grid` in place of the frames of each clip that has some. A clip that
        waits for others is copied out of its row's frames, so that those can go.

        Adds to each row's `tokenize_seconds`: of a core, or of the GPU where there is one.
        """
        done: list[Row] = []
        waiting: dict[tuple[int, ...], list[tuple[Row, Row]]] = {}
        for row in rows:
            done.append(row)
            for clip in (clip for clip in row["clips"] if clip["frames"] is not None):
                batch = waiting.setdefault(tuple(clip["shape"]), [])
                batch.append((row, clip))
                if len(batch) == self._clips_per_batch:
                    self._encode(waiting.pop(tuple(clip["shape"])))
            for clip in (clip for batch in waiting.values() for owner, clip in batch if owner is row):
                clip["frames"] = bytes(clip["frames"])
        for batch in waiting.values():
            self._encode(batch)
        return done

    def _encode(self, batch: list[tuple[Row, Row]]) -> None:
        """Clips of one shape, each with its row."""
        started = self._clock()
        grids = self._codes([clip for _, clip in batch])
        seconds = self._clock() - started
        for (row, clip), grid in zip(batch, grids, strict=True):
            row["tokenize_seconds"] += seconds / len(batch)
            clip["codes"], clip["grid"] = grid.tobytes(), list(grid.shape)

    def _codes(self, clips: list[Row]) -> np.ndarray:
        """(B, t, h, w) uint16 of B clips, whose frames are dropped."""
        import torch

        frames = np.zeros((self._clips_per_batch, *clips[0]["shape"]), np.uint8)
        for index, clip in enumerate(clips):
            frames[index] = np.frombuffer(clip.pop("frames"), np.uint8).reshape(clip.pop("shape"))
        encoded_size = self._tokenizer.config.encoded_size(*frames.shape[2:4])
        batch = self._resize(torch.from_numpy(frames).to(self.device), encoded_size)
        codes = self._tokenizer.encode(batch).cpu().numpy().astype("<u2")  # (B, t, h, w)
        return codes[: len(clips)]
