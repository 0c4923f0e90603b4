"""What a run under Ray Train outlives: a node that goes, comes or is to go, and a worker that hangs."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from pipelines.shards import ShardSet
from tests.clusters import Cluster, kill_node, one_node_cluster, two_node_cluster
from tests.training import runs

pytestmark = [
    pytest.mark.ray,
    pytest.mark.deepspeed,
    pytest.mark.faults,
    pytest.mark.exhaustive,
    pytest.mark.timeout(800),
]
Digests = dict[int, float]
"""Of the clips that a run has seen by each logged step."""
STEPS = 90
FEW_STEPS = 30
MANY_STEPS = 200
LONG, SHORT = (
    (f"--steps={steps}", "--checkpoints.every-steps=5", f"--evaluation.every-steps={steps}")
    for steps in (STEPS, FEW_STEPS)
)
SLOW_STEPS = """
import sys
import time
from pathlib import Path


def sleep_in_each_step():
    import training.ranks

    exchange, told = training.ranks.Ranks.sum, Path(__file__).with_name("sleep")

    def slow(self, values):
        time.sleep(float(told.exists() and told.read_text() or 0.1))
        return exchange(self, values)

    training.ranks.Ranks.sum = slow


if any(argument.endswith("default_worker.py") for argument in sys.orig_argv):
    sleep_in_each_step()
"""
"""In Ray's workers: a run is not over before something is done to it, and waiting takes no processor."""
SLEEP = "sleep"
"""A file beside it, of the seconds: more for what takes Ray a minute."""
ELASTIC = ("--launcher=ray", "--num-workers=2", "--min-workers=1")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One that may be harmed."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_STEPS)
    with two_node_cluster({"PYTHONPATH": str(tmp_path)}) as started:
        yield started


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path) -> dict[str, str]:
    """Where the command finds the cluster, and MLflow."""
    return place_of(cluster, tmp_path)


def place_of(cluster: Cluster, tmp_path: Path) -> dict[str, str]:
    found = {"RAY_ADDRESS": cluster.gcs_address, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    return os.environ | cluster.environment | found


@pytest.fixture(scope="module")
def undisturbed(token_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Digests:
    """Digests of the clips that a run has seen by each logged step, on one worker without Ray."""
    folder = tmp_path_factory.mktemp("undisturbed")
    bare = runs.bare_environment(folder / "site")
    runs.run(*runs.gpt(token_set, folder / "run"), *LONG, "--num-workers=1", env=bare)
    return digests(folder / "run")


def digests(run_dir: Path) -> Digests:
    return {int(line["step"]): line["samples_digest"] for line in runs.metrics(run_dir)}


def second_node_id(environment: Mapping[str, str]) -> str:
    ask = (
        "import ray; ray.init(log_to_driver=False);"
        "print(next(n['NodeID'] for n in ray.nodes() if 'node:__internal_head__' not in n['Resources']))"
    )
    asked = [sys.executable, "-c", ask]
    answer = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return answer.stdout.split()[-1]


def announce_its_end(cluster: Cluster, node_id: str, environment: Mapping[str, str]) -> None:
    """What a cloud does before it takes a node away."""
    command = [
        str(Path(sys.executable).with_name("ray")), "drain-node", f"--address={cluster.gcs_address}",
        f"--node-id={node_id}", "--reason=DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message=wanted elsewhere", "--deadline-remaining-seconds=300",
    ]  # fmt: skip
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)


def test_where_a_node_is_lost_the_run_goes_on_with_the_workers_that_are_left(
    cluster: Cluster,
    place: dict[str, str],
    token_set: ShardSet,
    tmp_path: Path,
    undisturbed: Digests,
) -> None:
    run_dir = tmp_path / "run"
    process = runs.start(*runs.gpt(token_set, run_dir), *SHORT, *ELASTIC, env=place)
    runs.wait_until(lambda: runs.newest_committed(run_dir) >= 5, process)
    kill_node(cluster.second_node)
    summary = runs.finish(process)
    assert summary["resumed_from"] >= 5
    assert summary["workers"] == 1
    assert digests(run_dir) == {step: undisturbed[step] for step in range(1, FEW_STEPS + 1)}


def test_where_a_node_is_announced_to_go_the_state_is_saved_before_it_does(
    cluster: Cluster,
    place: dict[str, str],
    token_set: ShardSet,
    tmp_path: Path,
    undisturbed: Digests,
) -> None:
    run_dir, seldom = tmp_path / "run", f"--checkpoints.every-steps={STEPS}"
    node_id = second_node_id(place)
    process = runs.start(*runs.gpt(token_set, run_dir), *LONG, seldom, *ELASTIC, env=place)
    runs.wait_until(lambda: runs.steps_logged(run_dir) >= 1, process)
    announce_its_end(cluster, node_id, place)
    runs.wait_until(lambda: runs.newest_committed(run_dir) > 0, process)
    saved = runs.newest_committed(run_dir)
    assert 0 < saved < STEPS
    kill_node(cluster.second_node)
    summary = runs.finish(process)
    assert summary["resumed_from"] == saved
    assert summary["workers"] == 1
    assert digests(run_dir) == undisturbed


def test_where_a_node_comes_the_run_saves_its_state_and_goes_on_with_more_workers(
    token_set: ShardSet, tmp_path: Path
) -> None:
    """No checkpoint is due before the last step. Ray Train looks for room once a minute."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_STEPS)
    (tmp_path / SLEEP).write_text("0.5")
    steps = f"--steps={MANY_STEPS}", f"--checkpoints.every-steps={MANY_STEPS}"
    options = *steps, f"--evaluation.every-steps={MANY_STEPS}"
    run_dir, alone = tmp_path / "run", tmp_path / "alone"
    with one_node_cluster({"PYTHONPATH": str(tmp_path)}) as cluster:
        place = place_of(cluster, tmp_path)
        process = runs.start(*runs.gpt(token_set, run_dir), *options, *ELASTIC, env=place)
        runs.wait_until(lambda: runs.steps_logged(run_dir) >= 1, process)
        cluster.add_node()
        runs.wait_until(lambda: runs.newest_committed(run_dir) > 0, process)
        saved = runs.newest_committed(run_dir)
        (tmp_path / SLEEP).write_text("0")
        summary = runs.finish(process)
        runs.run(*runs.gpt(token_set, alone), *options, "--num-workers=1", env=place)
    assert 0 < summary["resumed_from"] == saved < MANY_STEPS
    assert summary["workers"] == 2
    assert not list(run_dir.glob("save-*"))
    assert digests(run_dir) == digests(alone)


def test_a_worker_that_stands_still_ends_the_run_and_is_named(
    cluster: Cluster, place: dict[str, str], token_set: ShardSet, tmp_path: Path
) -> None:
    """SIGSTOP: it neither dies nor answers, and Ray has nothing to start again."""
    run_dir = tmp_path / "run"
    command = (*runs.gpt(token_set, run_dir), "--launcher=ray", *SHORT)
    process = runs.start(*command, *runs.IMPATIENT, env=place)
    runs.wait_until(lambda: runs.newest_committed(run_dir) >= 5, process)
    (stopped,) = runs.ray_workers(cluster.second_node)
    os.kill(stopped, signal.SIGSTOP)
    refusal = runs.finish(process, code=1)
    assert re.search(r"rank [01] did not arrive and gave no sign", refusal["error"])
    assert "repeat the command" in refusal["error"]
    assert not psutil.pid_exists(stopped)  # gone with its group
    assert runs.run(*command, env=place)["resumed_from"] >= 5
