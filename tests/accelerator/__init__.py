"""A simulated accelerator: the device type `sim`, two of them, asynchronous and unforgiving (see simulated.cpp).

    FEEDRATE_SIMULATED_ACCELERATOR=1 python -m pytest -m gpu      all tests that need an accelerator, on this one

`load()` makes it torch's accelerator for the rest of the process. Child processes load it by themselves, by torch's
autoload of device backends, where `child_environment()` is their environment.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

VARIABLE = "FEEDRATE_SIMULATED_ACCELERATOR"
NAME, DEVICES = "sim", 2
HERE = Path(__file__).parent
BUILT = HERE / ".built"
AUTOLOAD = BUILT / "autoload"


def wanted() -> bool:
    return os.environ.get(VARIABLE) == "1"


def reason_not_to_build() -> str:
    """Why it cannot be compiled here; empty where it can."""
    if not sys.platform.startswith("linux"):
        return f"the simulated accelerator is for Linux, not {sys.platform}"
    return "" if shutil.which(_compiler()) else f"the simulated accelerator needs a C++ compiler, {_compiler()}"


def build() -> Path:
    """The compiled library, for this source and this torch; compiling takes about half a minute.

    Raises:
        RuntimeError: it does not compile.
    """
    import torch
    from filelock import FileLock

    source = HERE / "simulated.cpp"
    key = hashlib.sha256(source.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = BUILT / f"simulated-{key}.so"
    BUILT.mkdir(exist_ok=True)
    with FileLock(BUILT / "lock"):
        if not library.exists():
            for old in BUILT.glob("simulated-*"):
                old.unlink()
            torch_folder = Path(torch.__file__).parent
            include = torch_folder / "include"
            temporary = library.with_suffix(".tmp")
            command = [_compiler(), "-O1", "-std=c++20", "-fPIC", "-shared", "-w", f"-I{include}",
                       f"-I{include}/torch/csrc/api/include", str(source), "-o", str(temporary),
                       f"-L{torch_folder}/lib", "-ltorch_cpu", "-lc10", "-lpthread"]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
            temporary.rename(library)
        _write_entry_point()
    return library


def load() -> Any:
    """Makes it torch's accelerator, and returns the module torch.sim."""
    import torch

    if loaded():
        return torch.sim  # type: ignore[attr-defined]
    torch.ops.load_library(str(build()))
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())
    torch.utils.generate_methods_for_privateuse1_backend(for_tensor=True, for_module=True, for_storage=True)
    atexit.register(_finish)
    return torch.sim  # type: ignore[attr-defined]


def autoload() -> None:
    """Called by `import torch` in a process that has `child_environment()`."""
    if wanted():
        load()


def child_environment() -> dict[str, str]:
    """In which Python processes have it, too."""
    paths = [str(AUTOLOAD), str(HERE.parent), str(HERE.parent / "helpers"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, VARIABLE: "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def loaded() -> bool:
    import torch

    return hasattr(torch, NAME)


class Simulated:
    """What tests set and read; all of it is as in the beginning at the start of each test."""

    KERNEL, COPY = 0, 1

    def __init__(self) -> None:
        import torch

        self._torch, self._ops = torch, torch.ops.feedrate_sim

    def reset(self) -> None:
        """No delays, no limits, no counts."""
        self.delay()
        for index in range(DEVICES):
            self.limit_memory(index, 0)
        for index in range(DEVICES):
            with suppress(RuntimeError):  # a test let it fail
                self._torch.accelerator.synchronize(index)
        self._torch.accelerator.set_device_index(0)
        self._ops.reset(True)

    def forget(self) -> None:
        """Counts and trace begin again."""
        self._ops.reset(True)

    def synchronize(self) -> None:
        for index in range(DEVICES):
            self._torch.accelerator.synchronize(index)

    def delay(self, kernel_s: float = 0.0, copy_s: float = 0.0) -> None:
        """Each kernel, and each copy between host and device, takes so much longer."""
        self._ops.delay(kernel_s, copy_s)

    def sleep(self, seconds: float, device: int = 0) -> None:
        """A kernel of that length on the current stream."""
        self._ops.sleep(device, seconds)

    def limit_memory(self, device: int, nbytes: int) -> None:
        """More raises OutOfMemoryError; 0 for no limit."""
        self._ops.limit_memory(device, nbytes)

    def waits(self) -> Counter[str]:
        """How often the host waited for the device, by operator."""
        return Counter(self._ops.waits())

    def launches(self) -> int:
        """Kernels and copies that were issued."""
        return int(self._ops.launches())

    def trace(self) -> Any:
        """(tasks, 5) int64 array: kind, device, stream, begin and end in ns, in the order in which they ended."""
        return self._ops.trace().numpy()

    def used(self, device: int) -> bool:
        """Whether anything was ever done on a device, pinning with it as the current one included."""
        return bool(self._ops.used(device))

    @contextmanager
    def unused(self, device: int) -> Iterator[None]:
        """In the block the device counts as one that was never used."""
        before = self.used(device)
        self._ops.forget_use(device)
        yield
        if before:
            self._torch.empty(1, device=f"{NAME}:{device}")


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _write_entry_point() -> None:
    info = AUTOLOAD / "feedrate_simulated_accelerator-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: feedrate-simulated-accelerator\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\nfeedrate_sim = accelerator:autoload\n")


def _finish() -> None:
    """Streams are threads in torch's code: they must be idle when Python takes it apart."""
    import torch

    if not torch.sim._is_in_bad_fork():  # type: ignore[attr-defined]
        for index in range(DEVICES):
            with suppress(RuntimeError):
                torch.accelerator.synchronize(index)


def _module() -> types.ModuleType:
    """What torch and Feedrate ask of a device's module."""
    import torch

    ops = torch.ops.feedrate_sim
    module: Any = types.ModuleType(f"torch.{NAME}")

    def index_of(device: Any = None) -> int:
        if isinstance(device, int):
            return device
        index = torch.device(device).index if device is not None else None
        return torch.accelerator.current_device_index() if index is None else index

    def manual_seed_all(seed: int) -> None:
        for index in range(DEVICES):
            ops.seed(index, seed % 2**63)

    module.is_available = lambda: True
    module.is_initialized = lambda: any(ops.used(index) for index in range(DEVICES))
    module.device_count = lambda: DEVICES
    module.current_device = torch.accelerator.current_device_index
    module.set_device = torch.accelerator.set_device_index
    module.get_device_name = lambda device=None: "Simulated accelerator"
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    module.get_rng_state = lambda device=NAME: ops.rng_state(index_of(device))
    module.set_rng_state = lambda state, device=NAME: ops.set_rng_state(index_of(device), state)
    module.manual_seed = lambda seed: ops.seed(index_of(), seed % 2**63)
    module.manual_seed_all = manual_seed_all
    module.synchronize = lambda device=None: torch.accelerator.synchronize(index_of(device))
    module._is_in_bad_fork = ops.in_bad_fork
    return module
