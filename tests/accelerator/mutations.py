"""Takes one line at a time out of the code that keeps a device's work in order, and sees that tests fail without it.

python tests/accelerator/mutations.py        about two minutes; ends with exit code 1 if a line is not missed
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import accelerator

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/loader/test_transfer.py", "tests/trainer/test_on_simulated.py")
TRANSFER, AHEAD = "src/feedrate/loader/transfer.py", "src/feedrate/timing/ahead.py"
REMOVED = {
    "the step's wait for the copy": (TRANSFER, "        current.wait_event(done)\n"),
    "record_stream": (TRANSFER, "            tensor.record_stream(current)  # or"),
    "the wait for the copy's end": (TRANSFER, "                done.synchronize()"),
    "the bound on running ahead": (AHEAD, "            self._ends.popleft().synchronize()"),
}


def main() -> int:
    accelerator.build()
    missed = 0
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        for name in ("src", "conf", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if failed := failing_tests(copy):
            print("these tests fail anyway:", *failed, sep="\n  ")
            return 1
        for what, (file, line) in REMOVED.items():
            text = (copy / file).read_text()
            assert text.count(line) == 1, f"{file} has no line that begins with {line!r}"
            begin = text.index(line)
            indent = len(line) - len(line.lstrip())
            (copy / file).write_text(text[: begin + indent] + "pass  # " + text[begin + indent :])
            failed = failing_tests(copy)
            (copy / file).write_text(text)
            missed += bool(failed)
            print(f"without {what}: {len(failed)} tests fail", *failed, sep="\n  ", flush=True)
    return 0 if missed == len(REMOVED) else 1


def failing_tests(copy: Path) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=no", "-p", "no:cacheprovider", *TESTS,
               "-k", "accelerator or issues or rates or waits"]  # fmt: skip
    done = subprocess.run(command, cwd=copy, env=accelerator.child_environment(), capture_output=True, text=True)
    return [line.split(" - ")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")]


if __name__ == "__main__":
    sys.exit(main())
