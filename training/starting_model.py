"""The model that a run was begun from, where its name means another by now. Imports no torch.

`models:/NAME@latest` is another version once somebody registers one, and the run itself may be who does: the
command repeated would start from its own end. So a run keeps what such a name meant when it began.
"""

from dataclasses import dataclass
from typing import Any

from infra import storage
from infra.model_version import is_ref, parse_ref
from infra.registry_listing import show
from training.run_directory import RunDirectory

STARTED_FROM = "started_from"
"""Under which config.json holds both."""


@dataclass(frozen=True, slots=True)
class Start:
    named: str
    """As the command names it."""
    meant: str
    """What that was when the run began."""

    @classmethod
    def of(cls, directory: RunDirectory, named: str | None) -> "Start | None":
        """Raises RegistryError where the run begins, and the name means nothing."""
        if named is None or not _may_move(named):
            return None if named is None else cls(named, named)
        begun = directory.record().get(STARTED_FROM) if storage.exists(directory.config) else None
        if isinstance(begun, dict) and begun.get("named") == named:
            return cls(named, str(begun.get("meant")))
        return cls(named, show(named).ref)

    def record(self) -> dict[str, Any]:
        return {"named": self.named, "meant": self.meant}


def _may_move(model: str) -> bool:
    return is_ref(model) and parse_ref(model)[1] is None
