"""A video from a model: what is given stays, what is compared is honest, what is done is not done again."""

from pathlib import Path

import numpy as np
import pytest

from infra import storage
from infra.errors import BundleError, UsageError
from model.bundle import load_gpt, read_bundle, save_bundle
from pipelines.decoding.decode import read_frames
from pipelines.video_writer import write_video
from reelgpt.generate import Continuation, Frames, Generate, clip_shape, continue_clip, decibels_by_frame
from reelgpt.report_sections import show_continuation
from tests.reelgpt.conftest import FPS, SIZE, moving_square

pytestmark = pytest.mark.slow


def test_the_given_frames_are_the_true_ones_and_the_copy_repeats_the_last_of_them(gpt_bundle: str) -> None:
    truth = moving_square(6)
    videos = continue_clip(read_bundle(gpt_bundle), truth, 2, temperature=1.0, top_k=None, seed=0)
    assert all(video.shape == truth.shape and video.dtype == np.uint8 for video in videos)
    np.testing.assert_array_equal(videos.predicted[:2], truth[:2])
    np.testing.assert_array_equal(videos.copy_last[:2], truth[:2])
    np.testing.assert_array_equal(videos.copy_last[2:], np.repeat(truth[1:2], 4, axis=0))


def test_a_seed_means_one_video(gpt_bundle: str) -> None:
    bundle = read_bundle(gpt_bundle)
    first, again, other = (
        continue_clip(bundle, moving_square(6), 2, temperature=1.0, top_k=None, seed=seed).predicted
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_prediction_sees_nothing_of_the_truth_beyond_the_given_frames(gpt_bundle: str) -> None:
    bundle = read_bundle(gpt_bundle)
    truth, changed = moving_square(6), moving_square(6)
    changed[2:] = 255
    predictions = [
        continue_clip(bundle, frames, 2, temperature=1.0, top_k=None, seed=0).predicted
        for frames in (truth, changed)
    ]
    np.testing.assert_array_equal(*predictions)


def test_decibels_are_counted_from_the_first_predicted_frame_and_stay_finite_where_frames_are_equal() -> None:
    truth = moving_square(4)
    decibels = decibels_by_frame(Continuation(truth, truth, truth // 2, truth), 1)
    assert decibels["psnr_predicted"] == [99.0] * 3
    assert all(value < 20 for value in decibels["psnr_copy_last"])


def test_a_clip_is_as_long_as_the_context_and_as_large_as_the_tokenizer_was_made_for(gpt_bundle: str) -> None:
    assert clip_shape(read_bundle(gpt_bundle)) == (6, SIZE)


def test_generate_writes_videos_that_play_beside_the_truth_and_the_copy(gpt_bundle: str, video: str) -> None:
    outcome = Generate(model=gpt_bundle, input=video, out="made/next.mp4").run()
    summary = outcome.summary
    assert (summary["given_frames"], summary["predicted_frames"]) == (2, 4)
    for name in ("out", "truth", "copy_last"):
        frames = read_frames(summary[name], size=SIZE, fps=FPS, num_frames=6)
        assert np.abs(frames[0].astype(int) - moving_square(1)[0]).mean() < 8
    assert storage.read_bytes(summary["strip"]).startswith(b"\x89PNG")
    assert sorted(path.name for path in Path("made").iterdir()) == [
        "next.copy-last.mp4",
        "next.json",
        "next.mp4",
        "next.png",
        "next.truth.mp4",
    ]


def test_repeating_generate_does_nothing_and_another_seed_makes_another_video(
    gpt_bundle: str, video: str
) -> None:
    first = Generate(model=gpt_bundle, input=video, out="next.mp4").run().summary
    before = Path("next.mp4").stat()
    again = Generate(model=gpt_bundle, input=video, out="next.mp4").run().summary
    assert Path("next.mp4").stat() == before
    assert (first.pop("done_before"), again.pop("done_before")) == (False, True)
    assert first == again
    assert not Generate(model=gpt_bundle, input=video, out="next.mp4", seed=1).run().summary["done_before"]


def test_what_was_stopped_between_two_files_is_made_by_the_same_command(
    gpt_bundle: str, video: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = Generate(model=gpt_bundle, input=video, out="next.mp4")

    def write_the_first(out: str, frames: Frames, *, fps: float) -> None:
        if out != "next.mp4":
            raise KeyboardInterrupt
        write_video(out, frames, fps=fps)

    with monkeypatch.context() as stopped:
        stopped.setattr("pipelines.video_writer.write_video", write_the_first)
        with pytest.raises(KeyboardInterrupt):
            command.run()
    with pytest.raises(UsageError, match=r"next\.mp4 was not finished; repeat"):
        show_continuation("next.mp4")
    assert not command.run().summary["done_before"]
    assert show_continuation("next.mp4")["predicted_frames"] == 4
    Path("next.png").unlink()
    assert not command.run().summary["done_before"]
    assert command.run().summary["done_before"]


@pytest.mark.parametrize("name", ["next.mp4", "next.png", "next.json"])
def test_files_that_generate_did_not_make_stay_as_they_are(name: str, gpt_bundle: str, video: str) -> None:
    Path(name).write_text('{"title": "theirs"}')
    with pytest.raises(
        UsageError, match=f"{name} is something that generate did not make; give another --out"
    ):
        Generate(model=gpt_bundle, input=video, out="next.mp4").run()
    assert [(path.name, path.read_text()) for path in Path().glob("next*")] == [(name, '{"title": "theirs"}')]


@pytest.mark.slow
def test_a_video_is_sampled_at_the_rate_that_the_model_was_trained_on(
    gpt_bundle: str, video: str, tmp_path: Path
) -> None:
    gpt, vocabulary, _ = load_gpt(gpt_bundle)
    slow = save_bundle(
        str(tmp_path / "slow"), gpt, lineage={"shard_set": {"sampling": {"fps": 4.0}}}, card="a slow one",
        vocabulary=vocabulary, tasks=["continue"], tokenizer_bundle=storage.join(gpt_bundle, "tokenizer"),
    )  # fmt: skip

    def fps(model: str, **options: float) -> float:
        made = Generate(model=model, input=video, out="next.mp4", **options).run()  # type: ignore[arg-type]
        return float(made.summary["fps"])

    assert fps(slow.uri) == 4.0
    assert fps(slow.uri, fps=5.0) == 5.0
    assert fps(gpt_bundle) == 8.0


def test_generate_does_not_replace_what_it_did_not_make(gpt_bundle: str, video: str) -> None:
    Path("mine.mp4").write_bytes(b"holiday")
    with pytest.raises(UsageError, match="give another --out"):
        Generate(model=gpt_bundle, input=video, out="mine.mp4").run()
    assert Path("mine.mp4").read_bytes() == b"holiday"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "inpaint"}, "--task continue"),
        ({"out": "next.gif"}, "must end in .mp4"),
        ({"fps": 0.0}, "must be above 0"),
        ({"input": "gone.mp4"}, "no file at gone.mp4"),
        ({"input": "."}, "no file at"),
        ({"given_frames": 6}, "1 to 5"),
        ({"given_frames": 0}, "1 to 5"),
        ({"start_seconds": 1.5}, "give a longer video or an earlier start"),
    ],
)
def test_what_cannot_be_generated_is_refused_with_the_remedy(
    gpt_bundle: str, video: str, change: dict[str, object], message: str
) -> None:
    options: dict[str, object] = {"model": gpt_bundle, "input": video, "out": "next.mp4"}
    with pytest.raises(UsageError, match=message):
        Generate(**(options | change)).run()  # type: ignore[arg-type]
    assert not Path("next.mp4").exists()


def test_a_tokenizer_cannot_continue_a_video(tokenizer_bundle: str, video: str) -> None:
    with pytest.raises(UsageError, match="needs a GPT"):
        Generate(model=tokenizer_bundle, input=video, out="next.mp4").run()
    with pytest.raises(BundleError, match="there is no bundle at"):
        Generate(model="nowhere", input=video, out="next.mp4").run()
