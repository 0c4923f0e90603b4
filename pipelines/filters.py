"""Keep a clip or reject it with a reason. Scores are kept either way, so that thresholds can tighten
later."""

from dataclasses import fields

import numpy as np

from pipelines.config import FilterConfig

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
"""Weights of red, green and blue in brightness (ITU-R BT.709, section 3.2)."""


def score(frames: np.ndarray) -> dict[str, float]:
    """Brightness and motion of a clip, each in [0, 1]. frames: (T, H, W, 3) uint8."""
    luma = frames.astype(np.float32) @ LUMA / 255  # (T, H, W)
    motion = float(np.abs(np.diff(luma, axis=0)).mean()) if len(luma) > 1 else 0.0
    return {"brightness": float(luma.mean()), "motion": motion}


def reject_reason(scores: dict[str, float], num_frames: int, config: FilterConfig) -> str | None:
    """`black` or `frozen`, or None for a clip that is kept. A single frame has no motion to be judged by."""
    if scores["brightness"] < config.min_brightness:
        return "black"
    if num_frames > 1 and scores["motion"] < config.min_motion:
        return "frozen"
    return None


def is_tighter(now: FilterConfig, before: FilterConfig) -> bool:
    """Whether `now` keeps no clip that `before` rejected: least values rose, greatest ones fell."""
    signs = {"min": 1, "max": -1}
    changed = ((f.name, getattr(now, f.name), getattr(before, f.name)) for f in fields(now))
    return all(a == b or (a - b) * signs.get(name.split("_")[0], 0) > 0 for name, a, b in changed)
