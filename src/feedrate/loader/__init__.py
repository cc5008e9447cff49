"""How batches arrive: order, fetching, engines, digest, transfer to the device."""

from feedrate.loader.batch import Batch, BatchInfo
from feedrate.loader.build import build_loaders, close_loaders, start_loaders
from feedrate.loader.engines import TRAITS
from feedrate.loader.engines.lost_worker import lost_worker
from feedrate.loader.loader import Loader, SeededLoader
from feedrate.loader.order import Order
from feedrate.loader.report import setup_of
from feedrate.loader.torch_loader import TorchLoader
from feedrate.loader.transfer import ToDevice

__all__ = [
    "TRAITS",
    "Batch",
    "BatchInfo",
    "Loader",
    "Order",
    "SeededLoader",
    "ToDevice",
    "TorchLoader",
    "build_loaders",
    "close_loaders",
    "lost_worker",
    "setup_of",
    "start_loaders",
]
