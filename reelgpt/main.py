"""The front door: finds a command by its name, parses its arguments, runs it, and gives its exit code.

A command's module is imported only when its name is called, and what is heavy only when it runs, so that
`--help` and every refusal are instant. What a command does is its own file's matter: `reelgpt NAME` is
`reelgpt/NAME.py`.
"""

import contextlib
import difflib
import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from infra.errors import ReelgptError, Stopped, UsageError
from infra.signals import hear_no_more
from reelgpt.complaint import sentence
from reelgpt.options import refuse_repeated
from reelgpt.stopping import interruptible

if TYPE_CHECKING:  # it is heavy, and a signal may come at once
    from reelgpt.command import Command, Outcome

COMMANDS = {
    "demo": ("Demo", "the whole journey, from real videos to a registered model and a report"),
    "extract": ("Extract", "videos to frame shards"),
    "tokenize": ("Tokenize", "videos or frame shards to token shards"),
    "verify": ("Verify", "is this shard set, checkpoint or bundle whole?"),
    "explain": ("Explain", "where one clip came from, and its picture"),
    "failures": ("Failures", "which spans failed and why; another try of those of a class"),
    "gc": ("Gc", "remove what a sealed shard set needs no more"),
    "train": ("Train", "a tokenizer or a GPT on a shard set; repeating the command resumes"),
    "plan": ("Plan", "what a command will take, before it starts"),
    "evaluate": ("Evaluate", "a model's numbers beside their baselines"),
    "generate": ("Generate", "a video from a model, beside the truth and copy-last-frame"),
    "models": ("Models", "ask the model registry"),
    "submit": ("Submit", "run any of these commands as a Ray job"),
    "report": ("Report", "one self-contained page of what a journey made"),
}

INTERRUPTED = 130
PIPE_COLUMNS = 120
"""Width of a table where no terminal says how wide it is."""


def run() -> None:
    try:
        with interruptible():
            code = main(_without_launchers_words(sys.argv[1:]))
    except BrokenPipeError:  # nobody reads on, as in `reelgpt --help | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ReelgptError.exit_code
    if code == Stopped.exit_code:
        hear_no_more()
    sys.exit(code)


def _without_launchers_words(args: Sequence[str]) -> Sequence[str]:
    """`deepspeed` tells every worker its local rank as an argument, beside the environment."""
    return [word for word in args if "RANK" not in os.environ or not word.startswith("--local_rank=")]


def main(args: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; only our own bugs leave as a traceback."""
    if not args or args[0] in ("-h", "--help"):
        _say(_overview())
        return 0 if args else UsageError.exit_code
    as_json = "--json" in _own_options(args)
    try:
        return _show(parse(args[0], args[1:]).run(), as_json)
    except ReelgptError as error:
        return _refuse(error, as_json)
    except KeyboardInterrupt as signal:
        if signal.args:
            return _refuse(Stopped("stopped by a signal; repeat the command to go on"), as_json)
        _complain("error: interrupted")
        return INTERRUPTED


def _own_options(args: Sequence[str]) -> Sequence[str]:
    """The arguments before `--`: what follows belongs to somebody else's command line."""
    return args[: args.index("--")] if "--" in args else args


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {help_line}" for name, (_, help_line) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: reelgpt COMMAND ...",
            "",
            "From a bucket of videos to a visual GPT in a model registry.",
            "",
            *lines,
            "",
            "`reelgpt COMMAND --help` shows the options and an example. Every command takes --json.",
            "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 too many bad inputs, 75 stopped with all kept.",
        ]
    )


def parse(name: str, args: Sequence[str]) -> "Command":
    from infra.configs import check_finite

    command_class = _find(name)
    own_grammar = getattr(command_class, "parse", None)
    command: Command = own_grammar(args) if own_grammar else parse_with_tyro(command_class, name, args)
    check_finite(command)
    return command


def _find(name: str) -> Any:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(COMMANDS)}"
        raise UsageError(f"reelgpt has no command {name!r}; {remedy}")
    return getattr(importlib.import_module(f"reelgpt.{name}"), COMMANDS[name][0])


def parse_with_tyro(command_class: Any, name: str, args: Sequence[str], *, takes_none: bool = False) -> Any:
    """An instance of `command_class` from its arguments. Prints the help and exits if that was asked for.

    `takes_none`: the word None unsets an option that may be left out.
    """
    import tyro

    refuse_repeated(command_class, args)
    style: tuple[Any, ...] = (tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName)
    if not takes_none:
        style = (*style, tyro.conf.DisallowNone)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(command_class, prog=f"reelgpt {name}", args=args, config=style)
    except SystemExit as stop:
        if not stop.code:
            raise
    raise UsageError(sentence(complaint.getvalue(), f"reelgpt {name}"))


def _show(outcome: "Outcome", as_json: bool) -> int:
    if as_json:
        _say(json.dumps(outcome.summary))
    elif outcome.text != "":
        from rich.console import Console

        width = None if sys.stdout.isatty() else PIPE_COLUMNS
        Console(highlight=False, width=width).print(outcome.text, crop=False)  # lines to copy stay whole
    return outcome.exit_code


def _refuse(error: ReelgptError, as_json: bool) -> int:
    _complain(f"error: {error}")
    if as_json:
        _say(json.dumps({"error": str(error), "exit_code": error.exit_code}))
    return error.exit_code


def _complain(text: str) -> None:
    """On a terminal that was closed nobody hears it; the exit code is given all the same."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201
