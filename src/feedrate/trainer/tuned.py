"""The file that tune.py writes: an option of the group loader, with the figures that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from feedrate.dataset.cores import usable_cores
from feedrate.errors import UserError
from feedrate.trainer.tune import Tuned


def write(path: Path, node: Mapping[str, Any], found: Tuned, command: str, dataset: str, model: str) -> None:
    """Writes the option; an earlier one is replaced.

    Args:
        node: conf/loader, resolved; what was not tuned stays as it is.
        command: that made it.

    Raises:
        UserError: the file cannot be written.
    """
    best = found.best
    lines = [
        "# python src/train.py loader=tuned",
        f"# Written by {command}",
        f"# on {datetime.now(timezone.utc):%Y-%m-%d}, for {dataset} and {model} on {usable_cores()} cores.",
        f"# {best.setting}: {best.samples_per_s:,.0f} samples/s, waited {best.wait_pct:.1f} %; "
        f"the step can take {found.step_samples_per_s:,.0f} samples/s.",
        "# The batches are the same with every setting: a function of (seed, epoch, position).",
        "# tried:",
    ]
    for trial in found.trials:
        said = f", predicted {trial.predicted:,.0f}" if trial.predicted else ""
        lines.append(f"#   {trial.setting}: {trial.samples_per_s:,.0f} samples/s, waited {trial.wait_pct:.1f} %{said}")
    content = OmegaConf.to_yaml(OmegaConf.create({**node, **best.setting.overrides}))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n" + content, encoding="utf-8")
    except OSError as error:
        text = f"tune.output={path}: cannot be written ({error.strerror or error}); name another file"
        raise UserError(text) from error
