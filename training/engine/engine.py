"""The one door to DeepSpeed's engine: one step, the whole weights, saving and loading.

Nothing is compiled unless the config asks for it. DeepSpeed's files go through our hands in both directions:
see `training.engine.engine_files`.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from infra.errors import CheckpointError, TrainingError
from training.config import RunConfig
from training.engine import ema
from training.engine.activations import checkpoint_blocks
from training.engine.compilation import (
    CompiledShapes,
    allow_any_length,
    compile_model,
    compiling_explained,
)
from training.engine.connection import deepspeed, without_barriers
from training.engine.ema import Ema
from training.engine.engine_files import EngineFiles, Snapshot
from training.engine.hastened import hasten
from training.engine.initialized import initialized
from training.engine.moments import begin_moments
from training.engine.out_of_memory import out_of_memory_explained
from training.engine.owned_weights import Part, by_name, owned_parts, shapes, whole
from training.engine.parameter_groups import adamw, names_in_order
from training.objectives import Examples, Learner
from training.ranks import Ranks
from training.saving.manifest import Checkpoint
from training.saving.verified_files import VerifiedFiles

CLIENT_STATE = "reelgpt"
"""DeepSpeed gives our state back among keys of its own: ours lies under this one."""


class Engine:
    """A learner whose forward gives (objective, sums), trained over all ranks."""

    def __init__(self, learner: Learner, config: RunConfig, ranks: Ranks) -> None:
        self._ranks = ranks
        self._config = config.engine
        self._stage = config.engine.stage_among(ranks.world_size)
        self._clip_norm = config.optimizer.clip_norm
        self._plain_norm = torch.zeros(())
        self._compiled_shapes = CompiledShapes()
        if config.engine.checkpoint_activations:
            checkpoint_blocks(learner.model, reentrant=self._stage == 3)
        if config.engine.compile:
            compile_model(learner.model, ranks)
        optimizer = adamw(learner, config.optimizer)
        self._order = names_in_order(learner, optimizer)
        self._engine = initialized(learner, optimizer, config, ranks.world_size)
        hasten(self._engine, stage=self._stage, world_size=ranks.world_size)
        self._files = EngineFiles(self._engine.checkpoint_engine, ranks.rank)
        self._parts = self._owned_parts()
        decay = config.optimizer.ema_decay
        self._ema = None if decay is None else Ema(self._parts, decay)

    @property
    def device(self) -> torch.device:
        device: torch.device = self._engine.device
        return device

    def metrics(self) -> dict[str, float]:
        """Of the last step. Where fp16 gradients overflowed, they have no norm, and changed no weight."""
        if self._config.dtype != "fp16":
            return {"grad_norm": self._grad_norm()}
        scaling = {
            "loss_scale": float(self._engine.optimizer.loss_scale),
            "skipped_steps": float(self._engine.skipped_steps),
        }
        return ({"grad_norm": self._grad_norm()} if self._engine.was_step_applied() else {}) | scaling

    def compiles_for(self, micro_batches: Sequence[Examples]) -> bool:
        """Whether the update with these takes longer than others, as it is the first of their shapes. Says so
        once."""
        return self._config.compile and self._compiled_shapes.are_new(micro_batches)

    def update(
        self, micro_batches: Sequence[Examples], *, seeds: Sequence[int], lr: float, num_targets: float
    ) -> dict[str, Tensor]:
        """One step of the optimizer over this rank's micro-batches; gives their summed losses, on the device.

        Each objective is a sum over targets and `num_targets` counts those of the whole step, over all ranks,
        so that every target weighs the same wherever it lies. `seeds` set the chance inside the model, per
        micro-batch. Where other ranks have one more, the first is done again, and counts for nothing: what
        ZeRO sends needs all of them.
        """
        # DeepSpeed averages over the ranks: their number undoes that
        weights = [self._ranks.world_size / num_targets] * len(micro_batches)
        rounds = list(zip(micro_batches, seeds, weights, strict=True))
        num_idle = self._engine.gradient_accumulation_steps() - len(rounds)
        rounds += [(micro_batches[0], seeds[0], 0.0)] * num_idle
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        totals: dict[str, Tensor] = {}
        for examples, seed, weight in rounds:
            _seed(self.device, seed)
            with out_of_memory_explained(), self._compiling():
                objective, sums = self._engine(self._move(examples))
                self._engine.backward(objective * weight, scale_wrt_gas=False)
                if self._engine.is_gradient_accumulation_boundary():
                    self._files.finish_copies()
                    if not self._stage:
                        self._clip()
                self._step()
            if weight:
                totals = {name: value + totals.get(name, 0.0) for name, value in sums.items()}
        if self._ema is not None:
            self._ema.update(self._parts)
        return totals

    @torch.no_grad()
    def losses(self, examples: Examples) -> dict[str, Tensor]:
        """Summed losses of a micro-batch, without learning. Under ZeRO-3 all ranks must call together."""
        self._engine.eval()
        with self._compiling():
            _, sums = self._engine(self._move(examples))
        self._engine.train()
        measured: dict[str, Tensor] = sums
        return measured

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model's weights are their average, where one is kept. All ranks must enter together."""
        if self._ema is None:
            yield
            return
        kept = [Part(part.name, part.start, part.values.clone()) for part in self._parts]
        self._put(self._ema.parts)
        try:
            yield
        finally:
            self._put(kept)

    def weights(self) -> dict[str, Tensor] | None:
        """The whole weights, or their average where one is kept, in fp32 on rank 0's host; None elsewhere.

        All ranks must call together.
        """
        parts = by_name(self._parts if self._ema is None else self._ema.parts)
        gathered: dict[str, Tensor] = {}
        for name, shape in shapes(self._engine.module).items():
            full = self._whole(shape, parts.get(name, []))
            if self._ranks.is_first:
                gathered[name] = full.cpu()
        return gathered if self._ranks.is_first else None

    def snapshot(self, root: str, name: str, state: dict[str, Any], *, copied: bool) -> Snapshot:
        """This rank's part of a checkpoint, to be written into `root`/`name`. All ranks must call together.

        Unless it is `copied`, it must be written before the next step. If it is, the copying goes on beside
        the next step, as long as that changes nothing.
        """
        begin_moments(self._engine.optimizer)
        self._files.collect(os.path.join(root, name), copied=copied)
        with without_barriers():
            client_state = {CLIENT_STATE: state}
            self._engine.save_checkpoint(root, tag=name, client_state=client_state, save_latest=False)
        if self._ema is not None:
            self._files.add(ema.file_name(self._ranks.rank), self._ema.tensors())
        return self._files.snapshot()

    def take_copying_seconds(self) -> float:
        """That steps had to wait for a snapshot's copy, since the last time asked."""
        seconds, self._files.waited_seconds = self._files.waited_seconds, 0.0
        return seconds

    def load(self, root: str, checkpoint: Checkpoint, files: VerifiedFiles) -> dict[str, Any]:
        """Reads this rank's part of a checkpoint with verified hashes; gives the state saved with it.

        It was saved by as many ranks at the same ZeRO stage. All ranks must call together.
        """
        self._files.finish_copies()
        with self._files.read_from(files), _other_names_explained(f"{root}/{checkpoint.name}"):
            path, client_state = self._engine.load_checkpoint(root, tag=checkpoint.name)
        if path is None:
            raise CheckpointError(
                f"DeepSpeed cannot read {root}/{checkpoint.name}; take an older one with --resume STEP"
            )
        return self._loaded(root, checkpoint, client_state)

    def load_from_other_layout(self, root: str, checkpoint: Checkpoint) -> dict[str, Any]:
        """The same of a checkpoint with verified hashes that was saved by more or fewer ranks, or at another
        stage."""
        from training.engine import universal

        self._files.finish_copies()
        form, files = universal.converted(root, checkpoint, self._ranks, order=self._order)
        with self._files.read_from(files):
            client_state = universal.load(self._engine, root, form)
        return self._loaded(root, checkpoint, client_state)

    def _loaded(self, root: str, checkpoint: Checkpoint, client_state: dict[str, Any]) -> dict[str, Any]:
        self._parts = self._owned_parts()
        if self._ema is not None:
            self._ema.load(os.path.join(root, checkpoint.name), self._ranks.rank)
        state: dict[str, Any] = client_state[CLIENT_STATE]
        return state

    def close(self) -> None:
        self._engine.destroy()

    def _step(self) -> None:
        try:
            self._engine.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            raise TrainingError(
                "gradients overflow in fp16 even at the smallest loss scale; lower --optimizer.peak-lr, "
                "or train in bf16 (--engine.dtype bf16)"
            ) from None

    def _grad_norm(self) -> float:
        """Of all ranks' gradients in the last step, before clipping."""
        return float(self._engine.get_global_grad_norm() if self._stage else self._plain_norm)

    def _clip(self) -> None:
        """Without ZeRO, DeepSpeed clips and keeps the norm to itself: so that is done here."""
        self._plain_norm = nn.utils.clip_grad_norm_(self._engine.module.parameters(), self._clip_norm)

    def _compiling(self) -> AbstractContextManager[None]:
        return compiling_explained() if self._config.compile else nullcontext()

    def _move(self, examples: Examples) -> Examples:
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in examples.items()}
        if self._config.compile:
            allow_any_length(moved)
        return moved

    def _owned_parts(self) -> list[Part]:
        ranks = self._ranks
        return owned_parts(
            self._engine.module, stage=self._stage, rank=ranks.rank, world_size=ranks.world_size
        )

    def _whole(self, shape: torch.Size, parts: Sequence[Part]) -> Tensor:
        return whole(shape, parts, device=self.device, world_size=self._ranks.world_size)

    @torch.no_grad()
    def _put(self, parts: Sequence[Part]) -> None:
        """Makes the model's weights those of all ranks' parts, one parameter at a time."""
        self._files.finish_copies()
        lying = by_name(parts)
        for name, parameter in self._engine.module.named_parameters():
            at_home = (
                deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
                if self._stage == 3
                else nullcontext()
            )
            with at_home:
                full = self._whole(parameter.shape, lying.get(name, []))
                parameter.copy_(full)


@contextmanager
def _other_names_explained(place: str) -> Iterator[None]:
    """Inside, weights that torch does not know by their names are an error of the checkpoint's."""
    try:
        yield
    except RuntimeError as error:
        if "in loading state_dict" not in str(error):
            raise
        raise CheckpointError(
            f"{place} holds weights of other names than this build's model has; go on with the build that "
            f"wrote it, or train anew in another --run-dir"
        ) from None


def _seed(device: torch.device, seed: int) -> None:
    """Without a GPU, `torch.manual_seed` would keep each seed for one that may come, with a stack trace: for
    ever, and for a millisecond a step."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
