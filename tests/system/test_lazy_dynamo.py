"""torch._dynamo is imported by torch.compile, not by the first optimizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, torch
from feedrate.system.lazy_dynamo import postpone_dynamo
postpone_dynamo()
model = torch.nn.Linear(3, 3)
optimizer = torch.optim.AdamW(model.parameters())
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)

def step(model):
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()

step(model)
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo.utils" in sys.modules)
step(torch.compile(model, backend="eager"))
import torch._dynamo.config
print("torch._dynamo.utils" in sys.modules, torch._dynamo.__name__, hasattr(torch._dynamo, "optimize"))
"""


def test_an_optimizer_steps_without_it_and_compile_still_imports_it():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout.split() == ["False", "True", "torch._dynamo", "True"], done.stderr
