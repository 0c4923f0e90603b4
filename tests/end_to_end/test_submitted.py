"""`reelgpt submit --follow -- COMMAND` on a cluster of two nodes gives what the same command gives here."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import Cluster, two_node_cluster
from tests.media import make_bad_files, make_video

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
SETTINGS = ("--sampling.span-seconds", "1", "--sampling.clip-frames", "4", "--sampling.stride-frames", "4")
OVER_BUDGET = 3

WHERE_CODE_COMES_FROM = """
import os, sys, time
import ray, infra
ray.init(log_to_driver=False)

@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def look():
    import infra
    time.sleep(1)
    return ray.get_runtime_context().get_node_id(), infra.__file__, os.environ["REELGPT_COMMIT"]

print("driver", infra.__file__)
for found in ray.get([look.remote() for _ in range(2)]):
    print("worker", *found)
sys.exit(3)
"""

CLIENT = """
import sys
from infra import jobs
address, entrypoint = sys.argv[1:]
job_id = jobs.submit_job(entrypoint, address=address, environment={"REELGPT_COMMIT": "abc-dirty"})
end = jobs.follow_job(job_id, address=address, write=sys.stdout.write)
sys.stderr.write(end.status)
sys.exit(end.exit_code)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with two_node_cluster() as started:
        yield started


def run(*args: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "reelgpt", *args],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def last_json(text: str) -> dict[str, object]:
    found: dict[str, object] = json.loads([line for line in text.splitlines() if line.startswith("{")][-1])
    return found


def test_a_submitted_tokenize_ends_with_the_fingerprint_and_the_exit_code_of_the_local_one(
    cluster: Cluster, tokenizer_bundle: str, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    for number in range(3):
        make_video(videos / f"{number}.mp4", source=f"testsrc2=size=160x120:rate=25,hue=h={50 * number}")
    make_bad_files(videos)
    command = ("tokenize", str(videos), "--tokenizer", tokenizer_bundle, *SETTINGS, "--json")
    here = run(*command, "--out", str(tmp_path / "here"))
    there = run(
        "submit", "--address", cluster.address, "--follow", "--",
        *command, "--out", str(tmp_path / "there"),
        environment=cluster.environment,
    )  # fmt: skip
    assert here.returncode == there.returncode == OVER_BUDGET, there.stdout + there.stderr
    assert last_json(there.stdout)["fingerprint"] == last_json(here.stdout)["fingerprint"]


def test_a_relative_output_is_refused_before_anything_is_sent(cluster: Cluster, tmp_path: Path) -> None:
    refused = run(
        "submit", "--address", cluster.address, "--follow", "--", "extract", str(tmp_path), "--out", "frames",
        environment=cluster.environment,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "is relative" in refused.stderr
    assert "give s3://" in refused.stderr


def test_driver_and_workers_of_both_nodes_run_the_code_that_was_sent(cluster: Cluster) -> None:
    entrypoint = shlex.join(["python", "-c", WHERE_CODE_COMES_FROM])
    client = run_client(cluster, entrypoint, RAY_ADDRESS="http://127.0.0.1:9")

    assert client.stderr == "FAILED"
    assert client.returncode == 3
    lines = [line.split() for line in client.stdout.splitlines()]
    drivers = [line[1] for line in lines if line[:1] == ["driver"]]
    workers = [line[1:] for line in lines if line[:1] == ["worker"]]
    assert len(drivers) == 1
    assert len({node for node, _, _ in workers}) == 2
    assert all("working_dir_files" in path for path in [*drivers, *(path for _, path, _ in workers)])
    assert {commit for _, _, commit in workers} == {"abc-dirty"}


def test_a_cluster_with_token_authentication_takes_no_job_without_the_token(cluster: Cluster) -> None:
    client = run_client(cluster, "true", RAY_AUTH_TOKEN="0" * 32)
    assert "wants a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH" in client.stderr


def run_client(cluster: Cluster, entrypoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, since Ray reads the authentication mode once a process."""
    return subprocess.run(
        [sys.executable, "-c", CLIENT, cluster.address, entrypoint],
        env={**os.environ, **cluster.environment, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
