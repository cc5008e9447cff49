"""Datasets, their catalogs, and random numbers keyed by sample."""

from feedrate.dataset.build import Data, build_data, check_shapes, list_IDs, without_transform
from feedrate.dataset.catalog import Catalog
from feedrate.dataset.digits import Digits
from feedrate.dataset.generated import Generated
from feedrate.dataset.ids import IDs, Labels
from feedrate.dataset.in_memory import InMemory
from feedrate.dataset.packed import Packed
from feedrate.dataset.rng import sample_rng
from feedrate.dataset.tensor_files import ArrayFiles, TensorFiles
from feedrate.timing.stages import stage

__all__ = [
    "ArrayFiles",
    "Catalog",
    "Data",
    "Digits",
    "Generated",
    "IDs",
    "InMemory",
    "Labels",
    "Packed",
    "TensorFiles",
    "build_data",
    "check_shapes",
    "list_IDs",
    "sample_rng",
    "stage",
    "without_transform",
]
