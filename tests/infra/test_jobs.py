import os
import shlex
import subprocess
import sys

import pytest

from infra import jobs
from infra.errors import JobError, UsageError
from tests.clusters import Cluster

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


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in jobs.ADDRESS_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_address_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs.choose_address(None, insecure=False) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "https://b:1")
    assert jobs.choose_address(None, insecure=False) == "https://b:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://a:1/")
    assert jobs.choose_address(None, insecure=False) == "https://a:1"
    assert jobs.choose_address("https://c:1", insecure=False) == "https://c:1"


def test_plain_http_stays_on_this_machine_unless_asked() -> None:
    for loopback in ("http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://cluster:1"):
        assert jobs.choose_address(loopback, insecure=False) == loopback
    for remote in (
        "http://cluster:1",
        "http://10.0.0.1:1",
        "http://127.0.0.1.evil.org:1",
        "http://0.0.0.0:1",
    ):
        with pytest.raises(UsageError, match="unencrypted"):
            jobs.choose_address(remote, insecure=False)
        assert jobs.choose_address(remote, insecure=True) == remote


@pytest.mark.parametrize("address", ["ray://head:10001", "auto", "127.0.0.1:6379", "http://"])
def test_what_is_no_jobs_server_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="is no Ray jobs server"):
        jobs.choose_address(address, insecure=False)


@pytest.mark.ray
def test_no_cluster_at_the_address_is_named_with_the_remedy() -> None:
    with pytest.raises(JobError, match=r"no Ray jobs server answers at http://127\.0\.0\.1:9; start one"):
        jobs.submit_job("true", address="http://127.0.0.1:9", environment={})


@pytest.mark.ray
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


@pytest.mark.ray
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
