"""When a run is saved, where to, and what of it is kept. Imports nothing heavy."""

from dataclasses import dataclass

from infra.configs import check_at_least
from infra.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointsConfig:
    every_steps: int
    keep_last: int = 2
    """Older checkpoints are deleted once a newer one is committed."""
    keep_every_steps: int | None = None
    """Keep those of steps that this divides for good, too; or the first after one that is left out."""
    background: bool = True
    """On by default: written from a copy in memory while training goes on; off: without one, steps wait."""

    copy_to: str | None = None
    """A second place for checkpoints, such as s3://bucket/run, of this run alone: another machine goes on
    from it. They are copied while training goes on."""

    def __post_init__(self) -> None:
        check_at_least(1, every_steps=self.every_steps, keep_last=self.keep_last)
        check_at_least(1, keep_every_steps=1 if self.keep_every_steps is None else self.keep_every_steps)
        if self.copy_to is not None and "://" not in self.copy_to and not self.copy_to.startswith("/"):
            raise ConfigError(
                f"checkpoints.copy_to={self.copy_to} means another place to every worker; "
                f"give a URI or a path that begins with /"
            )
        if self.keep_every_steps is not None and self.keep_every_steps % self.every_steps:
            raise ConfigError(
                f"checkpoints.keep_every_steps={self.keep_every_steps} is no multiple of "
                f"checkpoints.every_steps={self.every_steps}, when there is one to keep; give a multiple"
            )
