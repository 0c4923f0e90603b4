"""What a run forgets where steps that it has done will be others: what it said, drew and became at them.

Its checkpoints are not this file's matter: see `training.going_back`. Imports no torch.
"""

from infra import storage
from infra.errors import StorageError
from model.bundle import LINEAGE
from training.run_directory import RunDirectory, sampled_step
from training.tracking import tracking_record


def forget_after(directory: RunDirectory, step: int) -> None:
    """Where later steps were told, MLflow will hear of what comes now as of another run, a branch of it."""
    lines = directory.read_metrics()
    if lines and lines[-1]["step"] > step:
        tracking_record.branch(directory.path)
    for file in storage.list_files(directory.samples):
        if (drawn := sampled_step(file.name)) is not None and drawn > step:
            storage.delete(file.uri)
    for later in (made for made in directory.bundle_steps() if made > step):
        directory.forget_bundle(directory.bundle_of(later))
    if _model_step(directory) > step:
        directory.forget_bundle(directory.bundle)
    directory.write_metrics(line for line in lines if line["step"] <= step)


def _model_step(directory: RunDirectory) -> int:
    """Of the bundle that the run became; 0 where there is none that says so."""
    try:
        return int(storage.read_json(storage.join(directory.bundle, LINEAGE))["checkpoint"]["step"])
    except (StorageError, KeyError, TypeError):
        return 0
