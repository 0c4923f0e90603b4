"""What every worker of a run is told, whichever way it was launched. Travels as JSON."""

from dataclasses import dataclass

from training.config import RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    config: RunConfig
    data: tuple[str, ...]
    run_dir: str
    attempt: str
    """Of the command that launched: see `training.run_directory`."""
    tokenizer: str | None
    """Where the bundle is of the tokenizer that made the codes; None where there are none."""
    init_from: str | None
    """Where the bundle is whose weights the run starts from; None: it starts from chance."""
    stop_file: str | None
    """Once it exists, the run stops at the next step; None: signals reach the worker itself."""
    save_file: str | None = None
    """Once it exists, the state is saved between two steps, and it is deleted; None: nobody asks so."""
    pause_after: int | None = None
    """The run stops after this step as if a signal had come; None: only a signal stops it."""
