"""`reelgpt gc`: removes what a sealed shard set needs no more."""

from dataclasses import dataclass

from tyro.conf import Positional

from infra.hashing import MIB
from pipelines.sweep import sweep
from reelgpt.command import InputUri, Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Gc:
    """Removes the span files of a sealed shard set, whose clips are in its shards, and what its manifest
    does not name; also those of other settings, as of a set made again with --redo. Rows of an appending
    that is not finished stay, and those of a set of --score-only or --keep-rejected, which hold what no shard
    does; repeat its command without these options first to be rid of them.

    Example: reelgpt gc tokens --dry-run
    """

    shards: Positional[InputUri]
    """A sealed shard set."""
    dry_run: bool = False
    """Only say what would be removed."""
    json: bool = False
    """One JSON object as the last line of stdout."""

    def run(self) -> Outcome:
        swept = sweep(self.shards, dry_run=self.dry_run)
        summary = {
            "shards": self.shards,
            "dry_run": self.dry_run,
            "files": swept.files,
            "bytes": swept.bytes,
            "kept_units": swept.kept_units,
            "unfinished": swept.unfinished,
            "of_other_settings": swept.of_other_settings,
        }
        verb = "would be removed" if self.dry_run else "removed"
        text = f"{swept.files:,} files ({swept.bytes / MIB:,.1f} MiB) {verb} of {self.shards}"
        if swept.unfinished:
            text += f"; {swept.unfinished:,} unfinished writes of killed commands removed, too"
        if swept.of_other_settings:
            text += (
                f"; {swept.of_other_settings:,} of them hold rows of other settings than the set has now: to "
                f"go back to those is to decode again"
            )
        if swept.kept_units:
            text += f"; {swept.kept_units:,} units keep their rows, which hold what no shard does"
        return Outcome(summary=summary, text=text)
