"""Clips decoded and tokenized again from real videos: as they are there, unless something is another."""

import shutil
from pathlib import Path

import pytest

from infra.errors import ConfigError, UsageError
from pipelines.building.job import TokenizerRef
from pipelines.checking.deep import compare, sample
from pipelines.shards import ShardSet
from reelgpt.explain import Explain
from reelgpt.tokenize import tokenizer_of
from reelgpt.verify import Verify
from tests.media import make_video
from tests.pipelines.conftest import build_without_ray
from tests.pipelines.test_verify import change_shard

pytestmark = pytest.mark.slow


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
    for number, name in enumerate(("gone", "other", "stays")):
        source = f"testsrc2=size=160x120:rate=25,hue=h={90 * number}"  # no copies of each other
        make_video(tmp_path / "videos" / f"{name}.mp4", seconds=1, source=source)
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


def test_a_clip_of_codes_is_explained_down_to_its_pictures_and_told_when_they_are_others(
    tokens: ShardSet, made: Path, tmp_path: Path
) -> None:
    row = tokens.read(tokens.shards("train")[0]).to_pylist()[0]
    explain = Explain(shards=tokens.uri, clip=row["clip_id"], picture=str(tmp_path / "clip.png"))
    facts = explain.run().summary
    assert facts["uri"] == str(made / "videos" / row["source"])
    assert (facts["content_hash"], facts["perceptual_hash"]) == (row["content_hash"], row["perceptual_hash"])
    assert facts["scores"].keys() >= {"brightness", "motion", "sharpness"}
    assert facts["pictures_unchanged"]
    assert (tmp_path / "clip.png").read_bytes().startswith(b"\x89PNG")
    change_shard(tokens, lambda rows: rows[0].update(content_hash="0" * 64))
    assert not explain.run().summary["pictures_unchanged"]


def test_a_clip_whose_source_is_away_is_explained_but_not_shown(tmp_path: Path, bundle: str) -> None:
    make_video(tmp_path / "videos" / "a.mp4", seconds=1)
    codes = build_without_ray(tmp_path / "videos", tmp_path / "codes", tokenizer_of(bundle))
    clip_id = codes.read(codes.manifest.shards[0], ["clip_id"]).column("clip_id")[0].as_py()
    (tmp_path / "videos" / "a.mp4").unlink()
    assert Explain(shards=codes.uri, clip=clip_id).run().summary["source"] == "a.mp4"
    with pytest.raises(UsageError, match=r"a.mp4 is missing; .* cannot be shown"):
        Explain(shards=codes.uri, clip=clip_id, picture=str(tmp_path / "clip.png")).run()
    assert not (tmp_path / "clip.png").exists()
