"""A second place for a run's checkpoints, on any storage: another machine can go on from it.

    COPY/checkpoints/step-.../...            as in the run directory, the manifest last
    COPY/metrics.jsonl, COPY/tracking.json   as they were when the newest checkpoint came there

What is uploaded is hashed before, and hashed again when it is fetched. What storage refuses is owed, and
uploaded with the next checkpoint. One place is for one run: two would prune each other's.
"""

import os
import sys

from infra import storage
from infra.errors import CheckpointError, ReelgptError
from training.configs.checkpoints import CheckpointsConfig
from training.saving import checkpoints, manifest
from training.saving.manifest import MANIFEST, Checkpoint, Damage
from training.saving.verified_files import problem_of

BESIDE = ("metrics.jsonl", "tracking.json")
"""Files of the run directory that travel along."""


class Copies:
    def __init__(self, run_dir: str, uri: str) -> None:
        self._run_dir = run_dir
        self._local = storage.join(run_dir, "checkpoints")
        self.uri = uri
        self.root = storage.join(uri, "checkpoints")

    def committed(self) -> tuple[list[Checkpoint], list[Damage]]:
        """As `manifest.committed`, of the copies. Raises StorageError where the place cannot be reached."""
        return manifest.committed(self.root)

    def catch_up(self, config: CheckpointsConfig) -> None:
        """Brings there what is missing and forgets what is old. Whatever the place answers, it is not the
        run's end: it is said, and what is owed is brought at the next time."""
        try:
            for damage in self.upload_missing():
                sys.stderr.write(f"{self._local}: {damage}; it is not copied, the others are\n")
            self.prune(keep_last=config.keep_last, keep_every_steps=config.keep_every_steps)
        except ReelgptError as error:
            sys.stderr.write(
                f"{error}; training goes on, and the checkpoint is copied with the next one, "
                f"or when the command is repeated\n"
            )

    def upload_missing(self) -> list[Damage]:
        """Brings the checkpoints there that are here alone, the oldest first. Raises StorageError.

        Those that rotted here are left out; it gives them, when the others are there.
        """
        there = {checkpoint.name for checkpoint in self.committed()[0]}
        owed = [found for found in manifest.committed(self._local)[0] if found.name not in there]
        return [damage for checkpoint in reversed(owed) if (damage := self._upload(checkpoint))]

    def fetch(self, name: str) -> None:
        """Puts the checkpoint `name` into the run directory, or mends the one there.

        Raises CheckpointError or StorageError where it does not come whole.
        """
        checkpoint = manifest.read_manifest(self.root, name)
        storage.delete(storage.join(self._local, name, MANIFEST))
        for record in checkpoint.files:
            place = storage.join(self._local, name, record.name)
            storage.fetch(storage.join(self.root, name, record.name), place)
            if problem := problem_of(storage.join(self._local, name), record):
                raise CheckpointError(f"the copy in {self.root}: {problem}")
        self._fetch_beside()
        manifest.write_manifest(self._local, checkpoint)

    def rewind(self, step: int) -> None:
        """Forgets what is later than `step`, here and there, once that of `step` is known to be whole here.

        It is fetched where it is not. Raises CheckpointError, with nothing forgotten, if none is whole.
        """
        there = self.committed()[0]
        self._bring(step, there)
        checkpoints.rewind(self._local, step)
        for checkpoint in there:
            if checkpoint.step > step:
                manifest.delete(self.root, checkpoint.name)

    def prune(self, *, keep_last: int, keep_every_steps: int | None) -> None:
        checkpoints.prune(self.root, keep_last=keep_last, keep_every_steps=keep_every_steps)

    def _upload(self, checkpoint: Checkpoint) -> Damage | None:
        """What is wrong with its files here, if something is; then it becomes no copy."""
        folder = storage.join(self._local, checkpoint.name)
        for record in checkpoint.files:
            if problem := problem_of(folder, record):
                return Damage(checkpoint.name, problem)
            target = storage.join(self.root, checkpoint.name, record.name)
            storage.upload(storage.join(folder, record.name), target)
        for name in BESIDE:
            if os.path.exists(place := storage.join(self._run_dir, name)):
                storage.upload(place, storage.join(self.uri, name))
        manifest.write_manifest(self.root, checkpoint)
        return None

    def _bring(self, step: int, there: list[Checkpoint]) -> None:
        """Fetches the checkpoint of `step` from among those `there`, unless it is whole here."""
        here = manifest.committed(self._local)[0]
        known = sorted({checkpoint.step for checkpoint in (*here, *there)})
        if step not in known:
            raise CheckpointError(
                f"there is no whole checkpoint of step {step} in {self._local} or {self.root}; "
                f"they have those of {known}"
            )
        folders = [storage.join(self._local, found.name) for found in here if found.step == step]
        if folders and not checkpoints.problems(folders[0]):
            return
        for copy in [copy for copy in there if copy.step == step][:1]:
            self.fetch(copy.name)

    def _fetch_beside(self) -> None:
        for name in BESIDE:
            source, place = storage.join(self.uri, name), storage.join(self._run_dir, name)
            if not os.path.exists(place) and storage.exists(source):
                storage.fetch(source, place)


def bring_owed(run_dir: str, config: CheckpointsConfig) -> None:
    """What the second place of a finished run has missed."""
    if config.copy_to is not None:
        Copies(run_dir, config.copy_to).catch_up(config)
