"""The front door: instant help and refusals, exit codes, JSON as the last line."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import pytest
import tyro

from infra.errors import BundleError, RegistryError, ShardError, Stopped, UsageError
from reelgpt import main as front_door
from reelgpt.command import Outcome

HEAVY = ("torch", "ray", "mlflow", "deepspeed", "av", "decord", "pandas")
REFUSALS = [
    ["extrakt"],
    ["extract"],
    ["extract", "no-such-folder", "--out", "frames"],
    ["tokenize", "no-such-folder", "--out", "tokens", "--tokenizer", "no-such-bundle"],
    ["train", "no_such_recipe", "--data", "tokens", "--run-dir", "run"],
    ["train", "gpt_tiny", "--data", "tokens", "--run-dir", "run", "--optimizer.peak-lr", "nan"],
    ["train", "gpt_tiny", "--data", "tokens", "--run-dir", "run", "--watchdog.grace-seconds", "inf"],
    ["plan", "train", "gpt_tiny", "--data", "tokens", "--mfu", "nan"],
    ["plan", "train", "gpt_tiny", "--data", "tokens", "--world-size", "0"],
    ["verify", "no-such-folder"],
    ["generate", "no-such-bundle", "--input", "a.mp4", "--out", "b.mp4"],
    ["generate", "bundle", "--input", "a.mp4", "--out", "b.mp4", "--seed", "many"],
    ["generate", "bundle", "--task", "paint", "--input", "a.mp4", "--out", "b.mp4"],
    ["report", "--out", "report.html"],
    ["demo", "--videos", "no-such-folder"],
    ["demo", "--gpt-steps", "0"],
    ["submit", "--", "extract", "videos", "--out", "frames"],
]


class Answer(NamedTuple):
    code: int
    out: str
    errors: str
    heavy: list[str]
    """Modules that the interpreter had imported by then."""


def run_apart(*commands: list[str], folder: Path | None = None) -> list[Answer]:
    """What each says, one after another in a fresh interpreter."""
    program = (
        "import contextlib, io, json, sys, reelgpt.main\n"
        "for args in json.loads(sys.argv[1]):\n"
        "    out, errors = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):\n"
        "        try: code = reelgpt.main.main(args)\n"
        "        except SystemExit as stop: code = stop.code or 0\n"
        f"    heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "    print(json.dumps([code, out.getvalue(), errors.getvalue(), heavy]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)],
        capture_output=True, text=True, timeout=60, check=True, cwd=folder,
    )  # fmt: skip
    return [Answer(*json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    commands = [[name, "--help"] for name in front_door.COMMANDS]
    answers = run_apart(["--help"], *commands, folder=tmp_path_factory.mktemp("helps"))
    return dict(zip(("", *front_door.COMMANDS), answers, strict=True))


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    answers = run_apart(*REFUSALS, folder=tmp_path_factory.mktemp("refusals"))
    return dict(zip(map(" ".join, REFUSALS), answers, strict=True))


def test_help_names_every_command_and_imports_nothing_heavy(helps: dict[str, Answer]) -> None:
    code, out, _, heavy = helps[""]
    assert code == 0
    assert not heavy
    assert all(f"  {name} " in out for name in front_door.COMMANDS)


@pytest.mark.parametrize("name", front_door.COMMANDS)
def test_the_help_of_a_command_ends_with_an_example_and_imports_nothing_heavy(
    name: str, helps: dict[str, Answer]
) -> None:
    code, out, _, heavy = helps[name]
    assert code == 0
    assert "Example: reelgpt " + name in out
    assert "--json" in out
    assert not heavy


@pytest.mark.parametrize("command", [" ".join(args) for args in REFUSALS])
def test_a_refusal_is_one_sentence_and_imports_nothing_heavy(
    command: str, refusals: dict[str, Answer]
) -> None:
    code, out, errors, heavy = refusals[command]
    assert code == (BundleError if "no-such-bundle" in errors else UsageError).exit_code
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert out == ""
    assert not heavy


@pytest.mark.parametrize(
    ("end", "named"),
    [
        ("--optimizer.peak-lr nan", "optimizer.peak_lr=nan must be a finite number"),
        ("--watchdog.grace-seconds inf", "watchdog.grace_seconds=inf must be a finite number"),
        ("--mfu nan", "mfu=nan must be a finite number"),
        ("--world-size 0", "world_size=0 must be at least 1"),
    ],
)
def test_a_number_that_cannot_be_is_refused_by_its_name(
    end: str, named: str, refusals: dict[str, Answer]
) -> None:
    (answer,) = (answer for command, answer in refusals.items() if command.endswith(end))
    assert named in answer.errors


@pytest.mark.parametrize(
    "args",
    [["models", "show", "nothing"], ["generate", "models:/nothing@best", "--input", "a", "--out", "b.mp4"]],
)
def test_a_registry_that_does_not_exist_yet_refuses_at_once_and_is_not_made(args: list[str]) -> None:
    code, out, errors, heavy = run_apart(args)[0]
    assert (code, out) == (RegistryError.exit_code, "")
    assert "has no model 'nothing'; its models: none yet" in errors
    assert not heavy
    assert not Path("mlflow.db").exists()


@pytest.mark.parametrize("action", [["list"], ["search", "val_loss < 3"]])
def test_a_registry_that_does_not_exist_yet_lists_nothing_at_once_and_is_not_made(action: list[str]) -> None:
    code, out, errors, heavy = run_apart(["models", *action])[0]
    assert (code, errors) == (0, "")
    assert out.startswith("no model version")
    assert not heavy
    assert not Path("mlflow.db").exists()


def test_a_model_or_an_input_that_generate_cannot_use_is_refused_before_torch_is_imported(
    gpt_bundle: str, tokenizer_bundle: str
) -> None:
    Path("notes.mp4").write_text("no video")
    given = ((gpt_bundle, "notes.mp4"), (gpt_bundle, "gone.mp4"), (tokenizer_bundle, "notes.mp4"))
    commands = [["generate", model, "--input", media, "--out", "next.mp4"] for model, media in given]
    for code, out, errors, heavy in run_apart(*commands):
        assert (code, out, len(errors.splitlines())) == (UsageError.exit_code, "", 1)
        assert not heavy


@dataclass(frozen=True, kw_only=True)
class Echo:
    """Says what it was given.

    Example: reelgpt echo hello
    """

    word: tyro.conf.Positional[str]
    times: Annotated[int, "unknown to tyro"] = 1
    json: bool = False

    def run(self) -> Outcome:
        if self.word == "broken":
            raise ShardError("the shard is broken; make it again")
        if self.word == "stopped":
            raise Stopped("stopped at step 3")
        if self.word == "interrupted":
            raise KeyboardInterrupt
        if self.word == "bug":
            raise RuntimeError("ours")
        return Outcome(
            summary={"word": self.word}, text=self.word * self.times, exit_code=3 if self.times > 2 else 0
        )


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_door, "_find", lambda _: Echo)


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize(
    ("args", "code"), [(["hi"], 0), (["hi", "--times", "3"], 3), (["broken"], 1), (["stopped"], 75), ([], 2)]
)
def test_what_happens_in_a_command_becomes_the_exit_code(args: list[str], code: int) -> None:
    assert front_door.main(["echo", *args]) == code


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_a_signal_at_the_very_start_is_one_sentence(number: signal.Signals, code: int) -> None:
    program = (
        "import os, sys, reelgpt.main as front_door\n"
        f"front_door.parse = lambda *_: os.kill(os.getpid(), {int(number)})\n"
        "assert 'rich' not in sys.modules, 'importing that takes a while, which a signal would interrupt'\n"
        "front_door.run()"
    )
    args = [sys.executable, "-c", program, "verify", "out"]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert re.fullmatch(r"error: (stopped by a signal; repeat the command.*|interrupted)\n", done.stderr)


@pytest.mark.usefixtures("echo")
def test_a_command_that_has_nothing_to_say_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert front_door.main(["echo", ""]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("echo")
def test_an_interrupt_exits_130_and_a_bug_keeps_its_traceback() -> None:
    assert front_door.main(["echo", "interrupted"]) == 130
    with pytest.raises(RuntimeError, match="ours"):
        front_door.main(["echo", "bug"])


@pytest.mark.usefixtures("echo")
def test_json_is_the_last_line_of_stdout_for_results_and_for_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    front_door.main(["echo", "hi", "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"word": "hi"}
    front_door.main(["echo", "broken", "--json"])
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said == {"error": "the shard is broken; make it again", "exit_code": 1}


@pytest.mark.usefixtures("echo")
def test_json_after_two_dashes_belongs_to_the_other_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert front_door.main(["echo", "broken", "--", "--json"]) != 0
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("echo")
def test_a_wrong_option_is_told_in_one_line_with_the_nearest_right_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert front_door.main(["echo", "hi", "--time", "3"]) == 2
    errors = capsys.readouterr().err
    assert "--time" in errors
    assert "--times" in errors
    assert len(errors.splitlines()) == 1


def test_no_command_at_all_shows_the_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert front_door.main([]) == 2
    assert "usage: reelgpt COMMAND" in capsys.readouterr().out
