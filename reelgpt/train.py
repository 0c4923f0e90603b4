"""`reelgpt train`: a recipe on a shard set, in a run directory; repeating the command goes on with it."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import tyro
from rich.table import Table

from infra import storage
from infra.errors import UsageError
from infra.registry import find_bundle
from reelgpt import main
from reelgpt.command import InputUri, Outcome, OutputUri
from reelgpt.console import Bar, track
from training.config import RunConfig
from training.launching import announced
from training.launching.launch import Launcher, train
from training.recipes import RECIPES, get_recipe
from training.verify_commands import Place
from training.verify_resume import Verdict, verify_resume

ANY_RECIPE = next(iter(RECIPES))
"""Whose settings `--help` shows before a recipe is named."""

DEFAULT_HALF = 5
DISAGREES = 1
LABELS = {
    "steps_done": "steps",
    "resumed_from": "resumed from step",
    "seconds_per_step": "seconds per step",
    "first_loss": "first loss",
    "last_loss": "last loss",
    "val_loss": "held-out loss",
    "val_loss_unigram": "  unigram baseline",
    "val_loss_bigram": "  bigram baseline",
    "val_bits_per_pixel": "held-out bits per pixel",
    "val_psnr": "held-out PSNR, dB",
    "val_psnr_mean_colour": "  mean colour baseline",
    "codebook_usage": "codebook used",
    "bundle": "model",
    "model_version": "model version",
    "mlflow_run_id": "MLflow run",
}
"""What the table for people shows of a summary, in this order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Trains RECIPE on a shard set. Repeating the command resumes, and does nothing once the run is finished.

    Recipes: tokenizer_tiny (frames); gpt_tiny, gpt_350m (tokens). Every setting can be overridden.
    Exit code 75: stopped by a signal, with everything saved.

    Example: reelgpt train gpt_tiny --data out/tokens --run-dir out/gpt --steps 100 --engine.zero-stage 3
    """

    recipe: tyro.conf.Positional[str]
    """tokenizer_tiny, gpt_tiny or gpt_350m."""
    data: tuple[InputUri, ...]
    """The shard set to learn from, or several to mix; --batches.weights says how."""
    run_dir: OutputUri
    """Folder of the run, which all workers can reach: checkpoints, metrics, samples, the model."""
    launcher: Launcher = "auto"
    """local: one worker, here. ray, torchrun, deepspeed: several. auto: local for one worker, else ray."""
    resume: str = "auto"
    """auto: from the newest whole checkpoint, if there is one. must, never, or STEP: back to its checkpoint,
    forgetting all after it. This happens once: repeated, the command goes on from where it was. STEP/2 goes
    back to the same step a second time, STEP/3 a third."""
    tokenizer: InputUri | None = None
    """Where the bundle is of the tokenizer that made the codes, if it has moved since."""
    init_from: InputUri | None = None
    """A model (path, URI or models:/ reference) whose weights a new run starts from: fine-tuning."""
    verify_resume: int | None = None
    """Trains nothing to keep: shows on this config and data, in scratch folders beside RUN_DIR, that N steps,
    a kill and the command repeated for N more are 2N steps. Without a number, N is 5. Exit code 1 where they
    are not. On a GPU by kernels that repeat, which the run itself takes with --engine.deterministic."""
    verify_workers: int | None = None
    """With --verify-resume: go on after the kill on that many workers; then within a tolerance."""
    verify_zero_stage: int | None = None
    """With --verify-resume: go on after the kill at that ZeRO stage; then within a tolerance."""
    register: bool = True
    """On by default: the finished run becomes a version of the model --register-as in the registry."""
    json: bool = False
    """One JSON object as the last line of stdout."""
    config: Annotated[RunConfig | None, tyro.conf.Suppress] = None
    """The recipe with the overrides; None: the recipe as it stands."""

    @classmethod
    def parse(cls, args: Sequence[str]) -> "Train":
        options: Train = parse_with_recipe(cls, "train", [*with_default_half(args), *_announced_workers()])
        return options

    def run(self) -> Outcome:
        config = self._config()
        announced.adopt()
        if self.verify_resume is not None:
            _refuse_launched()
            return self._verify(config, self.verify_resume)
        if self.verify_workers is not None or self.verify_zero_stage is not None:
            raise UsageError(
                "--verify-workers and --verify-zero-stage have no effect without --verify-resume"
            )
        if announced.rank() > 0:  # under a launcher of the user's the first worker speaks for all
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return Outcome(summary=self._train(config, None))
        with track(f"train {self.recipe}", total=config.steps) as bar:
            summary = self._train(config, bar)
            bar.update(summary["steps_done"])
        return Outcome(summary=summary, text=_table(summary))

    def _config(self) -> RunConfig:
        recipe = get_recipe(self.recipe)
        config = self.config or recipe
        if self.register:
            return config
        if config.register_as != recipe.register_as:
            raise UsageError(
                f"--register-as {config.register_as} has no effect with --no-register; leave one of them out"
            )
        return dataclasses.replace(config, register_as=None)

    def _verify(self, config: RunConfig, half: int) -> Outcome:
        place = Place(
            data=tuple(storage.absolute(uri) for uri in self.data),
            scratch=f"{storage.absolute(self.run_dir)}.verify-resume",
            launcher=self.launcher,
            tokenizer=self.tokenizer,
            init_from=find_bundle(self.init_from) if self.init_from else None,
        )
        with track(f"verify {self.recipe}", total=3) as bar:
            verdict = verify_resume(
                config, place, half=half, workers=self.verify_workers, zero_stage=self.verify_zero_stage,
                on_done=bar.update,
            )  # fmt: skip
        return Outcome(
            summary=verdict.summary(),
            text=verdict_table(verdict),
            exit_code=0 if verdict.agrees else DISAGREES,
        )

    def _train(self, config: RunConfig, bar: Bar | None) -> dict[str, Any]:
        return train(
            config,
            data=self.data,
            run_dir=self.run_dir,
            launcher=self.launcher,
            resume=self.resume,
            tokenizer=self.tokenizer,
            init_from=self.init_from,
            on_metrics=None if bar is None else partial(_show, bar),
        )


def _announced_workers() -> list[str]:
    """Under a launcher of the user's it says how many there are, and not the recipe."""
    announced.adopt()
    return [f"--num-workers={announced.world_size()}"] if announced.is_worker() else []


