"""Clips decoded and tokenized again from real videos: as they are there, unless something is another."""

import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from infra.errors import ConfigError, UsageError
from pipelines import claim
from pipelines.build import take
from pipelines.completion import Watch, complete
from pipelines.config import DecodeLimits, ExtractConfig, PackConfig, Resources, SamplingConfig, SplitConfig
from pipelines.deep import compare, sample
from pipelines.job import TokenizerRef, VideoJob
from pipelines.shards import ShardSet
from pipelines.spans import SOURCE_SCHEMA, list_videos
from pipelines.stages import decode_spans, decoder_of_this_process, extract_spans, inspect_files
from pipelines.tokenizing import DecodeAndTokenize
from pipelines.work import video_work
from reelgpt.tokenize import tokenizer_of
from reelgpt.verify import Verify
from tests.media import make_video
from tests.pipelines.test_verify import change_shard

CONFIG = ExtractConfig(
    sampling=SamplingConfig(size=32, clip_frames=4, stride_frames=4, span_seconds=1), limits=DecodeLimits()
)


@pytest.fixture(scope="module")
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
    files = list_videos(job.videos)
    listed = pa.table(
        {name: [getattr(f, name) for f in files] for name in ("uri", "name", "size", "modified")}
    )
    given, settings = inspect_files(listed, CONFIG.limits), claim.video_settings(job)

    def run(missing: pa.Table, place: str, _: Watch) -> None:
        if tokenizer is None:
            list(extract_spans(missing, CONFIG, place))
        else:
            read = partial(decode_spans, config=CONFIG)
            clips_per_batch = claim.CLIPS_PER_BATCH
            DecodeAndTokenize(read=read, tokenizer=tokenizer.uri, clips_per_batch=clips_per_batch, out=place)(
                missing
            )

    with ExitStack() as stack:
        lease = take(stack, job.out, settings, redo=False)
        complete(video_work(job, job.out, settings, given.cast(SOURCE_SCHEMA)), run, lease, lambda *_: None)
    decoder_of_this_process(CONFIG.limits).close()
    return ShardSet.open(job.out)


@pytest.fixture(scope="module")
def made(bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two videos, the frames and the codes of them."""
    folder = tmp_path_factory.mktemp("made")
    for number, suffix in enumerate(("mp4", "webm")):
        source = f"testsrc2=size=160x120:rate=25,hue=h={90 * number}"
        make_video(folder / "videos" / f"{number}.{suffix}", seconds=2.6, source=source)
    build_without_ray(folder / "videos", folder / "frames", None)
    build_without_ray(folder / "videos", folder / "tokens", tokenizer_of(bundle))
    return folder


@pytest.fixture
def tokens(made: Path, tmp_path: Path) -> ShardSet:
    """A set to change, whose sources stay where they are."""
    shutil.copytree(made / "tokens", tmp_path / "tokens")
    return ShardSet.open(str(tmp_path / "tokens"))


@pytest.mark.parametrize("kind", ["frames", "tokens"])
def test_clips_come_out_as_they_are_there(made: Path, kind: str) -> None:
    outcome = Verify(target=str(made / kind), deep=True, sample=5).run()
    assert outcome.exit_code == 0, outcome.summary
    counts = {name: outcome.summary[name] for name in ("whole", "sampled", "compared", "equal", "problems")}
    assert counts == {"whole": True, "sampled": 5, "compared": 5, "equal": 5, "problems": []}


def test_a_sample_is_the_same_for_a_seed_and_another_for_another(made: Path) -> None:
    frames = ShardSet.open(str(made / "frames"))
    ids = [[row["clip_id"] for row in sample(frames, 5, seed)] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert len(set(ids[0])) == 5
    everything = sample(frames, 10_000, 0)
    assert len(everything) == sum(entry.rows for entry in frames.manifest.shards)


def test_codes_that_are_not_of_their_clip_are_named_though_the_set_is_sealed_with_them(
    tokens: ShardSet, bundle: str
) -> None:
    change_shard(tokens, lambda rows: rows[0].update(codes=bytes(len(rows[0]["codes"]))))
    changed = tokens.read(tokens.shards("train")[0], ["clip_id"]).column("clip_id")[0].as_py()
    found = compare(ShardSet.open(tokens.uri), num_clips=999, seed=0, tokenizer=tokenizer_of(bundle))
    assert (found.compared, found.equal) == (found.sampled, found.sampled - 1)
    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"{changed} (")
    assert "of the same pictures with" in found.problems[0]


def test_pictures_that_were_others_are_told_from_codes_that_are(tokens: ShardSet, bundle: str) -> None:
    change_shard(tokens, lambda rows: rows[0].update(content_hash="0" * 64))
    found = compare(ShardSet.open(tokens.uri), num_clips=999, seed=0, tokenizer=tokenizer_of(bundle))
    assert ["of other pictures than those that were tokenized" in one for one in found.problems] == [True]


def test_a_missing_and_a_changed_source_are_told_as_such(tmp_path: Path) -> None:
    for name in ("gone", "other", "stays"):
        make_video(tmp_path / "videos" / f"{name}.mp4", seconds=1)
    frames = build_without_ray(tmp_path / "videos", tmp_path / "frames", None)
    (tmp_path / "videos" / "gone.mp4").unlink()
    make_video(tmp_path / "videos" / "other.mp4", seconds=1, source="testsrc=size=160x120:rate=25")
    outcome = Verify(target=frames.uri, deep=True, sample=999).run()
    gone, other = sorted(outcome.summary["problems"], reverse=True)
    assert "gone.mp4 is missing: 2 clips could not be compared" in other + gone
    assert "other.mp4 has changed since its clips were made: 2 clips could not be compared" in other + gone
    assert (outcome.exit_code, outcome.summary["whole"]) == (1, True)
    assert (outcome.summary["sampled"], outcome.summary["compared"], outcome.summary["equal"]) == (6, 2, 2)


def test_another_tokenizer_or_a_setting_without_effect_is_refused(tokens: ShardSet) -> None:
    other = TokenizerRef(uri="/x", fingerprint="0" * 64, num_codes=9, frame_size=32)
    with pytest.raises(UsageError, match=r"the tokenizer 000000000000 was given .* its codes were made by"):
        compare(tokens, num_clips=1, seed=0, tokenizer=other)
    with pytest.raises(ConfigError, match="sample has no effect without --deep"):
        Verify(target=tokens.uri, sample=3).run()
    with pytest.raises(UsageError, match="is a bundle, which holds no clips"):
        Verify(target=tokens.manifest.tokenizer or "", deep=True).run()
