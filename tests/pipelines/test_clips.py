import numpy as np

from pipelines.clips import cut_clips
from pipelines.config import FilterConfig, SamplingConfig
from pipelines.decode import Decoded
from pipelines.filters import reject_reason, score
from pipelines.spans import Span

SPAN = Span(
    span_id="s/00002", source_id="s", source="s.mp4", uri="/s.mp4", start_seconds=120.0, end_seconds=None
)


def decoded(num_frames: int, indices: tuple[int, ...] | None = None, num_source_frames: int = 100) -> Decoded:
    frames = np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    return Decoded(
        frames=frames, indices=indices or tuple(range(num_frames)), num_source_frames=num_source_frames
    )


def test_clips_follow_each_other_and_a_shorter_tail_is_dropped() -> None:
    clips = list(cut_clips(decoded(11), SPAN, SamplingConfig(fps=4, clip_frames=4, stride_frames=4)))
    assert [clip.clip_id for clip in clips] == ["s/00002/0000", "s/00002/0001"]
    assert [clip.start_seconds for clip in clips] == [120.0, 121.0]
    assert [clip.frames[:, 0, 0, 0].tolist() for clip in clips] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_shorter_stride_overlaps_clips() -> None:
    clips = cut_clips(decoded(6), SPAN, SamplingConfig(fps=4, clip_frames=4, stride_frames=1))
    assert [clip.frames[0, 0, 0, 0] for clip in clips] == [0, 1, 2]


def test_repeated_frames_are_counted() -> None:
    (clip,) = cut_clips(decoded(4, (0, 0, 1, 1)), SPAN, SamplingConfig(clip_frames=4))
    assert clip.repeated_frames == 2


def test_a_still_image_is_a_clip_of_one_frame_and_a_short_video_is_none() -> None:
    start = Span(span_id="s/00000", source_id="s", source="s", uri="/s", start_seconds=0.0, end_seconds=None)
    (still,) = cut_clips(decoded(1, num_source_frames=1), start, SamplingConfig(clip_frames=4))
    assert still.frames.shape == (1, 4, 4, 3)
    assert list(cut_clips(decoded(1, num_source_frames=2), start, SamplingConfig(clip_frames=4))) == []


def test_black_and_frozen_clips_are_rejected_by_their_scores() -> None:
    rng = np.random.default_rng(0)
    black = np.zeros((4, 8, 8, 3), np.uint8)
    moving = rng.integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
    frozen = np.repeat(moving[:1], 4, axis=0)
    config = FilterConfig(min_motion=0.01)
    reasons = [reject_reason(score(frames), len(frames), config) for frames in (black, frozen, moving)]
    assert reasons == ["black", "frozen", None]
    assert reject_reason(score(frozen[:1]), 1, config) is None
