"""Those who turn the same videos into the same codes, each as a script of its field would.

    python -m benchmarks.tokenize_contenders NAME FOLDER BUNDLE OUT

Each leaves OUT/*.parquet with `source`, `number` (of the clip, or of the frame) and `codes`, and prints one
JSON object: `began` and `ended`, in seconds of the clock, of the work at full speed. Imports and the loading
of the tokenizer come before `began`, and where stages start at different times the last one counts.
"""

import glob
import json
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

FPS, CLIP_FRAMES, SIDE, WIDTH = 8, 8, 128, 228
CLIPS_PER_BATCH = 8
FRAMES_PER_BATCH = CLIPS_PER_BATCH * CLIP_FRAMES
LEFT = (WIDTH - SIDE) // 2


class Encoder:
    def __init__(self, bundle: str, threads: int = 1) -> None:
        import torch

        from model.bundle import load_tokenizer
        from model.tokenizer import resize

        torch.set_num_threads(threads)
        self._torch, self._resize = torch, resize
        self._tokenizer = load_tokenizer(bundle).eval()

    def __call__(self, frames: np.ndarray) -> list[bytes]:
        """Codes of (B, T, 128, 128, 3) uint8."""
        size = self._tokenizer.config.encoded_size(*frames.shape[2:4])
        batch = self._resize(self._torch.from_numpy(np.ascontiguousarray(frames)), size)
        return [grid.tobytes() for grid in self._tokenizer.encode(batch).numpy().astype("<u2")]

    def all(self, clips: np.ndarray) -> list[bytes]:
        batches = (clips[start : start + CLIPS_PER_BATCH] for start in range(0, len(clips), CLIPS_PER_BATCH))
        return [codes for batch in batches for codes in self(batch)]


def decode(path: str) -> np.ndarray:
    """Clips (N, 8, 128, 128, 3) of a video: every third frame, say, in the order of the file."""
    import decord

    reader = decord.VideoReader(path, width=WIDTH, height=SIDE, num_threads=1)
    wanted = range(0, len(reader), round(reader.get_avg_fps() / FPS))
    frames = reader.get_batch(list(wanted)).asnumpy()[:, :, LEFT : LEFT + SIDE]
    count = len(frames) // CLIP_FRAMES
    return np.ascontiguousarray(frames[: count * CLIP_FRAMES]).reshape(count, CLIP_FRAMES, SIDE, SIDE, 3)


def bare_loop(videos: list[str], bundle: str, out: str) -> dict[str, float]:
    """One core's share: decode, then tokenize, and nothing else. CPU seconds of either."""
    encoder, rows = Encoder(bundle), []
    spent = {"decoding": 0.0, "tokenizing": 0.0}
    began = time.time()
    for path in videos:
        started = time.process_time()
        clips = decode(path)
        decoded = time.process_time()
        rows += _rows(path, encoder.all(clips))
        spent["decoding"] += decoded - started
        spent["tokenizing"] += time.process_time() - decoded
    ended = time.time()
    _write(rows, out, str(os.getpid()))
    return {"began": began, "ended": ended} | spent


def data_loader(videos: list[str], bundle: str, out: str, *, judges: bool = False) -> dict[str, float]:
    """Two workers decode, and where it `judges`, score and hash each clip as ours does; this process
    tokenizes."""
    from torch.utils.data import DataLoader, Dataset

    class Videos(Dataset[tuple[str, Any, Any]]):
        def __len__(self) -> int:
            return len(videos)

        def __getitem__(self, index: int) -> tuple[str, Any, Any]:
            clips = decode(videos[index])
            return videos[index], clips, [judged(clip) if judges else {} for clip in clips]

    encoder, rows = Encoder(bundle), []
    cores = len(os.sched_getaffinity(0))
    loader = DataLoader(Videos(), batch_size=None, num_workers=cores, prefetch_factor=2)
    began = time.time()
    for path, clips, facts in loader:
        codes = _rows(path, encoder.all(np.asarray(clips)))
        rows += [row | fact for row, fact in zip(codes, facts, strict=True)]
    _write(rows, out, "codes")
    return {"began": began, "ended": time.time()}


