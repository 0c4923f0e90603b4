"""`reelgpt plan train`: parameters, bytes a rank, steps and hours of a recipe on a shard set, by formula."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Group
from rich.table import Table

from infra.configs import check_at_least
from reelgpt.command import InputUri, Outcome
from reelgpt.train import parse_with_recipe
from training.config import RunConfig
from training.data import open_data
from training.plan import GB, Machine, plan, with_world_size
from training.recipes import get_recipe

LABELS = {
    "parameters": "parameters",
    "tokens_per_clip": "tokens a clip",
    "tokens_of_longest_clip": "  the longest",
    "frames_per_clip": "frames a clip",
    "steps": "steps",
    "clips_per_step": "clips a step",
    "accumulated": "micro-batches a worker accumulates",
    "epochs": "epochs",
    "tokens": "tokens",
    "frames": "frames",
    "tokens_per_parameter": "tokens a parameter",
    "exaflops": "exaFLOPs",
    "hours": "hours",
    "largest_micro_batch": "largest micro-batch",
    "device_bytes_per_rank": "device bytes a worker, with activations",
}
"""What people are shown, in this order; states stand in a table of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanTrain:
    """What training RECIPE on a shard set will take: memory at each ZeRO stage, steps, epochs, hours.

    Every setting of the recipe can be overridden, as with `reelgpt train`.

    Example: reelgpt plan train gpt_350m --data out/tokens --world-size 8 --memory-gb 80 --mfu 0.4
    """

    recipe: tyro.conf.Positional[str]
    """Of `reelgpt train`."""
    data: tuple[InputUri, ...]
    """The shard set to learn from, or several to mix; --batches.weights says how."""
    world_size: int | None = None
    """Workers; None: as many as the recipe has."""
    memory_gb: float = 80.0
    """Of one worker's device, in units of 10^9 bytes."""
    peak_tflops: float = 989.0
    """Of one worker's device in the run's dtype; an H100's in dense bf16."""
    mfu: float = 0.4
    """Share of the peak that the model's arithmetic reaches; `reelgpt train` measures it on a GPU."""
    tokenizer: InputUri | None = None
    """Where the bundle is of the tokenizer that made the codes, if it has moved since."""
    json: bool = False
    """One JSON object as the last line of stdout."""
    config: Annotated[RunConfig | None, tyro.conf.Suppress] = None
    """The recipe with the overrides; None: the recipe as it stands."""

    @classmethod
    def parse(cls, args: Sequence[str]) -> "PlanTrain":
        options: PlanTrain = parse_with_recipe(cls, "plan train", args)
        return options

    def run(self) -> Outcome:
        config = self.config or get_recipe(self.recipe)
        world_size = config.num_workers if self.world_size is None else self.world_size
        check_at_least(1, world_size=world_size)
        config = with_world_size(config, world_size)
        data = open_data(config, self.data, tokenizer=self.tokenizer)
        machine = Machine(memory_gb=self.memory_gb, peak_tflops=self.peak_tflops, mfu=self.mfu)
        facts = plan(config, data, machine) | {"machine": dataclasses.asdict(machine)}
        return Outcome(summary=facts, text=Group(_table(facts), _memory(facts)))


def _table(facts: dict[str, Any]) -> Table:
    title = f"{facts['recipe']} on {facts['world_size']} workers"
    table = Table(title=title, title_justify="left", show_header=False)
    for name, label in LABELS.items():
        if name in facts:
            value = facts[name]
            table.add_row(label, f"{value:.4g}" if isinstance(value, float) else f"{value:,}")
    return table


def _memory(facts: dict[str, Any]) -> Table:
    title = f"GB of states a worker in {facts['dtype']}, while its gradients are whole"
    columns = "ZeRO stage", "offloaded", "weights", "gradients", "optimizer", "all", "device", "host"
    table = Table(*columns, title=title, title_justify="left")
    for row in facts["states"]:
        offloaded = [name for name in ("optimizer", "parameters") if row[f"offload_{name}"]]
        device, host = row["device"], row["host"]
        parts = (device[name] + host[name] for name in ("weights", "gradients", "optimizer", "total"))
        sizes = [f"{size / GB:.3g}" for size in (*parts, device["total"], host["total"])]
        chosen = " (chosen)" if row["is_chosen"] else ""
        table.add_row(f"{row['zero_stage']}{chosen}", " and ".join(offloaded) or "nothing", *sizes)
    return table
