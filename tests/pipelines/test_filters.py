"""Verdicts follow from scores alone, and tightening a threshold never adds a clip."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from infra.errors import ConfigError
from pipelines.config import FilterConfig
from pipelines.selection.filters import REJECT_REASONS, RULES, reject_reason

GOOD = {
    "brightness": 0.5, "contrast": 0.2, "sharpness": 500.0, "motion": 0.05, "frozen": 0.0, "text": 0.1,
    "repeated": 0.0, "width": 640.0, "height": 360.0, "seconds": 12.0,
}  # fmt: skip


def test_ordinary_clips_pass_the_defaults_and_black_ones_do_not() -> None:
    assert reject_reason(GOOD, 8, FilterConfig()) is None
    assert reject_reason(GOOD | {"motion": 0.0, "frozen": 1.0, "text": 1.0}, 8, FilterConfig()) is None
    assert reject_reason(GOOD | {"brightness": 0.01}, 8, FilterConfig()) == "black"


@pytest.mark.parametrize(
    ("setting", "threshold", "bad", "reason"),
    [
        ("min_contrast", 0.05, {"contrast": 0.01}, "flat"),
        ("min_sharpness", 20.0, {"sharpness": 8.0}, "blurred"),
        ("min_motion", 0.01, {"motion": 0.001}, "static"),
        ("max_frozen", 0.5, {"frozen": 0.75}, "frozen"),
        ("max_repeated", 0.5, {"repeated": 0.75}, "repeated"),
        ("max_text", 0.9, {"text": 0.95}, "text_card"),
        ("min_width", 320, {"width": 200.0}, "small"),
        ("min_height", 240, {"height": 200.0}, "small"),
        ("min_duration_seconds", 2.0, {"seconds": 1.5}, "short"),
    ],
)
def test_each_threshold_rejects_with_its_reason(
    setting: str, threshold: float, bad: dict[str, float], reason: str
) -> None:
    config = FilterConfig(**{setting: threshold})  # type: ignore[arg-type]
    assert reject_reason(GOOD, 8, config) is None
    assert reject_reason(GOOD | bad, 8, config) == reason
    assert reject_reason(GOOD | bad, 8, FilterConfig()) is None
    assert reason in REJECT_REASONS


def test_a_still_image_is_not_judged_by_motion_or_duration() -> None:
    still = GOOD | {"motion": 0.0, "frozen": 0.0, "seconds": 0.04}
    config = FilterConfig(min_motion=0.1, max_frozen=0.0, min_duration_seconds=5)
    assert reject_reason(still, 8, config) == "static"
    assert reject_reason(still, 1, config) is None


def test_every_threshold_has_a_rule_and_every_rule_a_meaning() -> None:
    assert {rule.setting for rule in RULES} == {field.name for field in fields(FilterConfig)}
    assert {rule.reason for rule in RULES} < REJECT_REASONS.keys()


def test_tightening_a_threshold_never_adds_a_clip() -> None:
    rng = np.random.default_rng(0)
    clips: list[dict[str, float]] = [
        {name: 2 * value * rng.random() for name, value in GOOD.items()} for _ in range(200)
    ]
    for rule in RULES:
        kept = None
        sign = 1 if rule.setting.startswith("min_") else -1
        for threshold in sorted(rng.random(5) * 0.9, key=lambda t: sign * t):
            config = replace(FilterConfig(), **{rule.setting: threshold})
            now = {number for number, scores in enumerate(clips) if reject_reason(scores, 8, config) is None}
            assert kept is None or now <= kept
            kept = now


@pytest.mark.parametrize(
    "settings",
    [{"min_motion": 1.0}, {"max_text": 1.5}, {"min_width": -1}, {"min_sharpness": float("nan")}],
)
def test_thresholds_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        FilterConfig(**settings)
