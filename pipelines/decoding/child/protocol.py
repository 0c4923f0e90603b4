"""What the child and its parent say to each other, on a socket: the only room that both of them enter.

A request is one line of JSON with the video as an open file beside it. An answer is a header, a line of JSON,
and the frames as they lie in memory.
"""

import json
import socket
import struct
from typing import Any

import numpy as np

READY = b"+"
"""Sent once everything is imported: a child that ends before is the machine's fault, not a file's."""
HEADER = struct.Struct("<QQ")
"""Bytes of the JSON answer and of the frames that follow it."""
LONGEST_REQUEST = 1 << 16


class DiskError(Exception):
    """The file cannot be read to its end: no fault of its content. `number` is the errno."""

    def __init__(self, number: int | None, message: str) -> None:
        super().__init__(message)
        self.number = number


class RefusedError(Exception):
    """The file itself is at fault; `error_class` is one of `pipelines.error_classes`."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


def receive_request(channel: socket.socket) -> tuple[dict[str, Any], int] | None:
    """A request and the descriptor of its file; None once the parent has closed the socket."""
    line, descriptors, _, _ = socket.recv_fds(channel, LONGEST_REQUEST, 1)
    return (json.loads(line), descriptors[0]) if line else None


def send_request(channel: socket.socket, request: dict[str, Any], descriptor: int) -> None:
    socket.send_fds(channel, [json.dumps(request).encode() + b"\n"], [descriptor])


def send_answer(channel: socket.socket, answer: dict[str, Any], frames: np.ndarray) -> None:
    """`frames` must lie in one piece."""
    line = json.dumps(answer).encode()
    channel.sendall(HEADER.pack(len(line), frames.nbytes) + line)
    channel.sendall(frames.data)
