"""One `.npy` file per sample: `root/ID.npy` holds the array X, the labels come from a dictionary.

The same as tensor_files.py, for files that np.save wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from feedrate.dataset.formats.file_layout import learn_npy
from feedrate.dataset.formats.file_template import npy_template
from feedrate.dataset.formats.npy_file import load_array
from feedrate.dataset.formats.sample_reader import SampleReader
from feedrate.dataset.tensor_files import TensorFiles


class ArrayFiles(TensorFiles):
    """Samples in files of their own, as np.save wrote them; X comes as a tensor in this machine's byte order.

    Args:
        list_IDs, labels, root, transform, cache, partition: as for TensorFiles.

    Raises:
        UserError: an ID has no label, or is no text.
        SampleError: from `dataset[index]`, naming ID and file.
    """

    suffix = ".npy"

    def __init__(
        self,
        list_IDs: Sequence[str],
        labels: Mapping[str, Any],
        root: str | Path = "data",
        transform: Callable[[Any], Any] | None = None,
        cache: str = "none",
        partition: str = "samples",
    ) -> None:
        super().__init__(list_IDs, labels, root, transform, cache=cache, partition=partition)

    def _make_reader(self, verify: bool) -> SampleReader:
        return SampleReader(load_array, learn_npy, npy_template)
