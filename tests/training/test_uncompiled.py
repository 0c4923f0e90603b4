import subprocess
import sys

import pytest
import torch

from training.engine.uncompiled import AdamW

STARTS = """
import sys
from training.engine.connection import connect
from training.engine.uncompiled import AdamW
import torch
connect()
weight = torch.nn.Parameter(torch.ones(3))
optimizer = AdamW([weight], fused=True)
weight.sum().backward()
optimizer.step()
optimizer.zero_grad()
print([name for name in ("torch._dynamo", "mlflow") if name in sys.modules])
"""


def test_it_steps_to_the_last_bit_as_torchs_own() -> None:
    def after_steps(kind: type[torch.optim.AdamW]) -> torch.Tensor:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(7))
        optimizer = kind([weight], lr=0.1, fused=True)
        for _ in range(3):
            weight.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return weight.detach()

    assert torch.equal(after_steps(AdamW), after_steps(torch.optim.AdamW))


@pytest.mark.deepspeed
def test_a_worker_starts_without_the_compiler_and_without_mlflow() -> None:
    answer = subprocess.run([sys.executable, "-c", STARTS], capture_output=True, text=True, timeout=120)
    assert answer.stdout.splitlines()[-1:] == ["[]"], answer.stderr
