"""`reelgpt verify`: is this shard set, checkpoint or bundle whole, byte by byte?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tyro.conf import Positional

from infra import storage
from infra.errors import ConfigError, UsageError
from infra.registry import find_bundle
from reelgpt.command import InputUri, Outcome
from reelgpt.console import track

DAMAGED = 1
SHARD_SET = "shard set"
LISTED = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Verify:
    """Is this shard set, checkpoint or bundle whole? Every byte is read, and nothing that a manifest says is
    believed; exit code 1 where something is wrong. With --deep, clips of a shard set are also decoded again
    from their sources, tokenized again, and compared.

    Example: reelgpt verify tokens --deep --sample 50
    """

    target: Positional[InputUri]
    """A shard set, a checkpoint's folder, a bundle, or a models:/ reference to one."""
    deep: bool = False
    """Of a shard set: decode a sample of its clips again, and compare frames or codes."""
    sample: int = 20
    """Clips to decode again; the whole span of each is decoded, as it was at first."""
    seed: int = 0
    """Which clips those are: another seed, others."""
    tokenizer: InputUri | None = None
    """Where the tokenizer that made the codes is now; by default, where it was then."""
    json: bool = False
    """One JSON object as the last line of stdout."""

    def run(self) -> Outcome:
        self._check()
        uri = find_bundle(self.target)
        kind, problems_of = _checker(uri)
        if self.deep and kind != SHARD_SET:
            raise UsageError(f"{uri} is a {kind}, which holds no clips; --deep is for shard sets")
        problems = problems_of(uri)
        summary = {"target": uri, "kind": kind, "whole": not problems}
        if self.deep and not problems:
            summary |= self._compared(uri, problems)
        lines = [f"{kind} at {uri}: {_verdict(summary)}", *problems[:LISTED]]
        if len(problems) > LISTED:
            lines.append(f"and {len(problems) - LISTED:,} more; --json has them all")
        return Outcome(
            summary=summary | {"problems": problems},
            text="\n".join(lines),
            exit_code=DAMAGED if problems else 0,
        )

    def _check(self) -> None:
        if self.sample < 1:
            raise ConfigError(f"sample={self.sample} compares nothing; give at least 1")
        default = Verify(target="")
        for name in ("sample", "seed", "tokenizer"):
            if not self.deep and getattr(self, name) != getattr(default, name):
                raise ConfigError(f"{name} has no effect without --deep")

    def _compared(self, uri: str, problems: list[str]) -> dict[str, Any]:
        """Counts of the comparison, whose problems are added to those given."""
        from pipelines.checking import deep
        from pipelines.shards import ShardSet
        from reelgpt.tokenize import tokenizer_of

        shard_set = ShardSet.open(uri)
        reference = self.tokenizer or shard_set.manifest.tokenizer
        with track("compare") as bar:
            found = deep.compare(
                shard_set,
                num_clips=self.sample,
                seed=self.seed,
                tokenizer=tokenizer_of(reference) if reference else None,
                on_clip=bar.update,
            )
        problems += found.problems
        return {"sampled": found.sampled, "compared": found.compared, "equal": found.equal}


def _verdict(summary: dict[str, Any]) -> str:
    verdict = "whole" if summary["whole"] else "damaged"
    if "sampled" in summary:
        verdict += (
            f"; of {summary['sampled']:,} clips {summary['compared']:,} were decoded again, and "
            f"{summary['equal']:,} came out the same"
        )
    return verdict


def _checker(uri: str) -> tuple[str, Callable[[str], list[str]]]:
    """What lies at `uri`, by the file that makes it whole, and the function that finds what is wrong with
    it."""
    from model import bundle
    from pipelines import shards
    from training.saving import checkpoints, manifest

    kinds: dict[str, tuple[str, Callable[[str], list[str]]]] = {
        shards.MANIFEST: (SHARD_SET, _verify_shard_set),
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


def _verify_shard_set(uri: str) -> list[str]:
    from pipelines.checking.verify import verify

    with track("verify") as bar:
        return verify(uri, bar.update)
