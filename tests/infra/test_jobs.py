import pytest

from infra import jobs
from infra.errors import JobError, UsageError


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
