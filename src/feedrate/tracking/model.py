"""A model in MLflow's own form (`tracking.log_model=true`): an archive of torch.export.

Takes seconds; the weights alone are kept by checkpoints, which is what a later run goes on from.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import Tensor, nn

_NAME = "model"
_TAG = "feedrate.journal"


def export_model(module: nn.Module, example: Tensor, path: Path) -> None:
    """Writes a copy of `module` in evaluation mode on the CPU into the new folder `path`; needs no store.

    Args:
        module: any device and mode, compiled or not; it is left as it is.
        example: one batch `(B, ...)`; with B of at least 2 the batch size stays free in the export.
    """
    import mlflow.pytorch
    import torch

    shutil.rmtree(path, ignore_errors=True)
    plain = copy.deepcopy(getattr(module, "_orig_mod", module)).cpu().eval()
    with torch.no_grad():
        mlflow.pytorch.save_model(
            plain,
            path,
            input_example=example.detach().cpu().numpy(),
            # Given, since working it out takes MLflow a process and eight seconds.
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
        )


def deliver_model(client: MlflowClient, run_id: str, path: Path, key: str) -> None:
    """Records a folder that `export_model` wrote as the model `model` of the run.

    Args:
        client: of the store that has the run.
        key: of this delivery; a model that bears it already is finished instead of made again.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    found = client.search_logged_models([experiment], filter_string=f"tags.`{_TAG}` = '{key}'")
    record = found[0] if found else client.create_logged_model(
        experiment, name=_NAME, source_run_id=run_id, tags={_TAG: key}, params=run.data.params
    )  # fmt: skip
    if record.status == LoggedModelStatus.READY:
        return
    about = Model.load(str(path / "MLmodel"))
    about.model_id, about.run_id = record.model_id, run_id
    about.save(str(path / "MLmodel"))
    client.log_model_artifacts(record.model_id, str(path))
    client.log_outputs(run_id, [LoggedModelOutput(model_id=record.model_id, step=0)])
    client.finalize_logged_model(record.model_id, LoggedModelStatus.READY)
