"""`reelgpt submit`: any command as a Ray job, in a copy of this checkout's code on the cluster.

Knows what would be lost or leak on the way and refuses it before anything is sent: relative files, which
would vanish with the job's working directory, and passwords, which would stay in the cluster's records.
"""

import dataclasses
import os
import shlex
import sys
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from infra import jobs, storage
from infra.commit import COMMIT_VARIABLE, code_commit
from infra.errors import UsageError
from infra.model_version import is_ref
from infra.passwords import holds_password, require_no_password
from reelgpt import main
from reelgpt.command import Outcome, Place
from reelgpt.console import console

TRACKED = ("demo", "models", "train")
"""Commands that write to MLflow, or read it; others do so where they are given a `models:/` reference."""

PASSED_ON = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME")
"""Where things are, never how to get in: the cluster has credentials of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submit:
    """Runs a command of reelgpt as a Ray job.

    The code of this checkout travels along; files do not. Give inputs and outputs that the cluster can reach
    by the same name: s3://... or a path on a shared file system. With --follow, the exit code is the job's.

    Example: reelgpt submit --follow -- extract s3://bucket/videos --out s3://bucket/frames
    """

    address: str | None = None
    """The cluster's dashboard. Else RAY_API_SERVER_ADDRESS, RAY_ADDRESS or http://127.0.0.1:8265."""
    follow: bool = False
    """Shows the job's output and waits for its end."""
    insecure: bool = False
    """Allows plain http to another machine: whoever is in between could run code on the cluster."""
    json: bool = False
    """One JSON object as the last line of stdout; the job's output goes to stderr then."""
    command: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """What stands after `--`."""

    @classmethod
    def parse(cls, args: Sequence[str]) -> "Submit":
        divider = args.index("--") if "--" in args else len(args)
        options: Submit = main.parse_with_tyro(cls, "submit", args[:divider])
        return cls(
            address=options.address,
            follow=options.follow,
            insecure=options.insecure,
            json=options.json,
            command=tuple(args[divider + 1 :]),
        )

    def run(self) -> Outcome:
        require_portable(self.command)
        address = jobs.choose_address(self.address, insecure=self.insecure)
        job_id = jobs.submit_job(
            shlex.join(["python", "-m", "reelgpt", *self.command]),
            address=address,
            environment=_environment(),
        )
        summary = {"job_id": job_id, "address": address}
        return self._follow(summary) if self.follow else Outcome(summary=summary, text=job_id)

    def _follow(self, summary: dict[str, Any]) -> Outcome:
        job_id, address = summary["job_id"], summary["address"]
        console().print(f"following job {job_id} at {address}")
        try:
            end = jobs.follow_job(job_id, address=address, write=self._write)
        except KeyboardInterrupt:
            console().print(
                f"\nthe job goes on; follow it with `ray job logs --address {address} --follow {job_id}`, "
                f"stop it with `ray job stop --address {address} {job_id}`",
                soft_wrap=True,
            )
            raise
        console().print(f"job {job_id} {end.status.lower()} with exit code {end.exit_code}")
        return Outcome(
            summary={**summary, "status": end.status, "exit_code": end.exit_code}, exit_code=end.exit_code
        )

    def _write(self, text: str) -> None:
        stream = sys.stderr if self.json else sys.stdout
        stream.write(text)
        stream.flush()


def require_portable(command: Sequence[str]) -> None:
    """Raises UsageError for a command line that is none of ours, would lose files or leak a password."""
    if not command:
        raise UsageError("submit needs a command after `--`, such as `reelgpt submit -- tokenize ...`")
    if command[0] == "submit":
        raise UsageError("a job cannot submit itself; give the command that the cluster shall run")
    secret = next((word for word in command if holds_password(word)), None)
    if secret:
        place = secret.rpartition("@")[2]
        raise UsageError(f"the URI of {place} holds a password, which jobs record; give the cluster one")
    parsed = main.parse(command[0], command[1:])
    places = list(_places(parsed))
    for name, uri in places:
        _require_absolute(name, uri)
    if command[0] in TRACKED or any(is_ref(uri) for _, uri in places):
        _require_lasting_store(command[0])


def _require_absolute(name: str, uri: str) -> None:
    if is_ref(uri) or not storage.is_local(uri) or os.path.isabs(uri.removeprefix("file://")):
        return
    raise UsageError(
        f"{name} {uri!r} is relative: it would lie in the job's working directory and vanish with it; "
        f"give s3://... or an absolute path on a file system that the whole cluster shares"
    )


def _require_lasting_store(name: str) -> None:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    remedy = "set MLFLOW_TRACKING_URI to a server (http://...) or to sqlite:////an/absolute/shared/path.db"
    if not uri:
        raise UsageError(f"{name} uses MLflow, whose own database would vanish with the job; {remedy}")
    path = uri.removeprefix("sqlite:///").removeprefix("file://")
    if "://" not in path and not os.path.isabs(path):
        raise UsageError(f"MLFLOW_TRACKING_URI={uri} is relative and would vanish with the job; {remedy}")


def _environment() -> dict[str, str]:
    passed_on = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    require_no_password(passed_on, kept="jobs record", instead="on the cluster")
    return {**passed_on, COMMIT_VARIABLE: code_commit()}


def _places(command: object) -> Iterator[tuple[str, str]]:
    """Name and value of every input and output of a command; see the markers in `reelgpt.command`."""
    for name, hint in typing.get_type_hints(type(command), include_extras=True).items():
        value = getattr(command, name)
        if dataclasses.is_dataclass(value):
            yield from _places(value)
        elif _is_place(hint):
            uris = value if isinstance(value, tuple) else (value,)
            yield from ((name, uri) for uri in uris if uri is not None)


def _is_place(hint: Any) -> bool:
    """Whether a type is marked, itself or within: `InputUri`, `InputUri | None`, `tuple[InputUri, ...]`."""
    inner = typing.get_args(hint)
    return any(isinstance(part, Place) for part in inner) or any(_is_place(part) for part in inner)
