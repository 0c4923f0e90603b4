"""The one door to DeepSpeed: one step, the whole weights, saving and loading.

Nothing is compiled: torch's AdamW, and gloo without DeepSpeed's shared-memory extension. DeepSpeed's files go
through our hands in both directions: hashed while they are written, and read only as data (`weights_only`),
never as code.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from infra.errors import CheckpointError, StorageError
from training.batches_config import BatchesConfig
from training.checkpoints import FileRecord, hashed_file
from training.engine_config import EngineConfig, OptimizerConfig
from training.objectives import Examples
from training.ranks import Ranks

if not torch.cuda.is_available():
    os.environ.setdefault(
        "DS_ACCELERATOR", "cpu"
    )  # before the import, which otherwise looks for one and warns
import deepspeed
from deepspeed import comm
from deepspeed.utils import safe_get_full_fp32_param

CLIENT_STATE = "reelgpt"
"""DeepSpeed gives our state back among keys of its own: ours lies under this one."""
HANG_TIMEOUT = timedelta(minutes=30)


class Engine:
    """A learner whose forward gives (objective, sums), trained over all ranks."""

    def __init__(
        self,
        learner: nn.Module,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        batches: BatchesConfig,
        ranks: Ranks,
    ) -> None:
        self._ranks = ranks
        self._stage = config.zero_stage
        self._clip_norm = optimizer.clip_norm
        self._plain_norm = torch.zeros(())
        self._engine, *_ = deepspeed.initialize(
            model=learner,
            optimizer=_adamw(learner, optimizer),
            config=_settings(config, optimizer, batches, ranks.world_size),
            dist_init_required=False,
        )
        self._files = _Files(self._engine.checkpoint_engine, ranks.rank)

    @property
    def device(self) -> torch.device:
        device: torch.device = self._engine.device
        return device

    @property
    def grad_norm(self) -> float:
        """Global norm of the last step's gradients, before clipping."""
        return float(self._engine.get_global_grad_norm() if self._stage else self._plain_norm)

    def update(
        self, micro_batches: Sequence[Examples], *, seeds: Sequence[int], lr: float, num_targets: float
    ) -> dict[str, Tensor]:
        """One step of the optimizer over this rank's micro-batches; gives their summed losses, on the device.

        Each objective is a sum over targets and `num_targets` counts those of the whole step, over all ranks,
        so that every target weighs the same wherever it lies. `seeds` set the chance inside the model, per
        micro-batch.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        totals: dict[str, Tensor] = {}
        for examples, seed in zip(micro_batches, seeds, strict=True):
            torch.manual_seed(seed)
            objective, sums = self._engine(self._move(examples))
            # DeepSpeed averages over the ranks: their number undoes that
            self._engine.backward(objective * (self._ranks.world_size / num_targets), scale_wrt_gas=False)
            if not self._stage and self._engine.is_gradient_accumulation_boundary():
                self._clip()
            self._engine.step()
            totals = {name: value + totals.get(name, 0.0) for name, value in sums.items()}
        return totals

    @torch.no_grad()
    def losses(self, examples: Examples) -> dict[str, Tensor]:
        """Summed losses of a micro-batch, without learning. Under ZeRO-3 all ranks must call together."""
        self._engine.eval()
        _, sums = self._engine(self._move(examples))
        self._engine.train()
        measured: dict[str, Tensor] = sums
        return measured

    def weights(self) -> dict[str, Tensor] | None:
        """The whole weights in fp32 on rank 0's host, None elsewhere. All ranks must call together."""
        learner: nn.Module = self._engine.module
        whole: dict[str, Tensor] = {}
        for name, parameter in learner.named_parameters():
            full = safe_get_full_fp32_param(parameter) if self._stage else parameter
            if self._ranks.is_first:
                whole[name] = full.detach().float().cpu().clone()
        if not self._ranks.is_first:
            return None
        return whole

    def save(self, root: str, name: str, state: dict[str, Any]) -> list[FileRecord]:
        """Writes this rank's part of a checkpoint into `root`/`name`. All ranks must call together."""
        with self._files.written_below(os.path.join(root, name)) as records:
            self._engine.save_checkpoint(
                root, tag=name, client_state={CLIENT_STATE: state}, save_latest=False
            )
        return records

    def load(self, root: str, name: str) -> dict[str, Any]:
        """Reads this rank's part of a checkpoint with verified hashes; gives the state saved with it."""
        with _only_data():
            path, client_state = self._engine.load_checkpoint(root, tag=name)
        if path is None:
            raise CheckpointError(
                f"DeepSpeed cannot read {root}/{name}; take an older one with --resume STEP"
            )
        state: dict[str, Any] = client_state[CLIENT_STATE]
        return state

    def close(self) -> None:
        self._engine.destroy()

    def _clip(self) -> None:
        """Without ZeRO, DeepSpeed clips and keeps the norm to itself: so that is done here."""
        self._plain_norm = nn.utils.clip_grad_norm_(self._engine.module.parameters(), self._clip_norm)

    def _move(self, examples: Examples) -> Examples:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in examples.items()}


def connect() -> Ranks:
    """Joins the other workers: those that a launcher announced in the environment, or nobody."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would have to be compiled
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="torch.distributed"
    )  # of DeepSpeed's calls
    if not torch.distributed.is_initialized():
        _join()
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if world_size == 1:
        return Ranks()
    group = torch.distributed.new_group(backend="gloo", timeout=HANG_TIMEOUT)
    return Ranks(rank=rank, world_size=world_size, group=group)


def disconnect() -> None:
    """Leaves the group, so that the process can join another."""
    comm.destroy_process_group()
    comm.comm.cdb = None  # or DeepSpeed takes the next group for this one


def _join() -> None:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group(backend, timeout=HANG_TIMEOUT)
    else:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


def _settings(
    config: EngineConfig, optimizer: OptimizerConfig, batches: BatchesConfig, world_size: int
) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": batches.micro_batch,
        "gradient_accumulation_steps": batches.micro_batches_per_worker(world_size),
        "gradient_clipping": optimizer.clip_norm if config.zero_stage else 0.0,
        "bf16": {"enabled": config.dtype == "bf16"},
        "zero_optimization": {"stage": config.zero_stage, "overlap_comm": torch.cuda.is_available()},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }


def _adamw(learner: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Weight decay for matrices alone; the learning rate is set before each step."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in learner.named_parameters():
        is_matrix = parameter.ndim >= 2 and "embedding" not in name.split(".")
        (decayed if is_matrix else spared).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.peak_lr, betas=betas)


class _Files:
    """Puts our hands on what DeepSpeed writes through its checkpoint engine."""

    def __init__(self, checkpoint_engine: Any, rank: int) -> None:
        self._rank = rank
        self._records: list[FileRecord] = []
        self._folder = ""
        checkpoint_engine.save = self._save

    @contextmanager
    def written_below(self, folder: str) -> Iterator[list[FileRecord]]:
        self._folder, self._records = folder, []
        yield self._records

    def _save(self, state_dict: Any, path: str) -> None:
        try:
            with hashed_file(path) as file:
                torch.save(state_dict, file)  # type: ignore[arg-type]
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written: {error}; make room and repeat the command"
            ) from error
        name = os.path.relpath(path, self._folder)
        self._records.append(FileRecord(name=name, size=file.size, sha256=file.hexdigest(), rank=self._rank))


@contextmanager
def _only_data() -> Iterator[None]:
    """Inside, torch.load refuses to run code, whatever it is asked: DeepSpeed asks for the opposite."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
