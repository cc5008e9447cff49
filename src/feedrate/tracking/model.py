"""A model in MLflow's own form (`tracking.log_model=true`): an archive of torch.export.

Takes seconds; the weights alone are kept by checkpoints, which is what a later run goes on from.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import Tensor, nn


def log_model(module: nn.Module, example: Tensor, *, client: MlflowClient, run_id: str, tracking_uri: str) -> None:
    """Export a copy of `module` in evaluation mode on the CPU and record it as the model `model` of the run.

    Args:
        module: any device and mode, compiled or not; it is left as it is.
        example: one batch `(B, ...)`; with B of at least 2 the batch size stays free in the export.
        client: of the store at `tracking_uri`, which becomes MLflow's global one, since its call needs that.
        run_id: an open run of that store.
    """
    import mlflow
    import torch
    from mlflow.models import Model

    mlflow.set_tracking_uri(tracking_uri)
    plain = copy.deepcopy(getattr(module, "_orig_mod", module)).cpu().eval()
    run = client.get_run(run_id)
    # Made here, since MLflow's own call would put it into the experiment that happens to be the global one.
    record = client.create_logged_model(
        run.info.experiment_id, name="model", source_run_id=run_id, params=run.data.params
    )
    with torch.no_grad():
        Model.log(
            artifact_path=None,
            name="model",
            flavor=mlflow.pytorch,
            run_id=run_id,
            model_id=record.model_id,
            pytorch_model=plain,
            input_example=example.detach().cpu().numpy(),
            # Given, since working it out takes MLflow a process and eight seconds.
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
        )
