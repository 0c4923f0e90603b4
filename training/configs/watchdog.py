"""When a step counts as hung. Imports nothing heavy."""

from dataclasses import dataclass

from infra.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchdogConfig:
    factor: float = 20.0
    """A step that takes this many times the median step is hung: the run ends, with every worker's stack."""
    floor_seconds: float = 60.0
    """No step counts as hung before this."""
    grace_seconds: float = 1800.0
    """The same for the first steps, and for what is done between steps: evaluating, saving, tracking."""

    def __post_init__(self) -> None:
        if self.factor <= 1.0:
            raise ConfigError(f"watchdog.factor={self.factor} must be above 1")
        if not 0.0 < self.floor_seconds <= self.grace_seconds:
            raise ConfigError(
                f"watchdog.floor_seconds={self.floor_seconds} must be above 0 and at most "
                f"watchdog.grace_seconds={self.grace_seconds}"
            )
