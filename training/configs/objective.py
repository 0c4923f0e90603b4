"""What a run learns: settings of the objectives. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Literal

from infra.configs import check_at_least
from infra.errors import ConfigError
from model.config import GPTConfig, TokenizerConfig
from model.tasks import Task, get_task


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructConfig:
    """A tokenizer learns to give back the frames it sees."""

    frames_per_clip: int
    """Neighbouring frames taken from a clip each time it comes up; one crop serves them all."""
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    smallest_crop: float = 0.5
    """Random resized crops: the smallest side of a crop, as a share of the frame's shorter side."""
    flip: bool = True
    """On by default: half of the crops are mirrored left to right."""
    l1_weight: float = 1.0
    l2_weight: float = 1.0
    haar_weight: float = 0.0
    difference_weight: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(1, frames_per_clip=self.frames_per_clip)
        if not 0.0 < self.smallest_crop <= 1.0:
            raise ConfigError(f"smallest_crop={self.smallest_crop} must be above 0 and at most 1")
        weights = (self.l1_weight, self.l2_weight, self.haar_weight, self.difference_weight)
        if min(weights) < 0 or not any(weights):
            raise ConfigError(
                f"the weights of the reconstruction loss are {weights}; none may be negative, nor all 0"
            )
        if self.difference_weight and self.frames_per_clip == 1:
            raise ConfigError(
                "difference_weight has no effect with frames_per_clip=1; give difference_weight=0"
            )

    @property
    def data_kind(self) -> Literal["frames"]:
        return "frames"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether clips of frames (T, H, W, 3) can serve."""
        return shape[0] >= 1


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTShape:
    """What of a GPTConfig is chosen; the vocabulary and the context follow from the shard set."""

    model_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    hidden_dim: int
    dropout: float = 0.0
    rope_theta: float = 10_000.0
    digit_embeddings: bool = True
    """On by default: the FSQ digits of a code are embedded beside the code, so that rare codes borrow from
    their neighbours."""

    def __post_init__(self) -> None:
        self.config(vocabulary_size=1, context_tokens=1, code_levels=())

    def config(self, *, vocabulary_size: int, context_tokens: int, code_levels: tuple[int, ...]) -> GPTConfig:
        return GPTConfig(
            vocabulary_size=vocabulary_size,
            context_tokens=context_tokens,
            model_dim=self.model_dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            hidden_dim=self.hidden_dim,
            dropout=self.dropout,
            rope_theta=self.rope_theta,
            code_levels=code_levels if self.digit_embeddings else (),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig:
    """A GPT learns to predict the next token of a task's sequences."""

    task: str
    model: GPTShape
    prefix_frames: int | None = None
    """For `continue`: frames given in evaluation, and the most that are given in training."""
    noise_share: float = 0.0
    """Share of the codes that training shows wrongly; what is to be predicted stays true."""
    z_weight: float = 1e-4
    """Weight of log^2 of the softmax's normaliser (PaLM, arXiv 2204.02311): keeps logits from drifting."""

    def __post_init__(self) -> None:
        self.build_task()
        if not 0.0 <= self.noise_share < 1.0:
            raise ConfigError(
                f"noise_share={self.noise_share} must be from 0 to below 1; 0 shows all as it is"
            )
        if self.z_weight < 0:
            raise ConfigError(f"z_weight={self.z_weight} must not be negative; 0 turns the term off")

    @property
    def data_kind(self) -> Literal["tokens"]:
        return "tokens"

    def build_task(self) -> Task:
        return get_task(
            self.task, **({} if self.prefix_frames is None else {"prefix_frames": self.prefix_frames})
        )

    @property
    def num_given(self) -> int:
        """Frames given in evaluation."""
        return getattr(self.build_task(), "prefix_frames", 0)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether clips of codes (t, h, w) can serve: there must be a frame left to predict."""
        return shape[0] > self.num_given
