"""How fast a run goes and what it takes: time, throughput, waiting for data, memory, MFU."""

import resource
import time

import torch

from training.flops import peak_tflops

KIB_PER_GB = 1e9 / 1024


class Pace:
    """Measures between two logged steps."""

    def __init__(self, unit: str, *, units: int) -> None:
        """`units`: frames or tokens over all ranks so far."""
        self._unit = unit
        self._peak = peak_tflops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self._start(units)

    def stepped(self, *, waited_seconds: float, flops: float) -> None:
        """Called once a step. `flops`: of all ranks; 0 where they are not known."""
        self._waited_seconds += waited_seconds
        self._flops += flops
        self._num_steps += 1

    def metrics(self, units: int, *, world_size: int) -> dict[str, float]:
        seconds, num_steps = time.monotonic() - self._then, self._num_steps
        found = {
            "seconds_per_step": seconds / num_steps,
            f"{self._unit}_per_second": (units - self._units) / seconds,
            "loader_wait_seconds": self._waited_seconds / num_steps,
            "loader_wait_share": self._waited_seconds / seconds,
            "memory_gb": _memory_gb(),
        }
        if self._flops and self._peak:
            found["mfu"] = self._flops / seconds / (self._peak * 1e12 * world_size)
        self._start(units)
        return found

    def _start(self, units: int) -> None:
        self._then, self._num_steps, self._units = time.monotonic(), 0, units
        self._waited_seconds = self._flops = 0.0


def _memory_gb() -> float:
    """The most that this worker has held: on its GPU, or without one, in the host's memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_GB
