"""`reelgpt verify`: is this shard set, checkpoint or bundle whole, byte by byte?"""

from collections.abc import Callable
from dataclasses import dataclass

from tyro.conf import Positional

from infra import storage
from infra.errors import UsageError
from reelgpt.command import InputUri, Outcome, find_bundle

DAMAGED = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Verify:
    """Is this shard set, checkpoint or bundle whole? Every byte is read; exit code 1 where something is
    wrong.

    Example: reelgpt verify tokens
    """

    target: Positional[InputUri]
    """A shard set, a checkpoint's folder, a bundle, or a models:/ reference to one."""
    json: bool = False
    """One JSON object as the last line of stdout."""

    def run(self) -> Outcome:
        uri = find_bundle(self.target)
        kind, problems_of = _checker(uri)
        problems = problems_of(uri)
        summary = {"target": uri, "kind": kind, "whole": not problems, "problems": problems}
        text = "\n".join([f"{kind} at {uri}: {'damaged' if problems else 'whole'}", *problems])
        return Outcome(summary=summary, text=text, exit_code=DAMAGED if problems else 0)


def _checker(uri: str) -> tuple[str, Callable[[str], list[str]]]:
    """What lies at `uri`, by the file that makes it whole, and the function that finds what is wrong with
    it."""
    from model import bundle
    from pipelines import shards
    from pipelines.verify import verify
    from training import checkpoints, manifest

    kinds: dict[str, tuple[str, Callable[[str], list[str]]]] = {
        shards.MANIFEST: ("shard set", verify),
        manifest.MANIFEST: ("checkpoint", checkpoints.problems),
        bundle.RECORD: ("bundle", bundle.verify_bundle),
    }
    for name, found in kinds.items():
        if storage.exists(storage.join(uri, name)):
            return found
    raise UsageError(
        f"{uri} is no shard set, checkpoint or bundle: it has none of {', '.join(kinds)}; "
        f"one that was never finished has none either: repeat the command that makes it"
    )
