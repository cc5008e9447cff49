"""Recording of runs in MLflow. Importing this package imports neither mlflow nor matplotlib nor torch."""

from feedrate.system.secrets import masked
from feedrate.tracking.naming import run_name
from feedrate.tracking.tracker import Status, Tracker, open_tracker, start_uploader

__all__ = ["Status", "Tracker", "masked", "open_tracker", "run_name", "start_uploader"]
