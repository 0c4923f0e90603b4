"""A run under Ray Train, on this machine or on the cluster of RAY_ADDRESS. The one door to Ray Train, but for
what is told to its controller: see `growing`.

A lost worker or node restarts the group from the newest whole checkpoint; with `min_workers`, with as many
workers as there is room for. Where there is room for more, the group saves its state and starts anew.
"""

import os
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from typing import Any

from infra import cluster, configs, storage
from infra.errors import TrainingError
from training.config import RunConfig
from training.launching.answers import Summary, answer_of, summary_of, surroundings
from training.launching.job import Job
from training.launching.stopping import StopRequest, wish_file

POLL_SECONDS = 0.2
PLACE_SECONDS = 20
"""How long an elastic run waits for a place for as many workers as Ray last knew of, before it asks anew.

A node that is lost counts for a while longer. Ray's own is 60.
"""


def under_ray(job: Job) -> Summary:
    from ray.train import TrainingFailedError

    folder = f"ray-{job.attempt}"
    if _is_elastic(job.config):
        job = replace(job, save_file=storage.join(job.run_dir, f"save-{job.attempt}"))
    with cluster.connected(num_cpus=max(os.cpu_count() or 1, job.config.num_workers)):
        trainer = _trainer(job, folder)
        with wish_file(job.stop_file), wish_file(job.save_file), ThreadPoolExecutor(1) as pool:
            try:
                result = _wait_for(pool.submit(trainer.fit), job)
            except TrainingFailedError as error:
                raise _failed(job.config, error) from None
            finally:
                shutil.rmtree(storage.join(job.run_dir, folder), ignore_errors=True)
    return summary_of(result.return_value)


def _trainer(job: Job, folder: str) -> Any:
    """Ray Train's own files go to `folder` in the run directory."""
    from ray import train as ray_train
    from ray.train.torch import TorchConfig, TorchTrainer

    config = job.config
    if _is_elastic(config):
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PLACE_SECONDS))
    use_gpu = _is_for_gpus(config)
    return TorchTrainer(
        _worker,  # type: ignore[arg-type]
        train_loop_config=configs.to_dict(job),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ray_train.ScalingConfig(num_workers=_num_workers(config), use_gpu=use_gpu),
        run_config=ray_train.RunConfig(  # type: ignore[call-arg]
            name=folder,
            storage_path=job.run_dir,
            failure_config=ray_train.FailureConfig(max_failures=config.max_failures),
            callbacks=_callbacks(job),
            worker_runtime_env={"env_vars": surroundings()},
        ),
    )


def _callbacks(job: Job) -> list[Any]:
    if job.save_file is None:
        return []
    from training.launching.growing import SavedFirst

    return [SavedFirst(job.save_file)]


def _is_for_gpus(config: RunConfig) -> bool:
    if config.use_gpu is not None:
        return config.use_gpu
    needed, there = config.min_workers or config.num_workers, cluster.num_gpus()
    if 0 < there < needed:
        sys.stderr.write(
            f"training on CPUs: the cluster has {there} GPUs and the run needs {needed}; "
            f"--use-gpu True waits for more\n"
        )
    return there >= needed


def _num_workers(config: RunConfig) -> Any:
    return (config.min_workers, config.num_workers) if _is_elastic(config) else config.num_workers


def _is_elastic(config: RunConfig) -> bool:
    return config.min_workers not in (None, config.num_workers)


def _worker(settings: dict[str, Any]) -> Summary:
    from training.worker import work

    return answer_of(partial(work, preempted=_preempted_nodes), configs.from_dict(Job, settings))


def _preempted_nodes() -> list[str]:
    """Nodes of these workers that are about to go. All of them must ask together."""
    from ray import train as ray_train

    info = ray_train.get_preemption_info()
    return info.preempted_node_ids if info else []


def _failed(config: RunConfig, error: Exception) -> TrainingError:
    from ray.train import ControllerError

    what = f"the workers failed more often than max_failures={config.max_failures} allows"
    if isinstance(error, ControllerError):
        what = "what controls the workers failed"
    cause = str(error).strip().splitlines()[-1]
    return TrainingError(f"{what}: {cause}; repeat the command to go on from the newest whole checkpoint")


def _wait_for(future: "Future[Any]", job: Job) -> Any:
    """Its result. A signal meanwhile becomes the job's stop file."""
    stop = StopRequest()
    with stop.listening():
        while not wait([future], timeout=POLL_SECONDS).done:
            if stop.is_wanted() and job.stop_file:
                storage.write(job.stop_file, b"")
    return future.result()
