"""What the processes of a run use is read from the system: real children that compute, allocate, read and end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from feedrate.config import ROOT
from feedrate.tracking.system_metrics import ProcessTree

Start = Callable[[str], subprocess.Popen[str]]
CODE = "import os, subprocess, sys, time\nprint('there', flush=True)\nfor line in sys.stdin:\n    exec(line)\n"
CODE += "    print('done', flush=True)\n"


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes that execute each line they are sent; they are ended at last."""
    running: list[subprocess.Popen[str]] = []

    def start_one(code: str = CODE) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield start_one
    for process in running:
        process.kill()
        process.communicate()


def tell(process: subprocess.Popen[str], line: str) -> str:
    """Has a line executed, and returns what it prints before it is done."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    said = process.stdout.readline()
    return said if said == "done\n" else said + process.stdout.readline()


def with_worker(start: Start) -> subprocess.Popen[str]:
    """A process with a worker, which executes the lines that `ask` gets; no other process is in this tree."""
    main = start(CODE)
    tell(main, f"worker = subprocess.Popen([sys.executable, '-S', '-c', {CODE!r}], text=True, "
               "stdin=subprocess.PIPE, stdout=subprocess.PIPE); worker.stdout.readline()")  # fmt: skip
    tell(main, "ask = lambda line: print(line, file=worker.stdin, flush=True) or worker.stdout.readline()")
    return main


def read(tree: ProcessTree) -> tuple[dict[str, float], float]:
    """A whole reading, and the seconds since the one before."""
    before = tree._at
    return tree.read(last=True), tree._at - before


def test_processor_time_is_that_of_all_processes_and_the_workers_part(start: Start) -> None:
    child = start(CODE)
    before = float(tell(child, "print(time.process_time())").split()[0])
    tree = ProcessTree(os.getpid())
    own = time.process_time()
    spent = float(tell(child, "a = time.process_time(); [None for _ in iter(lambda: time.process_time() - a < 0.4, "
                              "False)]; print(time.process_time())").split()[0]) - before  # fmt: skip
    least = spent + time.process_time() - own
    found, elapsed_s = read(tree)
    most = spent + time.process_time() - own
    assert found["process_worker_cpu_cores"] * elapsed_s == pytest.approx(spent, abs=0.06)
    assert least - 0.1 <= found["process_cpu_cores"] * elapsed_s <= most + 0.1


MIDDLE = """
import subprocess, sys, time
last = subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print("there", flush=True)
time.sleep(600)
"""


def test_processes_of_processes_are_counted(start: Start) -> None:
    main = start(CODE)
    tree = ProcessTree(main.pid)
    found, _ = read(tree)
    assert found["process_count"] == 1
    tell(main, f"middle = subprocess.Popen([sys.executable, '-S', '-c', {MIDDLE!r}], stdout=subprocess.PIPE); "
               "middle.stdout.readline()")  # fmt: skip
    found, _ = read(tree)
    assert found["process_count"] == 3
    tell(main, "middle.kill(); middle.wait()")
    found, _ = read(tree)
    assert found["process_count"] == 1


def test_memory_of_a_worker_is_added(start: Start) -> None:
    main = with_worker(start)
    tree = ProcessTree(main.pid)
    before, _ = read(tree)
    tell(main, "ask(\"block = bytearray(b'x') * 80_000_000\")")
    found, _ = read(tree)
    for name in ("process_memory_mb", "process_worker_memory_mb"):
        assert found[name] - before[name] == pytest.approx(80, abs=5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system does not tell shares of memory")
def test_memory_that_several_share_counts_once() -> None:
    code = "import os, sys, time\nblock = bytearray(b'x') * 80_000_000\n"
    code += "children = [os.fork() for _ in range(1)]\nif not children[0]:\n    time.sleep(60)\n"
    code += "print('there', flush=True)\nsys.stdin.readline()\nos.kill(children[0], 9)\n"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as main:
        assert main.stdout is not None
        main.stdout.readline()
        found, _ = read(ProcessTree(main.pid))
        main.communicate("end\n")
    assert found["process_count"] == 2
    assert found["process_memory_mb"] == pytest.approx(90, abs=10)
    assert found["process_worker_memory_mb"] == pytest.approx(43, abs=6)


def test_what_is_read_is_counted_in_megabytes(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(20_000_000))
    main = with_worker(start)
    tree = ProcessTree(main.pid)
    line = f"open({str(tmp_path / 'file')!r}, 'rb').read()"
    tell(main, f"ask({line!r})")
    found, elapsed_s = read(tree)
    assert found["process_read_mb_per_s"] * elapsed_s == pytest.approx(20, abs=2)
    assert found["process_disk_read_mb_per_s"] >= 0


def test_memory_is_read_as_rarely_as_its_cost_demands() -> None:
    tree = ProcessTree(os.getpid())
    assert "process_memory_mb" in tree.read()
    assert "process_memory_mb" not in tree.read()
    assert "process_memory_mb" in tree.read(last=True)


def test_processes_that_end_while_they_are_read_are_left_out(start: Start) -> None:
    child = start("import subprocess\nprint('there', flush=True)\nwhile True:\n    subprocess.run(['/bin/true'])")
    tree, counts = ProcessTree(child.pid), []
    while len(counts) < 100 or len(set(counts)) < 2:  # until one was seen
        counts.append(tree.read(last=True)["process_count"])
    assert set(counts) == {1.0, 2.0}


def test_without_the_main_process_there_is_nothing_to_say(start: Start) -> None:
    child = start(CODE)
    tree = ProcessTree(child.pid)
    assert tree.read()["process_count"] == 1
    child.kill()
    child.wait()
    assert tree.read() == {}
    assert ProcessTree(child.pid).read() == {}


def test_the_process_that_reads_is_not_counted(start: Start) -> None:
    code = "import os; from feedrate.tracking.system_metrics import ProcessTree\n"
    code += "print(ProcessTree(os.getppid()).read()['process_count'])"
    said = tell(with_worker(start), f"print(subprocess.run([sys.executable, '-c', {code!r}], stdout=subprocess.PIPE, "
                f"text=True, env={{'PYTHONPATH': {f'{ROOT}/src'!r}}}).stdout.strip())")  # fmt: skip
    assert said == "2.0\ndone\n"
