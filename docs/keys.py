"""Writes the table of configuration keys into docs/configuration.md, from the comments in conf/:  make docs

The comments are the source; tests/test_readme.py fails when the table is out of date.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GROUPS = ("dataset", "loader", "model", "optimizer", "scheduler", "trainer", "tracking")
WRITTEN = ("tuned",)  # options that commands write, not tracked by git
BEGIN, END = "<!-- keys: written by docs/keys.py -->", "<!-- end of keys -->"
_LINE = re.compile(r"^(?P<key>[a-z]\w*): *(?P<value>.*?) *# *(?P<text>.*)$")


def table() -> str:
    """Markdown: one table for each group, a row for each key with default and meaning."""
    parts = []
    for group in GROUPS:
        seen: dict[tuple[str, str, str], list[str]] = {}
        if group == "dataset":
            for row in _rows(ROOT / "conf/every_dataset.yaml"):
                seen.setdefault(row, []).append("all")
        options = sorted(path for path in (ROOT / "conf" / group).glob("*.yaml") if _is_shipped(path))
        for path in options:
            for row in _rows(path):
                seen.setdefault(row, []).append(path.stem)
        parts += [f"**{group}**", "", "| key | option | default | meaning |", "|---|---|---|---|"]
        named = [path.stem for path in options if list(_rows(path))]
        for (key, value, text), found in seen.items():
            shown = "all" if sorted(found) == sorted(named) and len(found) > 1 else ", ".join(found)
            parts.append(f"| `{group}.{key}` | {shown} | `{value}` | {text} |".replace("``", " "))
        parts.append("")
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *_root(), "", *parts]).strip()


def _is_shipped(path: Path) -> bool:
    """Whether an option is part of Feedrate, not written by a command or by a user for a class of their own."""
    target = re.search(r"^_target_: *(\S+)", path.read_text(), re.MULTILINE)
    return path.stem not in WRITTEN and (target is None or target[1].partition(".")[0] in ("feedrate", "torch"))


def _rows(path: Path) -> list[tuple[str, str, str]]:
    found = (_LINE.match(line) for line in path.read_text().splitlines())
    return [(m["key"], m["value"], m["text"].replace("|", "\\|")) for m in found if m]


def _root() -> list[str]:
    path = ROOT / "conf/train.yaml"
    _, _, sweep = path.read_text().partition("\nsweep:\n")
    nested = (_LINE.match(line.strip()) for line in sweep.partition("\n\n")[0].splitlines())
    rows = [*_rows(path), *((f"sweep.{m['key']}", m["value"], m["text"]) for m in nested if m)]
    return [f"| `{key}` | `{value}` | {text} |" for key, value, text in rows]


def main() -> None:
    page = ROOT / "docs/configuration.md"
    head, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{head}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
