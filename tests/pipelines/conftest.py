"""Real videos, and what is made of them by the stages themselves, without Ray."""

from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.building import claim
from pipelines.building.build import take
from pipelines.building.completion import Watch, complete
from pipelines.building.inventory import Found, listed
from pipelines.building.job import TokenizerRef, VideoJob
from pipelines.building.stages import DecodeSpans, decoder_of_this_process, extract_spans, inspect_files
from pipelines.building.tokenizing import DecodeAndTokenize
from pipelines.building.work import video_work
from pipelines.config import DecodeLimits, ExtractConfig, PackConfig, Resources, SamplingConfig, SplitConfig
from pipelines.shards import ShardSet
from pipelines.spans import SOURCE_SCHEMA, list_videos
from reelgpt.tokenize import tokenizer_of
from tests.media import make_video

CONFIG = ExtractConfig(
    sampling=SamplingConfig(size=32, clip_frames=4, stride_frames=4, span_seconds=1), limits=DecodeLimits()
)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch

    from model.bundle import save_bundle
    from model.config import TokenizerConfig
    from model.tokenizer import Tokenizer

    torch.manual_seed(0)
    place = str(tmp_path_factory.mktemp("bundles") / "tokenizer")
    save_bundle(
        place,
        Tokenizer(TokenizerConfig(base_channels=8, frame_size=32, num_heads=1)),
        lineage={},
        card="random",
    )
    return place


def build_without_ray(videos: Path, out: Path, tokenizer: TokenizerRef | None) -> ShardSet:
    """What `extract` or `tokenize` makes of the videos, by the same stages in this process."""
    job = VideoJob(
        videos=(str(videos),),
        out=str(out),
        config=CONFIG,
        split=SplitConfig(),
        pack=PackConfig(clips_per_row_group=4),
        resources=Resources(),
        tokenizer=tokenizer,
    )
    given = inspect_files(listed(list_videos(job.videos)), CONFIG.limits).select(SOURCE_SCHEMA.names)
    settings = claim.video_settings(job)

    def run(missing: pa.Table, place: str, _: Watch) -> None:
        if tokenizer is None:
            list(extract_spans(missing, CONFIG, place))
        else:
            read = DecodeSpans(CONFIG)
            clips_per_batch = claim.CLIPS_PER_BATCH
            DecodeAndTokenize(read=read, tokenizer=tokenizer.uri, clips_per_batch=clips_per_batch, out=place)(
                missing
            )

    with ExitStack() as stack:
        lease = take(stack, job.out, settings, redo=False)
        complete(video_work(job, job.out, settings, Found(given, {})), run, lease, lambda *_: None)
    decoder_of_this_process(CONFIG.limits).close()
    return ShardSet.open(job.out)


@pytest.fixture(scope="session")
def made(bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two videos, the frames and the codes of them."""
    folder = tmp_path_factory.mktemp("made")
    for number, suffix in enumerate(("mp4", "webm")):
        source = f"testsrc2=size=160x120:rate=25,hue=h={90 * number}"
        make_video(folder / "videos" / f"{number}.{suffix}", seconds=2.6, source=source)
    build_without_ray(folder / "videos", folder / "frames", None)
    build_without_ray(folder / "videos", folder / "tokens", tokenizer_of(bundle))
    return folder
