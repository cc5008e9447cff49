"""Recording of runs: MLflow, its pages, pictures and notes.

Importing this package imports neither mlflow nor matplotlib nor torch.
"""

from feedrate.tracking.address import without_secrets
from feedrate.tracking.naming import run_name
from feedrate.tracking.tracker import NullTracker, Status, Tracker, open_tracker

__all__ = [
    "NullTracker",
    "Status",
    "Tracker",
    "open_tracker",
    "run_name",
    "without_secrets",
]
