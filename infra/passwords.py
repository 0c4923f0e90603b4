"""Passwords inside URIs, where somebody would keep them: found, and refused with the remedy."""

import re
from collections.abc import Mapping

from infra.errors import UsageError

_IN_A_URI = re.compile(r"://[^/@\s]*:[^/@\s]+@")


def holds_password(text: str) -> bool:
    return _IN_A_URI.search(text) is not None


def require_no_password(environment: Mapping[str, str], *, kept: str, instead: str) -> None:
    """Raises UsageError where a variable has one: `kept` says who would, `instead` where MLflow's belong."""
    for name, value in environment.items():
        if holds_password(value):
            raise UsageError(
                f"{name} has a password in it, which {kept}; set MLFLOW_TRACKING_USERNAME and "
                f"MLFLOW_TRACKING_PASSWORD {instead} instead"
            )
