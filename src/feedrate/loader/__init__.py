"""How batches arrive: order, fetching, digest, transfer to the device."""

from feedrate.loader.batch import BatchInfo
from feedrate.loader.build import build_loaders, close_loaders, start_loaders
from feedrate.loader.engines.processes import lost_worker
from feedrate.loader.loader import Loader, SeededLoader
from feedrate.loader.order import Order
from feedrate.loader.report import Report, setup_of
from feedrate.loader.transfer import Batch, ToDevice

__all__ = [
    "Batch",
    "BatchInfo",
    "Loader",
    "Order",
    "Report",
    "SeededLoader",
    "ToDevice",
    "build_loaders",
    "close_loaders",
    "lost_worker",
    "setup_of",
    "start_loaders",
]
