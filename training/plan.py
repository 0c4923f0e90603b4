"""What a training will take, before it starts: memory at each ZeRO stage, steps, epochs, hours. By formula.

Imports no torch for a GPT. Bytes of states are those that DeepSpeed's engine holds (a test compares them with
engines of two ranks); activations are an estimate. Not counted: DeepSpeed's buckets, the allocator's gaps,
the CUDA context.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from infra.errors import ConfigError
from model.config import GPTConfig
from training.config import RunConfig
from training.configs.engine import EngineConfig
from training.configs.objective import PredictConfig, ReconstructConfig
from training.data import TrainingData
from training.flops import count_parameters, training_flops_per_token

STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
OFFLOADS = ((False, False), (True, False), (False, True), (True, True))
"""Of the optimizer, and of the weights."""
GB = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """One worker's device."""

    memory_gb: float = 80.0
    peak_tflops: float = 989.0
    """Dense, in the dtype of the run."""
    mfu: float = 0.4
    """Share of the peak that the model's own arithmetic reaches."""

    def __post_init__(self) -> None:
        if self.memory_gb <= 0 or self.peak_tflops <= 0 or not 0.0 < self.mfu <= 1.0:
            raise ConfigError(
                f"memory_gb={self.memory_gb} and peak_tflops={self.peak_tflops} must be above 0, "
                f"and mfu={self.mfu} above 0 and at most 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Bytes:
    """What one rank holds in one place."""

    weights: float
    gradients: float
    optimizer: float
    """Two moments, and the fp32 weights where they are kept beside others."""
    average: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.average


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Of one rank, while its gradients are whole."""

    device: Bytes
    host: Bytes
    """Of what is offloaded."""


def state_bytes(
    num_parameters: int,
    engine: EngineConfig,
    *,
    world_size: int,
    has_average: bool = False,
    accumulates: bool = False,
) -> StateBytes:
    """ZeRO (arXiv 1910.02054), section 5 and figure 1: 2 + 2 bytes a parameter for weights and gradients in
    half precision and K = 12 for AdamW (fp32 weights and two moments); stages 1, 2 and 3 divide the
    optimizer's part, then the gradients', then the weights' by the number of ranks.

    In fp32, 4 + 4 and K = 8; DeepSpeed's stages 1 to 3 copy the fp32 weights all the same, so K = 12. An
    offloaded optimizer has fp32 gradients beside it, and where stage 3, or any stage over several
    micro-batches (`accumulates`), adds gradients up, it does so there. A lone worker in fp32 runs as stage 0.
    """
    stage, offloads = engine.stage_among(world_size), engine.offload_optimizer
    width = 4 if engine.dtype == "fp32" else 2
    part = num_parameters / world_size
    weights = width * (part if stage == 3 else num_parameters)
    gradients = width * (part if stage >= 2 else num_parameters)
    optimizer = 12 * part if stage else 8.0 * num_parameters
    average = 4 * part if has_average else 0.0
    added_up = width * part if stage == 3 or accumulates else 0.0
    host = Bytes(
        weights=weights if engine.offload_parameters else 0.0,
        gradients=4 * part + added_up if offloads else 0.0,
        optimizer=optimizer if offloads else 0.0,
        average=average if offloads else 0.0,
    )
    device = Bytes(
        weights=weights - host.weights,
        gradients=0.0 if offloads and stage == 3 else gradients,
        optimizer=optimizer - host.optimizer,
        average=average - host.average,
    )
    return StateBytes(device, host)


def activation_bytes(config: GPTConfig, num_tokens: int, num_targets: int, run: RunConfig) -> float:
    """Of one sequence, kept from forward to backward, with an attention that keeps no scores and fused norms.

    What a block keeps, after arXiv 2205.05198, section 4.1: what enters its norms and products. Elements a
    token: 6 D around norms, attention and residuals, 3 times queries, keys and values (product, norm,
    rotation), 5 F in SwiGLU. With `checkpoint_activations`, D, and the inside of one block at a time. Logits
    become what their loss keeps: one fp32 number a target and entry of the vocabulary. On a CPU
    `model.blockwise_attention` keeps its weights beside that, and it and norms keep fp32 whatever the dtype.
    """
    width = 4 if run.engine.dtype == "fp32" else 2
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    inside = 6 * config.model_dim + 3 * heads + 5 * config.hidden_dim
    layers = config.num_layers
    kept = layers * config.model_dim + inside if run.engine.checkpoint_activations else layers * inside
    return width * num_tokens * kept + 4 * num_targets * config.vocabulary_size


def plan(config: RunConfig, data: TrainingData, machine: Machine) -> dict[str, Any]:
    """One entry a fact; bytes and hours of one rank of `config.num_workers`."""
    clips = sum(shelf.num_clips for shelf in data.train)
    facts: dict[str, Any] = {
        "recipe": config.name,
        "world_size": config.num_workers,
        "zero_stage": config.engine.stage_among(config.num_workers),
        "dtype": config.engine.dtype,
        "steps": config.steps,
        "clips": clips,
        "clips_per_step": config.batches.global_batch,
        "micro_batch": config.batches.micro_batch,
        "accumulated": config.batches.micro_batches_per_worker(config.num_workers),
        "steps_per_epoch": clips / config.batches.global_batch,
        "epochs": config.steps * config.batches.global_batch / clips,
    }
    if isinstance(config.objective, ReconstructConfig):
        return facts | _tokenizer_facts(config, config.objective, machine)
    return facts | _gpt_facts(config, config.objective, data, machine)


def _tokenizer_facts(config: RunConfig, objective: ReconstructConfig, machine: Machine) -> dict[str, Any]:
    from training.tokenizer_cost import tokenizer_cost  # brings torch

    cost = tokenizer_cost(objective)
    num_clips = config.steps * config.batches.global_batch
    per_clip = cost.activation_elements_per_clip * (4.0 if config.engine.dtype == "fp32" else 2.0)
    return {
        "parameters": cost.parameters,
        "frames_per_clip": cost.frames_per_clip,
        "frames": num_clips * cost.frames_per_clip,
        **_spent(config, num_clips * cost.flops_per_clip, machine),
        **_memory(config, cost.parameters),
        **_fitting(config, cost.parameters, per_clip, machine),
    }


def _gpt_facts(
    config: RunConfig, objective: PredictConfig, data: TrainingData, machine: Machine
) -> dict[str, Any]:
    shape = data.gpt_config(objective.model)
    counts = count_parameters(shape)
    num_clips = config.steps * config.batches.global_batch
    tokens = {length: num_clips * share * length for length, share in data.shares_of_lengths.items()}
    num_tokens = sum(tokens.values())
    flops = sum(count * training_flops_per_token(shape, length) for length, count in tokens.items())
    per_clip = activation_bytes(shape, shape.context_tokens, shape.context_tokens, config)
    return {
        "parameters": counts.total,
        "parameters_of_embeddings": counts.embedding,
        "tokens_per_clip": num_tokens / num_clips,
        "tokens_of_longest_clip": shape.context_tokens,
        "tokens": num_tokens,
        "tokens_per_parameter": num_tokens / counts.total,
        **_spent(config, flops, machine),
        **_memory(config, counts.total),
        **_fitting(config, counts.total, per_clip, machine),
    }


def _workers_at_work(config: RunConfig) -> float:
    """Where shares are uneven, some do now and then what counts for nothing."""
    return config.batches.num_micro_batches / config.batches.micro_batches_per_worker(config.num_workers)


def _spent(config: RunConfig, flops: float, machine: Machine) -> dict[str, float]:
    per_second = _workers_at_work(config) * machine.peak_tflops * 1e12 * machine.mfu
    return {"exaflops": flops / 1e18, "hours": flops / per_second / 3600}


def _fitting(
    config: RunConfig, num_parameters: int, bytes_per_clip: float, machine: Machine
) -> dict[str, float]:
    """What one device holds with its micro-batch, and the largest one that it could."""
    states = _states(config, config.engine, num_parameters)
    room = machine.memory_gb * GB - states.device.total
    return {
        "activation_bytes_per_clip": bytes_per_clip,
        "device_bytes_per_rank": states.device.total + config.batches.micro_batch * bytes_per_clip,
        "largest_micro_batch": _largest_micro_batch(config, int(max(0.0, room) // bytes_per_clip)),
    }


def _memory(config: RunConfig, num_parameters: int) -> dict[str, Any]:
    """Of every stage that there is in this dtype, without offload and with it."""
    chosen = _layout(config.engine, config.num_workers)
    ways = [
        replace(chosen, zero_stage=stage, offload_optimizer=optimizer, offload_parameters=parameters)
        for stage in (STAGES if config.engine.dtype == "fp32" else STAGES[1:])
        for optimizer, parameters in OFFLOADS
        if (stage or not optimizer) and (stage == 3 or not parameters)
    ]
    return {
        "states": [
            {
                "zero_stage": engine.zero_stage,
                "offload_optimizer": engine.offload_optimizer,
                "offload_parameters": engine.offload_parameters,
                "is_chosen": engine == chosen,
                "device": asdict(states.device) | {"total": states.device.total},
                "host": asdict(states.host) | {"total": states.host.total},
            }
            for engine in ways
            for states in [_states(config, engine, num_parameters)]
        ]
    }


def _layout(engine: EngineConfig, world_size: int) -> EngineConfig:
    """What of it the states' bytes depend on, free of what does not go with every stage."""
    return EngineConfig(
        zero_stage=engine.stage_among(world_size),
        dtype=engine.dtype,
        offload_optimizer=engine.offload_optimizer,
        offload_parameters=engine.offload_parameters,
        deepspeed_config=engine.deepspeed_config,
    )


def _states(config: RunConfig, engine: EngineConfig, num_parameters: int) -> StateBytes:
    return state_bytes(
        num_parameters,
        engine,
        world_size=config.num_workers,
        has_average=config.optimizer.ema_decay is not None,
        accumulates=config.batches.micro_batches_per_worker(config.num_workers) > 1,
    )


def _largest_micro_batch(config: RunConfig, fitting: int) -> int:
    """Of those that the global batch divides into; 0 where not even one clip fits."""
    batches, world_size = config.batches, config.num_workers
    sizes = range(1, min(fitting, batches.global_batch // world_size) + 1)
    legal = (size for size in sizes if replace(batches, micro_batch=size).is_shared_among(world_size))
    return max(legal, default=0)


def with_world_size(config: RunConfig, world_size: int) -> RunConfig:
    """Raises ConfigError, naming the legal sizes, where the batches do not divide."""
    return replace(config, num_workers=world_size, min_workers=None)
