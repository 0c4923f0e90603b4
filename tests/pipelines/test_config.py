import re
from dataclasses import replace

import pytest

from infra.errors import ConfigError
from pipelines.config import DecodeLimits, ExtractConfig, SamplingConfig


def test_buckets_are_sizes_of_frames_in_one_order() -> None:
    config = SamplingConfig(buckets=("160x96", "128x128", "96x160", "160x96"))
    assert config == SamplingConfig(buckets=("96x160", "160x96", "128x128"))
    assert set(config.frame_sizes) == {(96, 160), (128, 128), (160, 96)}
    assert SamplingConfig(size=64).frame_sizes == ((64, 64),)


@pytest.mark.parametrize(
    ("buckets", "size", "remedy"),
    [
        (("16:9",), 128, "give WIDTHxHEIGHT, such as 160x96"),
        (("0x128",), 128, "give WIDTHxHEIGHT, such as 160x96"),
        (("128x128", "170x95"), 128, "the nearest that does is 168x96"),
        (("160x96",), 64, "size=64 has no effect beside buckets"),
    ],
)
def test_buckets_that_cannot_be_are_refused(buckets: tuple[str, ...], size: int, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        SamplingConfig(buckets=buckets, size=size)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(fps=30, span_seconds=600, buckets=("960x544", "96x96")),
        SamplingConfig(size=256, span_seconds=86_400),
        SamplingConfig(fps=0.3, span_seconds=86_400, size=512),
    ],
)
def test_a_span_too_large_for_a_decoding_child_is_refused_with_what_fits(
    sampling: SamplingConfig,
) -> None:
    with pytest.raises(ConfigError, match=r"has no room for; give --sampling.span-seconds ") as refusal:
        ExtractConfig(sampling=sampling)
    found = re.search(r"span-seconds (\S+) or --limits.memory-mb (\d+)$", str(refusal.value))
    assert found
    span_seconds, memory_mb = float(found[1]), int(found[2])
    ExtractConfig(sampling=replace(sampling, span_seconds=span_seconds))
    ExtractConfig(sampling=sampling, limits=DecodeLimits(memory_mb=memory_mb))
    with pytest.raises(ConfigError, match="has no room"):
        ExtractConfig(sampling=replace(sampling, span_seconds=1.1 * span_seconds))
    with pytest.raises(ConfigError, match="has no room"):
        ExtractConfig(sampling=sampling, limits=DecodeLimits(memory_mb=memory_mb - 2))


def test_where_not_even_one_frame_fits_only_memory_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"has no room for; give --limits.memory-mb \d+$"):
        ExtractConfig(sampling=SamplingConfig(size=40_000))
