"""What the GPT's token ids mean: specials, bytes of text, codes, actions, in this order.

Room is kept for tasks that do not exist yet, so that adding or removing one moves no other id. No torch here.
"""

from dataclasses import dataclass

from infra.errors import ConfigError

PAD = 0
BOS = 1
TARGET = 2
"""Ends the prefix: what follows is to be predicted."""
FIRST_TASK = 3
NUM_SPECIALS = 32
NUM_BYTES = 256
FIRST_BYTE = NUM_SPECIALS
FIRST_CODE = FIRST_BYTE + NUM_BYTES
"""The same in every vocabulary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    num_codes: int
    """Size of the tokenizer's codebook."""
    num_actions: int = 0

    def __post_init__(self) -> None:
        if self.num_codes < 1 or self.num_actions < 0:
            raise ConfigError(
                f"a vocabulary of {self.num_codes} codes and {self.num_actions} actions cannot be; "
                f"it needs at least one code and no negative number of actions"
            )

    @property
    def first_action(self) -> int:
        return FIRST_CODE + self.num_codes

    @property
    def size(self) -> int:
        return self.first_action + self.num_actions

    def is_code(self, token: int) -> bool:
        return FIRST_CODE <= token < self.first_action


def task_token(index: int) -> int:
    """The id of the special that announces a task, by the task's permanent index."""
    if not 0 <= index < NUM_SPECIALS - FIRST_TASK:
        last = NUM_SPECIALS - FIRST_TASK - 1
        raise ConfigError(f"task index {index} is out of range; there is room for 0 to {last}")
    return FIRST_TASK + index
