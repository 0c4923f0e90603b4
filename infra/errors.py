"""The exception tree. A message says what was given, what is needed, and the remedy.

ReelgptError                  exit 1   anything a user or an operator can mend
|-- UsageError                exit 2   the command cannot mean anything as it was given
|   `-- ConfigError           exit 2   a setting is out of range or contradicts another
|-- ClusterError              exit 1   Ray cannot be reached, or its workers failed for reasons of their own
|-- StorageError              exit 1   a file system or object store did not answer, or refused
|   |-- NotJsonError          exit 1   a file was read, and holds no JSON
|   |-- SourceError           exit 1   one video is not to be had; the others are (pipelines/source_errors.py)
|   `-- StalledError          exit 1   where a video is mounted does not answer (beside it)
|-- ShardError                exit 1   a shard set is not whole, or not what its manifest says
|-- CheckpointError           exit 1   no checkpoint is whole, or none belongs to this run
|   `-- RottenError           exit 1   what was read of one are other bytes than were committed
|-- BundleError               exit 1   a model directory is not whole, or not what it says
|-- TrainingError             exit 1   training cannot go on (a loss that is not finite, a lost worker)
|-- RegistryError             exit 1   the registry does not know what was asked for
|-- JobError                  exit 1   a Ray job could not be submitted or followed
`-- Stopped                   exit 75  a signal stopped the run; everything is committed

What is not in this tree is a bug of ours and keeps its traceback.
"""


class ReelgptError(Exception):
    exit_code = 1


class UsageError(ReelgptError):
    exit_code = 2


class ConfigError(UsageError, ValueError):
    pass


class ClusterError(ReelgptError):
    pass


class StorageError(ReelgptError):
    pass


class NotJsonError(StorageError):
    pass


class ShardError(ReelgptError):
    pass


class CheckpointError(ReelgptError):
    pass


class RottenError(CheckpointError):
    pass


class BundleError(ReelgptError):
    pass


class TrainingError(ReelgptError):
    pass


class RegistryError(ReelgptError):
    pass


class JobError(ReelgptError):
    pass


class Stopped(ReelgptError):  # noqa: N818 - no error: what it was asked for
    exit_code = 75
