"""How workers meet that a launcher announced: at torch's store, where each says whether it comes along.

The store is rank 0's (under torchrun, its agent's). Who has refused what only it could meet comes there too,
where no launcher would end the others for it: they would wait for minutes, and say nothing of the reason.
"""

import contextlib
import json
import os
import time
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from infra.errors import ReelgptError, TrainingError
from training.refusals import Word, error_of, word_of

MEETING_TIMEOUT = timedelta(minutes=5)
"""For all workers to come: tasks on many nodes start a while apart, and one that was killed never comes."""
REFUSED_TIMEOUT = timedelta(minutes=1)
"""Who has refused waits no longer than this for the others to hear of it."""
POLL_SECONDS = 0.05
ANSWER, VERDICT, HEARD = "reelgpt/answer", "reelgpt/verdict", "reelgpt/heard"
"""What each worker says, what follows for all, and how many are about to leave for it."""


def meet() -> tuple[Any, int, int]:
    """The store at which all workers announced themselves; the rank of this one, and how many there are.

    Raises TrainingError where some do not come. Where one refused, all leave: rank 0 raises what that one
    said, for whoever started it all, and the others leave with its exit code and without a word.
    """
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=MEETING_TIMEOUT))
        verdict = _verdict(store, rank, world_size)
    except DistError as error:
        raise _nobody_came(error) from None
    if verdict is None:
        return store, rank, world_size
    refusal = error_of(verdict)
    if rank:
        store.add(HEARD, 1)
        raise SystemExit(refusal.exit_code)
    _wait_until_heard(store, world_size)
    raise refusal


def decline(error: Exception) -> None:
    """Tells the other workers that this one has refused, so that they leave as well."""
    word = word_of(error if isinstance(error, ReelgptError) else TrainingError(repr(error)))
    with contextlib.suppress(DistError):  # there is nobody to tell
        if os.environ["RANK"] == "0":
            _decline_for_all(word)
        else:
            store, rank, _ = next(rendezvous("env://", timeout=REFUSED_TIMEOUT))
            store.set(f"{ANSWER}/{rank}", json.dumps(word))
            store.add(HEARD, 1)


def _decline_for_all(word: Word) -> None:
    """They hear it as they come: nobody waits for the last one."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=True, wait_for_workers=False, timeout=REFUSED_TIMEOUT)
    store.set(VERDICT, json.dumps(word))
    _wait_until_heard(store, int(os.environ["WORLD_SIZE"]))


def _verdict(store: Any, rank: int, world_size: int) -> Word | None:
    """What the first one said that refused; None where all come along."""
    store.set(f"{ANSWER}/{rank}", json.dumps(None))
    if rank == 0:
        answers = (json.loads(store.get(f"{ANSWER}/{other}")) for other in range(world_size))
        store.set(VERDICT, json.dumps(next(filter(None, answers), None)))
    verdict: Word | None = json.loads(store.get(VERDICT))
    return verdict


def _wait_until_heard(store: Any, world_size: int) -> None:
    """The store ends with its owner."""
    deadline = time.monotonic() + REFUSED_TIMEOUT.total_seconds()
    while store.add(HEARD, 0) < world_size - 1 and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _nobody_came(error: DistError) -> TrainingError:
    words = "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
    rank, world_size, address, port = (os.environ.get(word, "?") for word in words)
    reason = str(error).partition("\n")[0]
    return TrainingError(
        f"worker {rank} of {world_size} did not meet the others at {address}:{port} within "
        f"{MEETING_TIMEOUT.total_seconds():g} s ({reason}); see what they said, and repeat the command"
    )
