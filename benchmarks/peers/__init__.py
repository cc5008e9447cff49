"""One file per sample against the other loaders: `python benchmarks/run.py peers`, or `make bench-peers`."""

from peers.bench import run

__all__ = ["run"]
