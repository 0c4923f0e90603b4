"""The way onto a cluster that is not there, and a Ray of this machine alone."""

import os
import socket

import pytest

from infra import cluster
from infra.errors import ClusterError
from tests.faults.processes import family, words_of


def test_an_address_where_nobody_listens_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, but it does not listen
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for form in (address, f"ray://{address}"):
            monkeypatch.setenv("RAY_ADDRESS", form)
            with (
                pytest.raises(ClusterError, match=f"no Ray answers at {form}.*unset it"),
                cluster.connected(),
            ):
                pass


@pytest.mark.ray
def test_a_ray_of_this_machine_alone_starts_nothing_that_nobody_asks() -> None:
    with cluster.connected(num_cpus=2):
        assert cluster.num_cpus() == 2
        words = [words_of(one) for one in family(os.getpid())]
    assert any("gcs_server" in one for one in words)
    assert not [one for one in words if "dashboard.py" in one or "monitor" in one.partition(" --")[0]]
