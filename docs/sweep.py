"""Runs the sweep that docs/sweeps.md shows, and writes its table and pictures:  python docs/sweep.py

Minutes on a quiet machine; nothing else should run meanwhile, since the figures are of this machine.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SWEEP = ["-m", "loader.num_workers=0,1,2", "loader.batch_size=32,128"]
BEGIN, END = "<!-- sweep: written by docs/sweep.py -->", "<!-- end of sweep -->"


def main() -> None:
    """Writes docs/sweep_*.png, and the table between the marks of docs/sweeps.md."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "sweep"
        begin = time.monotonic()
        command = [sys.executable, str(ROOT / "src/train.py"), *SWEEP, f"hydra.sweep.dir={out}", "tracking=none"]
        subprocess.run(command, check=True)
        seconds = time.monotonic() - begin
        for name in ("samples_per_s", "wait_pct"):
            shutil.copyfile(out / f"{name}.png", ROOT / f"docs/sweep_{name}.png")
        write((out / "sweep.md").read_text(), seconds)


def write(text: str, seconds: float) -> None:
    """Puts the sweep's text, without its commands, between the marks."""
    text = re.sub(r"```sh\n.*?```\n\n", "", text, flags=re.DOTALL).replace(" tracking=none", "")
    pictures = '<img src="sweep_samples_per_s.png" width="48%"> <img src="sweep_wait_pct.png" width="48%">'
    parts = [text.strip(), pictures, f"Six jobs in {seconds:.0f} s on two cores."]
    body = "\n".join([BEGIN, "\n\n".join(parts), END])
    page = ROOT / "docs/sweeps.md"
    page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: body, page.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
