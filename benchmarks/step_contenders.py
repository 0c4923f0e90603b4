"""One contender of `benchmarks/step.py`, in a process of its own: trains on command, tells how long it took.

Reads a number of steps a line from stdin, does them, and prints the seconds. Imported by its peers' Python
too, so what is ours is imported where it is used.

Shapes: B clips, T tokens.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

CODES = 1000
LEVELS = (8, 5, 5, 5)
SPECIALS = 3
"""Tokens of a sequence that are no codes."""
PEAK_LR = 1e-4
CLOCK = os.environ.get("STEP_CLOCK", "wall")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
FOR_EVER = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    model_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    hidden_dim: int
    grid: tuple[int, int, int]
    clips: int
    dtype: str
    compile: bool

    @property
    def num_tokens(self) -> int:
        frames, rows, columns = self.grid
        return frames * rows * columns + SPECIALS


def our_parts(shape: Shape) -> tuple[Any, Any, list[Any]]:
    """Run config, objective and B clips of random codes."""
    import numpy as np

    from model.vocabulary import Vocabulary
    from training.configs.batches import BatchesConfig
    from training.configs.objective import GPTShape, PredictConfig
    from training.objectives import Predict
    from training.recipes import get_recipe

    names = ("model_dim", "num_layers", "num_heads", "num_kv_heads", "hidden_dim")
    model = GPTShape(**{name: getattr(shape, name) for name in names})
    objective = PredictConfig(task="generate", model=model)
    config = dataclasses.replace(
        get_recipe("gpt_tiny"),
        objective=objective,
        batches=BatchesConfig(global_batch=shape.clips, micro_batch=shape.clips),
        num_workers=1,
        steps=FOR_EVER,
        log_every_steps=10,
        checkpoints=dataclasses.replace(get_recipe("gpt_tiny").checkpoints, every_steps=FOR_EVER),
    )
    vocabulary = Vocabulary(num_codes=CODES)
    gpt = model.config(vocabulary_size=vocabulary.size, context_tokens=shape.num_tokens, code_levels=LEVELS)
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, CODES, shape.grid).astype(np.uint16) for _ in range(shape.clips)]
    return config, Predict(objective, gpt, vocabulary), clips


def bare(shape: Shape) -> Iterator[None]:
    """The same model in a plain PyTorch loop, given the same examples over and over."""
    from training.objectives import Learner

    _, objective, clips = our_parts(shape)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    learner = Learner(objective).to(device)
    if shape.compile:
        learner.model.compile()
    examples = {name: value.to(device) for name, value in objective.examples(clips, None).items()}
    num_targets = objective.count_targets(examples)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=PEAK_LR, fused=True)
    while True:
        with torch.autocast(device, torch.bfloat16, enabled=shape.dtype == "bf16"):
            loss, _ = learner(examples)
        (loss / num_targets).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield


def reelgpt(shape: Shape, zero_stage: int) -> Iterator[None]:
    """Our loop as a run has it: examples made ahead, counts exchanged, DeepSpeed, metrics each tenth step."""
    from training.engine.connection import connect
    from training.engine.engine import Engine
    from training.launching.stopping import StopRequest
    from training.launching.watchdog import Pulse
    from training.loop import Progress, Standing, run_steps
    from training.objectives import Learner

    config, objective, clips = our_parts(shape)
    engine_config = dataclasses.replace(
        config.engine, zero_stage=zero_stage, dtype=shape.dtype, compile=shape.compile
    )
    config = dataclasses.replace(config, engine=engine_config)
    ranks = connect()
    engine = Engine(Learner(objective), config, ranks)
    part = SimpleNamespace(index=0, clips=clips, clip_ids=tuple(map(str, range(len(clips)))))
    batches = SimpleNamespace(micro_batches=lambda _: [part], epoch=lambda _: 0.0)
    run: Any = SimpleNamespace(config=config, objective=objective, ranks=ranks)
    saver: Any = SimpleNamespace(standing=Standing, hear=lambda _: None)
    commands, pulse = _Commands(), Pulse(config.watchdog)
    run_steps(run, engine, batches, Progress(), [commands], StopRequest(), pulse, saver)  # type: ignore[arg-type]
    yield


def transformers(shape: Shape, zero_stage: int) -> Iterator[None]:
    """LlamaForCausalLM of the same shape under DeepSpeed, in the loop of DeepSpeed's own tutorial."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would have to be compiled
    model, tokens = _llama(shape)
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=_deepspeed_json(shape, zero_stage)
    )
    tokens = tokens.to(engine.device)
    while True:
        engine.backward(engine(input_ids=tokens, labels=tokens, use_cache=False).loss)
        engine.step()
        yield


