"""The same run under every launcher: here, under Ray Train, under torchrun. The one door to Ray Train.

    local      one worker, here
    ray        config.num_workers workers under Ray Train, on this machine or on the cluster of RAY_ADDRESS
    torchrun   config.num_workers workers on this machine; inside a torchrun of the user's, one of them

The command that launches refuses what cannot be, holds the run directory's lease, turns signals into a stop
that the workers agree on, and hands back the summary. Refusals come before torch or Ray is imported.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Literal, TypeVar

from infra import cluster, commit, configs, errors, storage, tracking
from infra.errors import ReelgptError, StorageError, TrainingError, UsageError
from training.config import RunConfig
from training.data import TrainingData, open_data
from training.following import OnMetrics, followed
from training.job import Job
from training.run_directory import RunDirectory
from training.stopping import StopRequest, die_with_parent
from training.tracked_run import mend_status

Launcher = Literal["auto", "local", "ray", "torchrun"]
Summary = dict[str, Any]
Result = TypeVar("Result")

POLL_SECONDS = 0.2
PASSED_ON = ("MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME")
PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")


def train(
    config: RunConfig,
    *,
    data: str,
    run_dir: str,
    launcher: Launcher = "auto",
    resume: str = "auto",
    tokenizer: str | None = None,
    on_metrics: OnMetrics | None = None,
) -> Summary:
    """Begins the run in `run_dir`, or goes on with it, or finds it finished; gives its summary.

    `on_metrics` hears of every line that metrics.jsonl gets. Raises UsageError for what cannot be, Stopped
    after a signal.
    """
    if _is_worker():
        config = replace(config, num_workers=int(os.environ["WORLD_SIZE"]))
    launch = _choose(launcher, config)
    directory = RunDirectory.at(run_dir)
    opened = open_data(config, data, tokenizer=tokenizer)
    leads = int(os.environ.get("RANK", "0")) == 0  # under a torchrun of the user's, one speaks for all
    if leads:
        directory.check(config, opened, resume=resume)
    summary = None if resume.isdigit() else directory.finished()
    if summary is not None:
        if leads:
            mend_status(directory)
        return summary | {"was_finished": True}
    job = _job(config, directory, opened, needs_stop_file=launch is not _here)
    if not leads:
        return launch(job) | {"was_finished": False}
    with directory.lease():
        directory.begin(config, opened, resume=resume, attempt=job.attempt)
        with followed(directory.metrics, on_metrics, resumed_step=directory.newest_step()):
            return launch(job) | {"was_finished": False}


def _job(config: RunConfig, directory: RunDirectory, data: TrainingData, *, needs_stop_file: bool) -> Job:
    attempt = uuid.uuid4().hex[:8]
    return Job(
        config=config,
        data=data.shard_set.uri,
        run_dir=directory.path,
        attempt=attempt,
        tokenizer=data.tokenizer.uri if data.tokenizer else None,
        stop_file=storage.join(directory.path, f"stop-{attempt}") if needs_stop_file else None,
    )


def _choose(launcher: Launcher, config: RunConfig) -> Callable[[Job], Summary]:
    if _is_worker():
        if launcher in ("local", "ray"):
            raise UsageError(
                f"--launcher {launcher} contradicts the torchrun that started this; leave it out"
            )
        return _here
    if launcher == "auto":
        launcher = "local" if config.num_workers == 1 else "ray" if find_spec("ray") else "torchrun"
    if launcher == "local" and config.num_workers > 1:
        raise UsageError(
            f"--launcher local runs one worker and num_workers is {config.num_workers}; "
            f"give --num-workers 1, or --launcher ray or torchrun"
        )
    if launcher == "ray" and not find_spec("ray"):
        raise UsageError("--launcher ray needs Ray, which is not installed here; give --launcher torchrun")
    if launcher == "ray":
        _require_no_password(_surroundings())
    return {"local": _here, "ray": _under_ray, "torchrun": _under_torchrun}[launcher]


def _require_no_password(environment: dict[str, str]) -> None:
    for name, value in environment.items():
        if PASSWORD.search(value):
            raise UsageError(
                f"{name} has a password in it, which Ray records; set MLFLOW_TRACKING_USERNAME and "
                f"MLFLOW_TRACKING_PASSWORD where the workers run instead"
            )


def _is_worker() -> bool:
    """Whether a torchrun of the user's started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def _here(job: Job) -> Summary:
    from training.worker import work

    if _is_worker():
        die_with_parent()
    return work(job)


