"""A refusal as a word that travels: from a worker to its command, or to the other workers."""

from typing import Any

from infra import errors
from infra.errors import ReelgptError

Word = dict[str, Any]


def word_of(error: ReelgptError) -> Word:
    return {"refusal": type(error).__name__, "message": str(error)}


def error_of(word: Word) -> ReelgptError:
    error: ReelgptError = getattr(errors, word["refusal"])(word["message"])
    return error
