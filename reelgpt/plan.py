"""`reelgpt plan`: what a command will take, before it starts. Each plan is a file of its own."""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from infra.errors import UsageError
from reelgpt import main
from reelgpt.command import Command

PLANS = {
    "tokenize": (
        "reelgpt.plan_tokenize",
        "PlanTokenize",
        "hours, clips, codes, bytes, CPU hours, of a probe",
    ),
    "train": ("reelgpt.plan_train", "PlanTrain", "memory at each ZeRO stage, steps, epochs and hours"),
}
"""Module, class and help of each."""


class Plan:
    """Says what a command will take, without starting it."""

    @classmethod
    def parse(cls, args: Sequence[str]) -> Command:
        """The plan that the first word names, which takes the rest."""
        if args and args[0] in ("-h", "--help"):
            sys.stdout.write(_overview())
            raise SystemExit(0)
        if not args or args[0] not in PLANS:
            given = repr(args[0]) if args else "nothing"
            raise UsageError(f"reelgpt plan has no {given}; it plans {', '.join(PLANS)}")
        module, name, _ = PLANS[args[0]]
        planned: Any = getattr(importlib.import_module(module), name)
        prog, rest = f"plan {args[0]}", args[1:]
        own_grammar = getattr(planned, "parse", None)
        plan: Command = own_grammar(rest) if own_grammar else main.parse_with_tyro(planned, prog, rest)
        return plan


def _overview() -> str:
    lines = [f"  {name:10}{help_line}" for name, (_, _, help_line) in PLANS.items()]
    return "\n".join(
        [
            "usage: reelgpt plan COMMAND ...",
            "",
            "What a command will take, before it starts.",
            "",
            *lines,
            "",
            "`reelgpt plan COMMAND --help` shows the options. Every plan takes --json.",
            "",
            "Example: reelgpt plan tokenize videos --tokenizer models:/tokenizer-tiny@latest",
            "Example: reelgpt plan train gpt_350m --data out/tokens --world-size 8",
            "",
        ]
    )
