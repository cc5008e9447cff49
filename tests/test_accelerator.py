"""All tests that need an accelerator pass on a simulated one, which is compiled for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import accelerator

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_tests_that_need_an_accelerator_pass_on_a_simulated_one() -> None:
    if reason := accelerator.reason_not_to_build():
        pytest.skip(reason)
    accelerator.build()
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--durations=15"]
    done = subprocess.run(command, cwd=ROOT, env=accelerator.child_environment(), capture_output=True, text=True)
    print(done.stdout[-20_000:], done.stderr[-5_000:])  # shown where this fails
    assert done.returncode == 0