def trainer(shape: Shape, zero_stage: int) -> Iterator[None]:
    """The same under Hugging Face's Trainer, which most people start DeepSpeed with."""
    import deepspeed
    from transformers import Trainer, TrainerCallback, TrainingArguments

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model, tokens = _llama(shape)
    rows = [{"input_ids": row, "labels": row} for row in tokens] * (1 << 16)
    commands = _Commands()

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            commands(0, {})

    arguments = TrainingArguments(
        output_dir="/tmp/reelgpt-step-benchmark",  # noqa: S108 - nothing is written
        deepspeed=_deepspeed_json(shape, zero_stage), per_device_train_batch_size=shape.clips,
        max_steps=1 << 20, logging_steps=10, save_strategy="no", report_to=[], learning_rate=PEAK_LR,
        max_grad_norm=1.0, bf16=shape.dtype == "bf16", use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Told()]).train()
    yield


def _llama(shape: Shape) -> tuple[Any, torch.Tensor]:
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary_size = 288 + CODES
    config = LlamaConfig(
        vocab_size=vocabulary_size, hidden_size=shape.model_dim, intermediate_size=shape.hidden_dim,
        num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads, max_position_embeddings=shape.num_tokens,
        attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if shape.compile:
        model.compile()
    return model, torch.randint(0, vocabulary_size, (shape.clips, shape.num_tokens))  # (B, T)


def _deepspeed_json(shape: Shape, zero_stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": shape.clips,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": zero_stage},
        "bf16": {"enabled": shape.dtype == "bf16"},
        "optimizer": {"type": "AdamW", "params": {"lr": PEAK_LR, "torch_adam": True}},
        "steps_per_print": FOR_EVER,
    }


class _Commands:
    """Listens to a loop that cannot be stepped from outside: blocks it until more steps are wanted."""

    def __init__(self) -> None:
        self._left, self._begun = 0, 0.0
        self._start()

    def __call__(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002
        self._left -= 1
        if not self._left:
            _answer(self._begun)
            self._start()

    def _start(self) -> None:
        self._left = _ask()
        self._begun = CLOCKS[CLOCK]()


def _ask() -> int:
    line = sys.stdin.readline()
    if not line:
        os._exit(0)
    return int(line)


def _answer(begun: float) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    OUTPUT.write(f"{CLOCKS[CLOCK]() - begun}\n")
    OUTPUT.flush()


CONTENDERS: dict[str, Callable[[Shape], Iterator[None]]] = {
    "bare PyTorch loop": bare,
    "reelgpt, ZeRO 0": lambda shape: reelgpt(shape, 0),
    "reelgpt, ZeRO 2": lambda shape: reelgpt(shape, 2),
    "transformers + DeepSpeed, ZeRO 0": lambda shape: transformers(shape, 0),
    "transformers + DeepSpeed, ZeRO 2": lambda shape: transformers(shape, 2),
    "transformers Trainer + DeepSpeed, ZeRO 2": lambda shape: trainer(shape, 2),
}
NEEDS_FP32 = "reelgpt, ZeRO 0"
"""Without ZeRO nothing holds fp32 weights beside others, and a run of ours refuses that."""


def main(name: str, shape_json: str) -> None:
    torch.manual_seed(0)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(1)
    values = json.loads(shape_json)
    shape = Shape(**values | {"grid": tuple(values["grid"])})
    steps = CONTENDERS[name](shape)
    next(steps)  # those with a loop of their own never come back
    while True:
        count, begun = _ask(), CLOCKS[CLOCK]()
        for _ in range(count):
            next(steps)
        _answer(begun)


if __name__ == "__main__":
    OUTPUT = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    main(*sys.argv[1:])
