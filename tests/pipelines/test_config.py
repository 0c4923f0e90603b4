import pytest

from infra.errors import ConfigError
from pipelines.config import SamplingConfig


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
