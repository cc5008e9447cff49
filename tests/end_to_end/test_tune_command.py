"""tune.py as a person types it: the file it writes, and who uses it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from feedrate.config import FeedrateLoaderConfig
from feedrate.dataset import build_data
from feedrate.loader import Loader
from feedrate.validation import validate

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("model=mlp", "tune.budget_s=6", "tune.trial_s=0.2")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> SimpleNamespace:
    """A copy of the repository in which the loader was tuned once, for digits and mlp."""
    copy = tmp_path_factory.mktemp("checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src", "conf"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())

    def python(*arguments: str) -> str:
        command = [sys.executable, *arguments, f"dataset.root={digits}"]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return SimpleNamespace(copy=copy, python=python, digits=digits, output=python("src/tune.py", *SHORT))


def option(tuned: SimpleNamespace) -> Path:
    return Path(tuned.copy, "conf/loader/tuned.yaml")


def trials(output: str) -> list[str]:
    """The settings that it said it tried."""
    return re.findall(r"^(no workers|\d+ (?:thread|process)\w*, \d+ prefetched each): [\d,]+ samples/s", output, re.M)


def test_the_command_writes_an_option_that_is_valid_and_says_what_it_rests_on(tuned):
    text = option(tuned).read_text()
    node = OmegaConf.to_container(OmegaConf.create(text))
    assert node.pop("_target_") == "feedrate.loader.Loader"
    validate(FeedrateLoaderConfig, {str(key): value for key, value in node.items()}, "loader")
    assert text.startswith("# python src/train.py loader=tuned\n# Written by python src/tune.py model=mlp")
    assert {f"#   {setting}:" for setting in trials(tuned.output)} <= {
        line.partition(":")[0] + ":" for line in text.splitlines()
    }


def test_the_digest_that_it_names_is_that_of_the_order_without_workers(tuned):
    data = build_data({"_target_": "feedrate.dataset.Digits", "root": str(tuned.digits)}, 0)
    count, named = re.findall(
        r"the first (\d+) batches: order digest (\w{16}), content digest \w{16}, with and", tuned.output
    )[0]
    loader = Loader(data.partition["train"], batch_size=64, shuffle=True, seed=0)
    for _ in zip(range(int(count)), loader, strict=False):
        pass
    assert loader.order_digest()[:16] == named
    assert f"order digest {named}" in option(tuned).read_text()


def test_the_largest_batch_is_found_where_that_is_allowed(tuned):
    text = option(tuned).read_text()
    long = "tune.budget_s=80"  # a quarter of which is for the batch, and two sizes take a moment each
    largest = ("tune.batch_size=true", "dataset.limit=200", long)
    output = tuned.python("src/tune.py", *SHORT, *largest)
    assert "loader.batch_size=128, not 64, which changes the training; there are 200 samples" in output
    assert OmegaConf.load(option(tuned)).batch_size == 128
    option(tuned).write_text(text)


@pytest.mark.parametrize(("script", "more"), [("train", []), ("train", ["-m", "seed=0,1"]), ("tune", [])])
def test_before_anything_was_tuned_loader_tuned_says_which_command_writes_it(tuned, script, more):
    text = option(tuned).read_text()
    option(tuned).unlink()
    command = [sys.executable, f"src/{script}.py", *more, "loader=tuned"]
    done = subprocess.run(command, cwd=tuned.copy, capture_output=True, text=True, timeout=60)
    option(tuned).write_text(text)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: loader=tuned: ")
    assert "python src/tune.py with your dataset and model writes it" in done.stderr
    assert done.stderr.endswith("Options of loader: feedrate, torch\n")


def test_an_option_of_another_name_says_how_it_is_used(tuned):
    for path, use in (
        ("conf/loader/night.yaml", "use it with loader=night"),
        ("outputs/night.yaml", "to use it with loader=NAME, copy it to conf/loader/NAME.yaml"),
    ):
        output = tuned.python("src/tune.py", *SHORT, f"tune.output={path}")
        assert output.endswith(f"written to {tuned.copy}/{path}; {use}\n")
        assert Path(tuned.copy, path).read_text().startswith("# python src/train.py loader=night\n# Written by")
    Path(tuned.copy, "conf/loader/night.yaml").unlink()


def test_a_run_takes_the_setting_and_keeps_it_in_its_folder(tuned, tmp_path):
    tuned.python("src/train.py", "loader=tuned", "model=mlp", "trainer.max_epochs=1", "tracking=none",
                 f"hydra.run.dir={tmp_path}/run")  # fmt: skip
    kept, found = OmegaConf.load(tmp_path / "run/.hydra/config.yaml").loader, OmegaConf.load(option(tuned))
    assert kept == found
