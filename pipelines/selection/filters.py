"""Keep a clip or reject it with a reason, by its scores alone.

Scores are stored whatever the verdict, so that a set is judged anew, without decoding, when it is packed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from pipelines.config import FilterConfig

TOO_SHORT = "too_short"
SCORED = "scored"

REJECT_REASONS = {
    "black": "darker than min_brightness",
    "flat": "less contrast than min_contrast",
    "blurred": "less sharpness than min_sharpness",
    "static": "less motion than min_motion",
    "frozen": "a larger share of frozen frames than max_frozen",
    "repeated": "a larger share of repeated frames than max_repeated",
    "text_card": "a larger share of ground and text than max_text",
    "small": "from a source with fewer pixels along a side than min_width or min_height",
    "short": "from a source shorter than min_duration_seconds",
    TOO_SHORT: "a span or a shot with fewer frames than a clip has",
    "duplicate": "the same frames as an earlier clip",
    "near_duplicate": "frames that look like those of an earlier clip",
    SCORED: "nothing: these thresholds would keep it, but scores alone were asked for",
}
"""Every reason for which a clip is left out, and what it means. The last four are no matter of scores."""


@dataclass(frozen=True, slots=True)
class Rule:
    reason: str
    score: str
    setting: str
    """Name of the threshold in FilterConfig: a `min_` rejects what is below it, a `max_` what is above."""
    judges_stills: bool = True
    """Whether a single frame can be judged by it: it has no motion and no duration."""

    def rejects(self, score: float, threshold: float) -> bool:
        return score < threshold if self.setting.startswith("min_") else score > threshold


RULES = (
    Rule("black", "brightness", "min_brightness"),
    Rule("flat", "contrast", "min_contrast"),
    Rule("blurred", "sharpness", "min_sharpness"),
    Rule("static", "motion", "min_motion", judges_stills=False),
    Rule("frozen", "frozen", "max_frozen", judges_stills=False),
    Rule("repeated", "repeated", "max_repeated", judges_stills=False),
    Rule("text_card", "text", "max_text"),
    Rule("small", "width", "min_width"),
    Rule("small", "height", "min_height"),
    Rule("short", "seconds", "min_duration_seconds", judges_stills=False),
)
"""In the order in which a clip is judged: the first that rejects it gives the reason."""


def reject_reason(scores: Mapping[str, float], num_frames: int, config: FilterConfig) -> str | None:
    """One of REJECT_REASONS, or None for a clip that is kept. What was never scored rejects nothing."""
    for rule in RULES:
        if num_frames == 1 and not rule.judges_stills:
            continue
        score = scores.get(rule.score)
        if score is not None and rule.rejects(score, getattr(config, rule.setting)):
            return rule.reason
    return None


def is_tighter(now: FilterConfig, before: FilterConfig) -> bool:
    """Whether `now` keeps no clip that `before` rejected: least values rose, greatest ones fell."""
    signs = {"min": 1, "max": -1}
    changed = ((f.name, getattr(now, f.name), getattr(before, f.name)) for f in fields(now))
    return all(a == b or (a - b) * signs.get(name.split("_")[0], 0) > 0 for name, a, b in changed)
