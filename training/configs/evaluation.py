"""When a run is measured while it trains, and on what. Imports nothing heavy."""

from dataclasses import dataclass

from infra.configs import check_at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    every_steps: int
    max_clips: int = 64
    """Validation clips looked at while training, taken evenly from all of them."""
    num_samples: int = 2
    """Validation clips pictured at each evaluation; 0 draws none."""

    keep_bundles: int = 1
    """At each evaluation the weights become a model in `bundles/`; the last ones are kept, and the best by
    held-out loss; 0 makes none."""

    def __post_init__(self) -> None:
        check_at_least(1, every_steps=self.every_steps, max_clips=self.max_clips)
        check_at_least(0, num_samples=self.num_samples, keep_bundles=self.keep_bundles)