def judged(clip: np.ndarray) -> dict[str, Any]:
    """What a row of ours says of a clip besides its codes."""
    from pipelines.selection import scores

    hashes = {"content": scores.content_hash(clip), "perceptual": scores.perceptual_hash(clip)}
    return scores.score(clip) | hashes


def ray_data(videos: list[str], bundle: str, out: str) -> dict[str, float]:
    """`read_videos`, `map_batches`, `write_parquet`, with its own sampling and resizing."""
    import ray

    class Tokenize:
        def __init__(self) -> None:
            self._encoder = Encoder(bundle)
            _note(out, "began")

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            frames = batch["frame"][:, None, :, LEFT : LEFT + SIDE]
            names = [os.path.basename(path) for path in batch["path"]]
            return {"source": names, "number": batch["frame_index"], "codes": self._encoder(frames)}

    ray.init(log_to_driver=False)
    frames = ray.data.read_videos(videos, include_paths=True, fps=FPS, resize=(SIDE, WIDTH))
    codes = frames.map_batches(
        Tokenize, batch_size=FRAMES_PER_BATCH, num_cpus=1, compute=ray.data.ActorPoolStrategy(size=1)
    )
    codes.write_parquet(out)
    return {"began": _noted(out, "began"), "ended": time.time()}


def daft_frames(videos: list[str], bundle: str, out: str) -> dict[str, float]:
    """`read_video_frames`, a class UDF, `write_parquet`.

    Its readers block the threads that serve them: with as many videos at a time as there are cores it stands
    still for ever. One less is no loss, since its decoder has threads of its own.
    """
    import daft

    daft.set_execution_config(scantask_max_parallel=max(1, len(os.sched_getaffinity(0)) - 1))

    @daft.cls(max_concurrency=1)
    class Tokenize:
        def __init__(self) -> None:
            self._encoder = Encoder(bundle)
            _note(out, "began")

        @daft.method.batch(return_dtype=daft.DataType.binary(), batch_size=FRAMES_PER_BATCH)
        def codes(self, images: daft.Series) -> list[bytes]:
            frames = np.stack(images.to_pylist())
            return self._encoder(frames[:, None, :, LEFT : LEFT + SIDE])

    frames = daft.read_video_frames(
        videos, image_height=SIDE, image_width=WIDTH, sample_interval_seconds=1 / FPS
    )
    codes = frames.with_column("codes", Tokenize().codes(frames["data"]))
    codes.select(
        daft.col("path").alias("source"), daft.col("frame_index").alias("number"), daft.col("codes")
    ).write_parquet(out)
    return {"began": _noted(out, "began"), "ended": time.time()}


CONTENDERS = {
    "bare loop": bare_loop,
    "torch DataLoader with decord": data_loader,
    "the same, with scores and hashes": partial(data_loader, judges=True),
    "naive Ray Data": ray_data,
    "Daft": daft_frames,
}


def _rows(path: str, codes: list[bytes]) -> Iterator[dict[str, Any]]:
    name = os.path.basename(path)
    return ({"source": name, "number": number, "codes": one} for number, one in enumerate(codes))


def _write(rows: list[dict[str, Any]], out: str, name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    os.makedirs(out, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), os.path.join(out, f"{name}.parquet"))


def _note(out: str, what: str) -> None:
    with open(f"{out}.{what}", "w") as file:
        file.write(str(time.time()))


def _noted(out: str, what: str) -> float:
    with open(f"{out}.{what}") as file:
        return float(file.read())


if __name__ == "__main__":
    name, folder, bundle, out, share = sys.argv[1:]
    part, parts = (int(number) for number in share.split("/"))
    videos = sorted(glob.glob(f"{folder}/*"))[part::parts]
    print(json.dumps(CONTENDERS[name](videos, bundle, out)))  # noqa: T201
