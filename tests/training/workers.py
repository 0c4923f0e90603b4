"""Workers of a run as `srun` or a torchrun of the user's starts them, without the seconds of importing torch:
a process that has imported all forks them. Each is a process of its own, to be killed like any other.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.ports import free_ports

PATIENCE_SECONDS = 300.0
IMPORTED = (
    "reelgpt.train", "training.worker", "training.finish", "training.engine.universal",
    "deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.runtime.zero.stage3",
    "torch._dynamo", "torch._inductor.compile_fx", "torch.distributed.fsdp",
)  # fmt: skip
"""What takes a worker seconds to import: DeepSpeed's Muon alone asks for all of torch's compilers."""


@dataclass(frozen=True, slots=True)
class Group:
    """The workers of one command, by rank."""

    workers: "Workers"
    pids: list[int]
    folder: Path

    def kill(self, rank: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pids[rank], signal.SIGKILL)

    def signal(self, number: int) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait_until(self, is_time: Callable[[], bool]) -> None:
        """Gives up once a worker has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_time() and all(map(_is_alive, self.pids)):
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.002)

    def codes(self) -> list[int]:
        """Exit codes by rank, negative signals; who is left once others are gone is killed in the end."""
        answer: list[int] = self.workers.ask({"wait": self.pids})
        return answer

    def summary(self, *, code: int = 0) -> dict[str, Any]:
        """What the first worker says in the end, once all have ended, with `code` if that is no success."""
        codes = self.codes()
        assert codes[0] == code, (codes, self.said())
        assert code or not any(codes), (codes, self.said())
        answer: dict[str, Any] = json.loads(self.output().strip().splitlines()[-1])
        return answer | {"stderr": (self.folder / "0.err").read_text()}

    def output(self) -> str:
        """What the first worker wrote to stdout."""
        return (self.folder / "0.out").read_text()

    def said(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("*.err")))


class Workers:
    """Starts groups of workers. Use as a context manager."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._folder = folder
        self._count = 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.training.workers"],
            cwd=Path(__file__).parents[2], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def start(
        self, *arguments: str, world_size: int = 2, faults: Sequence[str] = (), alone: bool = False
    ) -> Group:
        """`reelgpt train` with these arguments on each of `world_size` workers. `faults`: Python that each
        runs first, with `rank` set. `alone`: one command that nobody launched."""
        self._count += 1
        folder = self._folder / f"group-{self._count}"
        folder.mkdir(parents=True)
        request = {
            "start": ["train", *arguments, "--json"], "world_size": world_size, "faults": list(faults),
            "folder": str(folder), "port": None if alone else free_ports(1)[0],
        }  # fmt: skip
        return Group(self, self.ask(request), folder)

    def run(self, *arguments: str, code: int = 0, **options: Any) -> dict[str, Any]:
        return self.start(*arguments, **options).summary(code=code)

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _serve(requests: Iterator[str], answers: IO[str]) -> None:
    for name in IMPORTED:
        importlib.import_module(name)

    for line in requests:
        request = json.loads(line)
        answer = _wait(request["wait"]) if "wait" in request else _start(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _start(request: dict[str, Any]) -> list[int]:
    pids = []
    for rank in range(request["world_size"]):
        pid = os.fork()
        if pid == 0:
            _become_worker(request, rank)
        pids.append(pid)
    return pids


def _become_worker(request: dict[str, Any], rank: int) -> None:
    from reelgpt.main import main

    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{request['folder']}/{rank}.{name}", os.O_CREAT | os.O_WRONLY), descriptor)
    if request["port"] is not None:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(request["world_size"]),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"]),
        }  # fmt: skip
    code = 1
    try:
        for fault in request["faults"]:
            exec(fault, {"rank": rank})
        code = main(request["start"])
    except SystemExit as leaving:
        code = int(str(leaving.code))
    except BaseException:  # noqa: BLE001 - a worker ends with its traceback, as any program
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pids: list[int]) -> list[int]:
    """Once one has failed, the others get some seconds to notice."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
                if codes[pid]:
                    deadline = min(deadline, time.monotonic() + 20.0)
        if time.monotonic() > deadline:
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    _serve(iter(sys.stdin.readline, ""), sys.stdout)
