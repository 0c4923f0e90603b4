"""An HTTP proxy on loopback that passes requests on to a server, and misbehaves on purpose."""

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

ANSWER = b"<Error><Code>%s</Code><Message>on purpose</Message></Error>"
CODES = {503: b"SlowDown", 429: b"TooManyRequests", 500: b"InternalError"}
UPSTREAM_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a request instead of its answer; `only` says to which."""

    status: int | None = None
    """Answered with this status, without asking the server."""
    reset: bool = False
    """The connection is reset before the server hears of the request."""
    lose_answer: bool = False
    """The server does it, and the connection is reset instead of an answer."""
    cut_at: float | None = None
    """Of the answer's body only this share comes, then the connection ends."""
    delay_seconds: float = 0.0


@dataclass(slots=True)
class Proxy:
    url: str
    plan: Callable[[str, str], Fault | None] = field(default=lambda _method, _path: None)
    """Asked at each request, by method and path; None passes it on unharmed."""
    seen: list[tuple[str, str]] = field(default_factory=list)

    def count(self, method: str) -> int:
        return sum(one == method for one, _ in self.seen)


def times(count: int, fault: Fault, *, method: str, path: str = "") -> Callable[[str, str], Fault | None]:
    """The fault for the first `count` requests of a method whose path contains `path`."""
    left = [count]

    def plan(asked: str, place: str) -> Fault | None:
        if asked != method or path not in place or left[0] == 0:
            return None
        left[0] -= 1
        return fault

    return plan


@contextlib.contextmanager
def misbehaving_proxy(server: str) -> Iterator[Proxy]:
    """Before the server at this URL. The Host header is passed on as it came: signatures cover it."""
    handler = type("Handler", (_Handler,), {"upstream": urlsplit(server).netloc})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        proxy = Proxy(f"http://127.0.0.1:{listening.server_address[1]}")
        handler.proxy = proxy  # type: ignore[attr-defined]
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            listening.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: str
    proxy: Proxy

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):  # clients go away, and are sent away
            super().handle_one_request()

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.proxy.seen.append((self.command, self.path))
        fault = self.proxy.plan(self.command, self.path) or Fault()
        time.sleep(fault.delay_seconds)
        if fault.reset:
            self._reset()
        elif fault.status is not None:
            self._answer(fault.status, [], ANSWER % CODES[fault.status])
        else:
            status, headers, answer = self._ask(body)
            if fault.lose_answer:
                self._reset()
            else:
                self._answer(status, headers, answer, cut_at=fault.cut_at)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = do_any  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.upstream, timeout=UPSTREAM_SECONDS)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut_at: float | None = None
    ) -> None:
        self.send_response_only(status)
        length = dict(headers).get("Content-Length", str(len(body)))
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut_at is None else body[: int(len(body) * cut_at)])
        if cut_at is not None:
            self.close_connection = True

    def _reset(self) -> None:
        linger = struct.pack("ii", 1, 0)  # closing sends RST
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()
        raise ConnectionResetError
