"""The commands of benchmarks/README.md measure what they say: the comparison runs at a small size, tables and all."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = """
import sys
from pathlib import Path

import pytest
sys.path[:0] = [sys.argv[1] + "/src", sys.argv[1] + "/benchmarks"]
from peers.bench import Scope, run
from peers.contenders import CONTENDERS, Contender
names = ("tensor_files, inline", "tensor_files, process 1", "in_memory, inline", "torch DataLoader, 0 workers")
chosen = [c for c in CONTENDERS if c.name in names]
chosen.append(Contender("a peer that is not there", "torch", "torchs.open_nothing", None))
scope = Scope(rounds=1, step_rounds=1, cold_rounds=1, seconds=0.02, sets=("12 KB",), size=100, contenders=tuple(chosen))
Path(sys.argv[2], "report.md").write_text(run(scope, Path(sys.argv[2])))
"""


@pytest.mark.slow
def test_the_comparison_with_the_peers_gives_a_row_for_each_and_names_what_cannot_be_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SMALL, str(ROOT), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    lines = (tmp_path / "report.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| batch 64 |"))
    columns = [cell.strip() for cell in lines[start].strip("|").split("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 2 : start + 7]]
    assert [len(row) for row in rows] == [len(columns)] * 5
    found = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    for name in ("tensor_files, inline", "tensor_files, process 1", "in_memory, inline", "torch DataLoader, 0 workers"):
        assert float(found[name]["samples/s"].split()[0].replace(",", "")) > 0, name
        assert float(found[name]["MB"].replace(",", "")) >= 0, name
    orders = {row["order"] for name, row in found.items() if "inline" in name or "process" in name}
    assert len(orders) == 1
    assert orders != {"-"}
    assert found["torch DataLoader, 0 workers"]["x torch"] == "1.00"
    assert found["a peer that is not there"]["samples/s"].startswith("not measured: AttributeError")
    promises = [line for line in lines if line.startswith("| 12 KB: ")]
    assert any("one order" in line and line.rstrip().endswith("pass |") for line in promises)
    assert any("packed" in line and "not measured" in line for line in promises)


def test_a_batch_that_is_not_what_was_written_is_not_measured(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path[:0] = [{str(ROOT / "src")!r}, {str(ROOT / "benchmarks")!r}]
import torch
from peers.sets import SETS
of = SETS[0]
X, y = torch.stack([of.X(3), of.X(5)]), torch.tensor([of.y(3), of.y(5)])
assert of.check(X, y) == [3, 5]
for wrong in ((X.flip(0), y), (X ^ (torch.arange(64) == 63).to(torch.uint8), y)):
    try:
        of.check(*wrong)
    except ValueError:
        continue
    sys.exit("passed")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_readme_shows_the_speeds_that_the_comparison_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    summary = importlib.import_module("summary")
    shown = summary.text((ROOT / "benchmarks/README.md").read_text())
    assert f"{summary.BEGIN}\n{shown}\n{summary.END}" in (ROOT / "README.md").read_text(), (
        "python benchmarks/summary.py"
    )
    report = "### 1 KB: 9 samples of 3 uint8\n\n| a | b |\n|---|--:|\n"
    report += (
        "| torch DataLoader, 0 workers | 1,000 (900 to 1,100) |\n| torch DataLoader, 2 workers | 2,500 (1 to 3) |\n"
    )
    report += "| memcpy of whole batches | 9,000 (1 to 2) |\n| other, 1 thread | not measured: gone |\n"
    report += "| WebDataset, 0 workers | 70 (60 to 80) |\n\n### What was promised\n"
    assert summary.table(report).splitlines()[2:] == [
        "| torch DataLoader, `torch.load` of each file | 2,500 |",
        "| WebDataset | 70 |",
    ]
