"""The README's examples work as they stand there, word for word, in a fresh copy of the repository."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from at_once import at_once

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """What git tracks or would track, in another folder."""
    target = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src", "conf"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((ROOT / name).read_bytes())
    return target


def shell(command: str, folder: Path, *extra: str) -> str:
    """Output of a README command; `python` is this interpreter."""
    words = command.split("#", maxsplit=1)[0].split()
    assert words[0] == "python"
    done = subprocess.run([sys.executable, *words[1:], *extra], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def own_dataset(copy: Path) -> str:
    section = README.split("## Your own dataset")[1].split("\n## ")[0]
    code, yaml = re.findall(r"```(?:python|yaml)\n(.*?)```", section, re.DOTALL)
    command = re.findall(r"`(python src/train.py .*?)`", section)[0]
    (copy / "src/waves.py").write_text(code)
    (copy / "conf/dataset/waves.yaml").write_text(yaml)
    assert len(yaml.strip().splitlines()) == 3
    return shell(command.strip(), copy, "tracking=none")


def own_files(copy: Path, root: Path) -> str:
    section = README.split("## Your data\n")[1].split("\n## ")[0]
    layout = re.findall(r"```\n(.*?)```", section, re.DOTALL)[0]
    command = re.findall(r"^`(python src/train.py .*?)`", section, re.MULTILINE)[0]
    for line in layout.splitlines():
        path, content = line.split(None, 1)
        path = root / Path(path).relative_to("/data/mine")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            json.loads(content)
            path.write_text(content)
    for ids in json.loads((root / "partition.json").read_text()).values():
        for ID in ids:
            torch.save(torch.rand(3, 16, 16), root / f"{ID}.pt")
    return shell(command.strip().replace("/data/mine", str(root)), copy, "tracking=none", "trainer.max_epochs=1")


def one_big_file(copy: Path) -> str:
    section = README.split("## Your data\n")[1].split("\n## ")[0]
    split, pack, train = re.findall(r"```sh\n(.*?)\n```", section, re.DOTALL)[0].splitlines()
    torch.save((torch.rand(50, 4), torch.arange(50) % 3), copy / "all.pt")
    shell(split, copy)
    assert len(list((copy / "data/mine").glob("*.pt"))) == 50
    shell(pack, copy)
    return shell(train, copy, "tracking=none", "model=mlp", "trainer.max_epochs=1")


@pytest.fixture(scope="module")
def outputs(copy, tmp_path_factory) -> dict[str, str]:
    """What the commands of these sections print."""
    root = tmp_path_factory.mktemp("own") / "mine"
    calls = {"own dataset": partial(own_dataset, copy), "own files": partial(own_files, copy, root)}
    return at_once({**calls, "one big file": partial(one_big_file, copy)})


def test_an_own_dataset_takes_one_class_and_three_lines(outputs):
    output = outputs["own dataset"]
    assert "waves: 1600 training and 400 validation samples (64,), 4 classes" in output
    accuracy = float(re.findall(r"([\d.]+) validation accuracy in epoch", output)[0])
    assert accuracy > 0.9


def test_own_files_train_with_the_layout_that_is_shown(outputs):
    assert "mine: 3 training and 1 validation samples (3, 16, 16), 2 classes" in outputs["own files"]


def test_one_big_file_is_split_packed_and_trains(outputs):
    assert "40 training and 10 validation samples (4,), 3 classes" in outputs["one big file"]


def loader_alone(root: Path) -> tuple[str, dict[str, object]]:
    """The example with samples in that folder, and what it takes for given."""
    code = re.findall(r"## Without Hydra\n\n```python\n(.*?)```", README, re.DOTALL)[0]
    list_IDs = [f"id-{i}" for i in range(10)]
    for ID in list_IDs:
        torch.save(torch.rand(2), root / f"{ID}.pt")
    given = {"list_IDs": list_IDs, "labels": {ID: i % 2 for i, ID in enumerate(list_IDs)}, "__name__": "__main__"}
    return code.replace('root="data"', f"root={str(root)!r}"), given


def test_the_loader_alone_works_as_shown(tmp_path):
    code, names = loader_alone(tmp_path)
    exec(code.replace("num_workers=2", "num_workers=0"), names)
    assert names["state"]["position"] == 10


WITH_A_THREAD = """
import threading, time
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
list_IDs, labels = {list_IDs!r}, {labels!r}
{code}
"""


def test_the_loader_alone_works_as_a_script_that_has_a_thread_of_its_own(tmp_path):
    """Its worker processes are not forked then: they import the script, which must not run again."""
    code, given = loader_alone(tmp_path)
    program = WITH_A_THREAD.format(**given, code=code.replace("seed=0", 'seed=0, engine="process"'))
    (tmp_path / "script.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("10 samples in 1 batches") == 1


ELSEWHERE = """
import sys

class OnlyInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, OnlyInstalled())
import feedrate.model
globals().update({given!r})
{code}
"""


def test_what_pip_installs_with_the_package_is_enough_for_the_loader_alone(tmp_path):
    """With what pyproject.toml names, and what that needs itself, as in a fresh environment."""
    text = (ROOT / "pyproject.toml").read_text()
    ahead = re.findall(r'"([^"]+)"', re.findall(r"^dependencies = \[(.*?)\]$", text, re.DOTALL | re.MULTILINE)[0])
    brought: set[str] = set()
    while ahead:
        needed = Requirement(ahead.pop())
        name = canonicalize_name(needed.name)
        if name in brought or (needed.marker is not None and not needed.marker.evaluate({"extra": ""})):
            continue
        brought.add(name)
        ahead += requires(name) or []
    found = packages_distributions().items()
    absent = {module for module, names in found if not brought & set(map(canonicalize_name, names))} - {"feedrate"}
    code, given = loader_alone(tmp_path)
    (tmp_path / "script.py").write_text(ELSEWHERE.format(absent=absent, given=given, code=code))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "10 samples in 1 batches" in done.stdout


def test_the_table_of_keys_is_that_of_the_configuration():
    sys.path.insert(0, str(ROOT / "docs"))
    import keys

    assert keys.table() in (ROOT / "docs/configuration.md").read_text(), "conf/ has changed: make docs"


def test_the_dataset_with_a_codec_reads_its_files_as_shown(tmp_path):
    page = (ROOT / "docs/data.md").read_text().split("## A file format of your own")[1]
    names: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg")
    X, y = names["Photos"](["a"], {"a": 1}, tmp_path)[0]
    assert (tuple(X.shape), X.dtype, y) == ((3, 4, 6), torch.uint8, 1)


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub names them in links, and its own marks."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings} | set(
        re.findall(r'id="(\w+)"', text)
    )


def test_links_between_the_pages_lead_to_files_and_headings():
    for page in (ROOT / "README.md", ROOT / "benchmarks/README.md", *(ROOT / "docs").glob("*.md")):
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(path), f"{page.name}: {target}#{anchor}"


def test_every_yaml_begins_with_a_command_that_uses_it():
    for path in (ROOT / "conf").rglob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        assert lines[0].startswith("# python src/"), path


def test_every_make_target_has_a_help_line():
    makefile = (ROOT / "Makefile").read_text()
    declared = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()
    for target in declared:
        assert re.search(rf"^{target}:.*## \w", makefile, re.MULTILINE), target