def _refuse_launched() -> None:
    """Each worker would start, kill and delete the runs of the others."""
    if announced.is_worker():
        workers = announced.world_size()
        raise UsageError(
            f"--verify-resume starts and kills workers of its own, and a launcher started this process as "
            f"one of {workers}; give the command without it, with --num-workers {workers} --launcher torchrun"
        )


def with_default_half(args: Sequence[str]) -> list[str]:
    """`--verify-resume` may stand without its number."""
    given = list(args)
    for i in reversed([i for i, word in enumerate(given) if word == "--verify-resume"]):
        if not given[i + 1 : i + 2] or not given[i + 1].lstrip("-").isdigit():
            given.insert(i + 1, str(DEFAULT_HALF))
    return given


def parse_with_recipe(command: type[Any], name: str, args: Sequence[str]) -> Any:
    """The options are those of the recipe that is named, wherever it stands among them; None unsets what the
    recipe sets."""
    if sum(word.partition("=")[0] == "--data" for word in args) > 1:
        raise UsageError("--data is given twice; name several shard sets after one --data")
    args = _recipe_first(args)
    named = bool(args) and not args[0].startswith("-")
    guess = args[0] if named else next((word for word in args if word in RECIPES), ANY_RECIPE)
    options = main.parse_with_tyro(_with_settings(command, guess), name, args, takes_none=True)
    if options.recipe != guess:
        settings = _with_settings(command, options.recipe)
        options = main.parse_with_tyro(settings, name, args, takes_none=True)
    return options


def _recipe_first(args: Sequence[str]) -> Sequence[str]:
    """Options such as `--data A B` take what follows; a recipe's name after such a word is the recipe."""
    last = next((i for i in range(len(args) - 1, 0, -1) if _is_recipe(args[i - 1], args[i])), 0)
    return args if not last or args[0] in RECIPES else [args[last], *args[:last], *args[last + 1 :]]


def _is_recipe(before: str, word: str) -> bool:
    return word in RECIPES and not before.startswith("-")


def _show(bar: Bar, line: dict[str, float]) -> None:
    bar.update(line["step"], note=f"loss {line['loss']:.3f}")


def _with_settings(command: type[Any], recipe: str) -> type[Any]:
    """A command with the settings of a recipe as options of their own: `--steps`, `--engine.zero-stage`."""
    settings = Annotated[RunConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    config = field(default=get_recipe(recipe))
    return dataclasses.make_dataclass(
        command.__name__,
        [("config", settings, config)],
        bases=(command,),
        namespace={"__doc__": command.__doc__},
        frozen=True,
        kw_only=True,
        slots=True,
    )


def verdict_table(verdict: Verdict) -> Table:
    before, after = verdict.topologies
    again = "the command repeated" if verdict.resume == "auto" else f"--resume {verdict.resume}"
    title = (
        f"{verdict.steps} steps at once, and SIGKILL after step {verdict.killed_after} + {again} from step "
        f"{verdict.resumed_from}: {'they agree' if verdict.agrees else 'THEY DIFFER'}\n"
        f"{before}; after the kill {after}"
    )
    table = Table(title=title, title_justify="left")
    for column in ("compared", "difference", "allowed", "agrees"):
        table.add_column(column)
    for item in verdict.comparisons:
        allowed = f"{item.tolerance:g}" if item.tolerance else "none: to the last bit"
        table.add_row(item.what, f"{item.difference:.3g}", allowed, "yes" if item.agrees else "NO")
    return table


def _table(summary: dict[str, Any]) -> Table:
    state = "was finished already" if summary["was_finished"] else "finished"
    table = Table(title=f"{summary['recipe']}: {state}", title_justify="left", show_header=False)
    for name, label in LABELS.items():
        if summary.get(name) is not None:
            value = summary[name]
            table.add_row(label, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table
