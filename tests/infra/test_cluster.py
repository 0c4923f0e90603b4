"""The way onto a cluster that is not there."""

import socket

import pytest

from infra import cluster
from infra.errors import ClusterError


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
