from dataclasses import dataclass

import pytest

from infra import configs, hashing
from infra.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    inner: Inner
    name: str | None = None


def test_a_config_survives_the_way_to_json_and_back() -> None:
    config = Outer(inner=Inner(sizes=(3,)), name="x")
    assert configs.from_dict(Outer, configs.to_dict(config)) == config


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="no setting 'colour'"):
        configs.from_dict(Outer, {"inner": {}, "colour": 1})


def test_a_wrong_value_is_named_by_its_path() -> None:
    with pytest.raises(ConfigError, match=r"inner.sizes.0"):
        configs.from_dict(Outer, {"inner": {"sizes": ["many"]}})


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    rate: float = 1.0
    shares: tuple[float, ...] = ()
    inner: "Rates | None" = None


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (Rates(rate=float("nan")), "rate=nan must be a finite number"),
        (Rates(shares=(0.5, float("inf"))), "shares=inf must"),
        (Rates(inner=Rates(rate=float("-inf"))), r"inner\.rate=-inf must"),
    ],
)
def test_a_number_that_is_none_is_named_however_deep_it_lies(config: Rates, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        configs.check_finite(config)


def test_equal_values_have_one_digest_whatever_their_order() -> None:
    assert hashing.digest({"a": 1, "b": [2]}) == hashing.digest({"b": [2], "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        hashing.digest(float("nan"))
