"""Ports of this machine for servers that a test starts: SeaweedFS listens 10,000 above its own as well."""

import contextlib
import random
import socket

PORTS = (20_000, 32_000)
"""Above those of Ray's workers, and below those that the system gives by itself, one of which another process
may have before it is used."""


def free_ports(count: int) -> list[int]:
    chance, found = random.SystemRandom(), list[int]()
    with contextlib.ExitStack() as held:
        while len(found) < count:
            port, one = chance.randrange(*PORTS), held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                one.bind(("127.0.0.1", port))
                found.append(port)
    return found
