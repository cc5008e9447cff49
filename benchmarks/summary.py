"""Writes the table of speeds in README.md, from the comparison with other loaders in benchmarks/README.md.

    python benchmarks/summary.py

`python benchmarks/run.py peers` does this too.
"""

from __future__ import annotations

import re
from pathlib import Path

from figures import markdown

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- speeds: written by benchmarks/summary.py -->", "<!-- end of speeds -->"
_FORMS = {
    "tensor_files": "Feedrate, one `.pt` file per sample",
    "array_files": "Feedrate, one `.npy` file per sample",
    "packed": "Feedrate, packed shards",
    "torch DataLoader": "torch DataLoader, `torch.load` of each file",
    "TensorDataset in memory": "torch DataLoader, all samples in memory",
}
_LEFT_OUT = ("in_memory", "memcpy")


def table(report: str) -> str:
    """Markdown: the fastest setting of each loader and form, samples per second on each set.

    Args:
        report: the Markdown that `peers` has written.
    """
    sets: dict[str, dict[str, int]] = {}
    for title, body in re.findall(r"^### ([^\n:]+): [\d,]+ samples of [^\n]*\n(.*?)(?=^### |\Z)", report, re.M | re.S):
        rates = sets.setdefault(title, {})
        for name, rate in re.findall(r"^\| ([^|]+?) \| ([\d,]+) \(", body, re.M):
            label = _label(name)
            rates[label] = max(rates.get(label, 0), int(rate.replace(",", "")))
    names = [name for name in dict.fromkeys(n for rates in sets.values() for n in rates) if _shown(name)]
    rows = [[name, *(f"{rates[name]:,}" if name in rates else "-" for rates in sets.values())] for name in names]
    return markdown(["samples/s, batches of 64", *(f"{title} each" for title in sets)], rows)


def _label(name: str) -> str:
    form = name if name in _FORMS else name.partition(",")[0]
    return _FORMS.get(form, form)


def _shown(name: str) -> bool:
    return not name.startswith(_LEFT_OUT)


def text(page: str) -> str:
    """The text between the marks in README.md, made from `page`, the text of benchmarks/README.md."""
    report = page.partition("<!-- peers -->")[2].partition("<!-- end of peers -->")[0]
    where = re.findall(r"^\*(.+)\*$", report, re.M)[-1]
    return f"{table(report)}\n\n*{where}*"


def write() -> None:
    """Replaces the table in README.md."""
    readme = ROOT / "README.md"
    body = f"{BEGIN}\n{text((ROOT / 'benchmarks/README.md').read_text())}\n{END}"
    written, count = re.subn(f"{BEGIN}.*?{END}", lambda _: body, readme.read_text(), flags=re.DOTALL)
    assert count == 1, f"{readme} has no marks for the table"
    readme.write_text(written)


if __name__ == "__main__":
    write()
