"""How a program that `launch` has run comes to its end."""

from __future__ import annotations

import logging
import os
import pstats
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from feedrate.cli.launch import _fail
from feedrate.dataset import build_data
from feedrate.errors import UserError
from feedrate.loader import Loader
from feedrate.trainer.device import Precision
from feedrate.trainer.forward import Forward

SRC = Path(__file__).parents[2] / "src"

BUSY_IN_TORCH = """
import torch
from feedrate.cli.launch import launch
from feedrate.dataset import time_limit
from feedrate.loader import Loader
from feedrate.loader.engines import threads

time_limit.PATIENCE_S = time_limit.CLOSE_S = threads.CLOSE_S = 0.02  # a sample takes longer than Python waits for one

class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return X @ X  # a single call, which lets go of the interpreter and wants it back

def job(config):
    global batches
    batches = iter(Loader(Samples(), 1, seed=0, engine="thread", num_workers=8, prefetch_factor=99))
    next(batches)
    if config.seed == 1:
        raise ValueError("no more")
    if config.seed == 2:
        raise KeyboardInterrupt

torch.set_num_threads(1)
X = torch.ones(1400, 1400)
launch(job, "train")
"""

AT_THE_END = """
import atexit, sys, threading, time
from feedrate.cli.launch import launch

def late():
    time.sleep(0.3)
    print("thread", flush=True)

def job(config):
    atexit.register(print, "handler")
    threading.Thread(target=late).start()
    threading.Thread(target=time.sleep, args=(60 * config.trainer.max_epochs,), daemon=True).start()
    print("job")
    if config.seed:
        sys.exit(config.seed)

launch(job, "train")
"""


def end(folder: Path, program: str, *arguments: str, through: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Exit code, output and errors of a program that Python runs, by itself or through a module's command."""
    (folder / "program.py").write_text(program)
    ended = subprocess.run(
        [sys.executable, *through, str(folder / "program.py"), f"hydra.run.dir={folder}/run", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("seed", "code", "words"),
    [(0, 0, ""), (1, 1, "error: ValueError: no more"), (2, 130, "interrupted\n")],
    ids=["finished", "failed", "stopped"],
)
def test_threads_that_are_still_in_torch_do_not_abort_the_process(tmp_path, seed, code, words):
    found, _, said = end(tmp_path, BUSY_IN_TORCH, f"seed={seed}")
    assert (found, words in said, "terminate" in said) == (code, True, False), said


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("left", [0, 1], ids=["no thread left", "a thread left"])
@pytest.mark.parametrize("through", [(), ("-m", "cProfile", "-o", "profile")], ids=["alone", "in a profiler"])
def test_what_runs_at_the_end_of_a_program_runs_and_its_output_is_there(tmp_path, through, left, code):
    found = end(tmp_path, AT_THE_END, f"seed={code}", f"trainer.max_epochs={left}", through=through)
    expected = 0 if through else code  # the profiler's own
    assert found == (expected, "job\nthread\nhandler\n", "")
    if through:
        assert pstats.Stats(str(tmp_path / "profile")).total_calls > 1000  # type: ignore[attr-defined]


def test_the_log_file_alone_has_the_traceback_of_an_error_in_the_users_code(tmp_path, capsys):
    file = logging.getLogger("feedrate.file")
    file.addHandler(handler := logging.FileHandler(tmp_path / "train.log"))
    node = {"_target_": "feedrate.dataset.Generated", "size": 4, "validation_size": 4, "image_size": 32}
    failing = Forward(Failing(), build_data(node, 0), torch.device("cpu"), Precision("32", None, False))
    expected = [
        (lambda: next(iter(Loader(Broken(), seed=0))), "sample '0': Broken.__getitem__ failed with ValueError: mine"),
        (lambda: failing(torch.ones(2, 3)), r"model: Failing failed on X of shape \(2, 3\): mine"),
    ]
    try:
        for call, text in expected:
            with pytest.raises(UserError) as raised:
                call()
            with pytest.raises(SystemExit):
                _fail(raised.value)
            assert re.fullmatch(rf"error: {text} \(test_launch.py, line \d+, in \w+\)\n", capsys.readouterr().err)
    finally:
        file.removeHandler(handler)
    assert (tmp_path / "train.log").read_text().count('    raise ValueError("mine")\n') == 2


class Broken:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError("mine")


class Failing(torch.nn.Module):
    def forward(self, X):
        raise ValueError("mine")
