"""A run whose workers a launcher starts as processes on this machine: torchrun's or DeepSpeed's.

The launcher and its workers live apart from the terminal, whose Ctrl-C is for the command, and are gone when
it is gone.
"""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from infra import configs, storage
from infra.errors import StorageError, TrainingError
from training.launching.answers import Summary, answer_of, require_no_hang, summary_of, surroundings
from training.launching.job import Job
from training.launching.stopping import StopRequest, die_with_parent, wish_file
from training.refusals import word_of

POLL_SECONDS = 0.2
WORKER_MODULE = "training.launching.under_processes"


def under_torchrun(job: Job) -> Summary:
    workers = ["--standalone", "--nproc-per-node", str(job.config.num_workers), "-m"]
    return _run(job, [sys.executable, "-m", "torch.distributed.run", *workers])


def under_deepspeed(job: Job) -> Summary:
    """Through the process that `deepspeed` starts on each node: of this node, it is the whole launcher."""
    nodes = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(job.config.num_workers))}).encode())
    place = ["--world_info", nodes.decode(), "--node_rank", "0", "--master_addr", "127.0.0.1"]
    options = [*place, "--master_port", str(_free_port()), "--no_local_rank", "--quiet", "--module"]
    return _run(job, [sys.executable, "-m", "deepspeed.launcher.launch", *options])


def _run(job: Job, launcher: list[str]) -> Summary:
    job_file, answer_file = f"{job.stop_file}.job.json", f"{job.stop_file}.answer.json"
    storage.write_json(job_file, configs.to_dict(job))
    try:
        with wish_file(job.stop_file), _started([*launcher, WORKER_MODULE, job_file, answer_file]) as process:
            code = _wait_for(process, job)
        if not storage.exists(answer_file):
            require_no_hang(job)
            raise TrainingError(f"the workers ended with exit code {code}; what they said is above")
        return summary_of(storage.read_json(answer_file))
    finally:
        storage.delete(job_file)
        storage.delete(answer_file)


@contextlib.contextmanager
def _started(command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | surroundings()
    with subprocess.Popen(
        command, env=environment, stdout=sys.stderr, start_new_session=True, preexec_fn=die_with_parent
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)  # its workers die with it


def _wait_for(process: "subprocess.Popen[bytes]", job: Job) -> int:
    """Its exit code. A signal meanwhile becomes the job's stop file; a hang found is not waited out."""
    stop = StopRequest()
    with stop.listening():
        while (code := process.poll()) is None:
            if stop.is_wanted() and job.stop_file:
                storage.write(job.stop_file, b"")
            require_no_hang(job)
            time.sleep(POLL_SECONDS)
    return code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _worker(job_file: str, answer_file: str) -> None:
    from training.worker import work

    die_with_parent()
    is_first = os.environ["RANK"] == "0"
    try:
        answer = answer_of(work, configs.from_dict(Job, storage.read_json(job_file)))
    except StorageError as error:  # what this worker alone has met
        if not is_first:
            raise
        answer = word_of(error)
    if is_first:
        storage.write_json(answer_file, answer)


if __name__ == "__main__":
    _worker(*sys.argv[1:])