def _under_ray(job: Job) -> Summary:
    from ray.train import TrainingFailedError

    folder = f"ray-{job.attempt}"
    with cluster.connected(num_cpus=max(os.cpu_count() or 1, job.config.num_workers)):
        trainer = _ray_trainer(job, folder)
        with _stop_file(job), ThreadPoolExecutor(1) as pool:
            try:
                result = _wait_for(pool.submit(trainer.fit), job)
            except TrainingFailedError as error:
                raise _lost_workers(job.config, error) from None
            finally:
                shutil.rmtree(storage.join(job.run_dir, folder), ignore_errors=True)
    return _summary_of(result.return_value)


def _ray_trainer(job: Job, folder: str) -> Any:
    """Ray Train's own files go to `folder` in the run directory."""
    from ray import train as ray_train
    from ray.train.torch import TorchConfig, TorchTrainer

    config = job.config
    use_gpu = cluster.num_gpus() >= config.num_workers
    return TorchTrainer(
        _ray_worker,  # type: ignore[arg-type]
        train_loop_config=configs.to_dict(job),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ray_train.ScalingConfig(num_workers=config.num_workers, use_gpu=use_gpu),
        run_config=ray_train.RunConfig(  # type: ignore[call-arg]
            name=folder,
            storage_path=job.run_dir,
            failure_config=ray_train.FailureConfig(max_failures=config.max_failures),
            worker_runtime_env={"env_vars": _surroundings()},
        ),
    )


def _ray_worker(settings: dict[str, Any]) -> Summary:
    from training.worker import work

    return _answer_of(work, configs.from_dict(Job, settings))


def _under_torchrun(job: Job) -> Summary:
    job_file, answer_file = f"{job.stop_file}.job.json", f"{job.stop_file}.answer.json"
    storage.write_json(job_file, configs.to_dict(job))
    workers = ["--standalone", "--nproc-per-node", str(job.config.num_workers), "-m", "training.launch"]
    command = [sys.executable, "-m", "torch.distributed.run", *workers, job_file, answer_file]
    with _stop_file(job), ThreadPoolExecutor(1) as pool:
        try:
            code = _wait_for(pool.submit(_run_apart, command, _torchrun_environment()), job)
            if not storage.exists(answer_file):
                raise TrainingError(f"the workers ended with exit code {code}; what they said is above")
            return _summary_of(storage.read_json(answer_file))
        finally:
            storage.delete(job_file)
            storage.delete(answer_file)


def _torchrun_worker(job_file: str, answer_file: str) -> None:
    from training.worker import work

    die_with_parent()
    answer = _answer_of(work, configs.from_dict(Job, storage.read_json(job_file)))
    if os.environ["RANK"] == "0":
        storage.write_json(answer_file, answer)


def _run_apart(command: list[str], environment: dict[str, str]) -> int:
    """Apart from the terminal, whose Ctrl-C is for the command that launches; gone when it is gone."""
    with subprocess.Popen(
        command, env=environment, stdout=sys.stderr, start_new_session=True, preexec_fn=die_with_parent
    ) as process:
        return process.wait()


def _answer_of(work: Callable[[Job], Summary], job: Job) -> dict[str, Any]:
    """What a worker brings back: a summary, or what all refused alike. What one alone meets kills it."""
    try:
        return {"summary": work(job)}
    except StorageError:
        raise
    except ReelgptError as error:
        return {"refusal": type(error).__name__, "message": str(error)}


def _summary_of(answer: dict[str, Any]) -> Summary:
    if "refusal" in answer:
        raise getattr(errors, answer["refusal"])(answer["message"])
    summary: Summary = answer["summary"]
    return summary


def _surroundings() -> dict[str, str]:
    """What workers elsewhere must know of this process: where things are, never how to get in."""
    told = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return told | {
        "MLFLOW_TRACKING_URI": tracking.tracking_uri(),
        commit.COMMIT_VARIABLE: commit.code_commit(),
    }


def _torchrun_environment() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1"} | os.environ | _surroundings()


def _lost_workers(config: RunConfig, error: Exception) -> TrainingError:
    cause = str(error).strip().splitlines()[-1]
    return TrainingError(
        f"the workers failed more often than max_failures={config.max_failures} allows: {cause}; "
        f"repeat the command to go on from the newest whole checkpoint"
    )


def _wait_for(future: "Future[Result]", job: Job) -> "Result":
    """Its result. A signal meanwhile becomes the job's stop file."""
    stop = StopRequest()
    with stop.listening():
        while not wait([future], timeout=POLL_SECONDS).done:
            if stop.is_wanted() and job.stop_file:
                storage.write(job.stop_file, b"")
    return future.result()


@contextlib.contextmanager
def _stop_file(job: Job) -> Iterator[None]:
    try:
        yield
    finally:
        if job.stop_file:
            storage.delete(job.stop_file)


if __name__ == "__main__":
    _torchrun_worker(*sys.argv[1:])
