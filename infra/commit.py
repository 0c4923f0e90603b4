"""Which code runs: the git commit of the checkout, or the one that a submitted job was told."""

import os
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
COMMIT_VARIABLE = "REELGPT_COMMIT"
"""A job runs in a copy of the checkout without its git folder: whoever submits it passes the commit along."""

UNKNOWN = "unknown"


def code_commit(checkout: Path = CHECKOUT) -> str:
    """The commit in hex, with `-dirty` where its files were changed; `unknown` outside a git checkout."""
    told = os.environ.get(COMMIT_VARIABLE)
    if told:
        return told
    if _git(checkout, "rev-parse", "--show-toplevel") != str(checkout):
        return UNKNOWN
    commit = _git(checkout, "rev-parse", "HEAD")
    if commit is None:
        return UNKNOWN
    is_dirty = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if is_dirty else commit


def _git(checkout: Path, *arguments: str) -> str | None:
    """What git answers, or None where there is no git or it refuses."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
