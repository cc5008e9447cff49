"""The saved view: the columns of MLflow's table of runs, which by default shows no parameter and no metric.

It is MLflow's internal format (an experiment tag that its Views menu writes), so writing it is best effort;
tests/end_to_end/test_browser.py looks at it in a browser.
"""

from __future__ import annotations

import base64
import json
import logging
import time
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

VIEW_KEY = "feedrate"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
VIEW_NAME = "Feedrate"

METRICS = (
    *("best/accuracy", "best/loss", "best/epoch", "validation/accuracy", "validation/loss"),
    *("loader/samples_per_s", "loader/wait_pct"),
)
PARAMS = ("loader.num_workers", "loader.batch_size", "model", "dataset")


def write_view(client: MlflowClient, experiment_id: str, present: Mapping[str, str]) -> None:
    """Give the experiment our view unless it has one, which the user may have changed. Never raises."""
    if VIEW_TAG in present:
        return
    try:
        client.set_experiment_tag(experiment_id, VIEW_TAG, view_tag())
    except Exception as error:
        logging.getLogger(__name__).warning("the saved view of the table of runs was not written: %s", error)


def view_tag(metrics: tuple[str, ...] = METRICS, params: tuple[str, ...] = PARAMS) -> str:
    """Value of the tag that holds a view with these columns, newest run first, all runs visible in charts."""
    columns = {f"metrics.`{name}`": name for name in metrics} | {f"params.`{name}`": name for name in params}
    widths = {column: _width(name) for column, name in columns.items()}
    widths |= {"attributes.`Run Name`": 280, "attributes.`Dataset`": 300}
    state = {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "searchFilter": "",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*columns, "attributes.`Dataset`"],
        "columnOrder": list(widths),
        "columnWidths": widths,
        "runsHiddenMode": "SHOW_ALL",
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = int(time.time() * 1000)
    return json.dumps({"name": VIEW_NAME, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"})


def _width(name: str) -> int:
    """Width of a column in pixels at which its name can be read; MLflow's own 100 cut it after 14 letters."""
    return max(90, 30 + 7 * len(name))
