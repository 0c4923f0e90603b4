import numpy as np

from pipelines.clips import Clip, cut_clips, cut_shots
from pipelines.config import SamplingConfig
from pipelines.decoding.decode import Decoded
from pipelines.spans import Span

SPAN = Span(
    span_id="s/00002", source_id="s", source="s.mp4", uri="/s.mp4", start_seconds=120.0, end_seconds=None
)


def decoded(num_frames: int, indices: tuple[int, ...] | None = None, num_source_frames: int = 100) -> Decoded:
    frames = np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    return Decoded(
        frames=frames, indices=indices or tuple(range(num_frames)), num_source_frames=num_source_frames
    )


def clips_of(video: Decoded, config: SamplingConfig, span: Span = SPAN) -> list[Clip]:
    return list(cut_clips(video, span, cut_shots(video, config), config))


def test_clips_follow_each_other_and_a_shorter_tail_is_dropped() -> None:
    clips = clips_of(decoded(11), SamplingConfig(fps=4, clip_frames=4, stride_frames=4))
    assert [clip.clip_id for clip in clips] == ["s/00002/0000", "s/00002/0001"]
    assert [clip.start_seconds for clip in clips] == [120.0, 121.0]
    assert [clip.frames[:, 0, 0, 0].tolist() for clip in clips] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_shorter_stride_overlaps_clips() -> None:
    clips = clips_of(decoded(6), SamplingConfig(fps=4, clip_frames=4, stride_frames=1))
    assert [clip.frames[0, 0, 0, 0] for clip in clips] == [0, 1, 2]


def test_repeated_frames_are_counted() -> None:
    (clip,) = clips_of(decoded(4, (0, 0, 1, 1)), SamplingConfig(clip_frames=4))
    assert clip.repeated_frames == 2


def test_a_still_image_is_a_clip_of_one_frame_and_a_short_video_is_none() -> None:
    start = Span(span_id="s/00000", source_id="s", source="s", uri="/s", start_seconds=0.0, end_seconds=None)
    (still,) = clips_of(decoded(1, num_source_frames=1), SamplingConfig(clip_frames=4), start)
    assert still.frames.shape == (1, 4, 4, 3)
    assert clips_of(decoded(1, num_source_frames=2), SamplingConfig(clip_frames=4), start) == []


def test_no_clip_goes_across_a_cut_and_a_shot_shorter_than_a_clip_gives_none() -> None:
    rng = np.random.default_rng(0)
    scenes = [
        np.full((8, 8, 3), colour, np.uint8) for colour in ((200, 30, 30), (30, 30, 200), (30, 200, 30))
    ]
    lengths = (9, 3, 7)
    frames = np.concatenate(
        [scene + rng.integers(0, 5, (n, 8, 8, 3), np.uint8) for scene, n in zip(scenes, lengths, strict=True)]
    )
    video = Decoded(frames=frames, indices=tuple(range(19)), num_source_frames=100)
    config = SamplingConfig(fps=4, clip_frames=4, stride_frames=4)
    assert [(shot.start, shot.stop) for shot in cut_shots(video, config)] == [(0, 9), (9, 12), (12, 19)]
    clips = clips_of(video, config)
    assert [(clip.shot, (clip.start_seconds - 120) * 4) for clip in clips] == [(0, 0), (0, 4), (2, 12)]
    assert [clip.clip_id[-4:] for clip in clips] == ["0000", "0001", "0002"]
    everything = clips_of(video, SamplingConfig(fps=4, clip_frames=4, stride_frames=4, shots=False))
    assert [(clip.start_seconds - 120) * 4 for clip in everything] == [0, 4, 8, 12]
