"""The configuration of a sweep's jobs is that of its start, whatever lies beside the files or happens to them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from feedrate.cli.launch import CONF, _register_resolvers
from hydra_plugins.feedrate_launcher._jobs import Job, compose


def composed_jobs(conf: Path, jobs: list[list[str]], place: str) -> tuple[DictConfig, list[Job]]:
    """A sweep's configuration and its jobs, which are swept over `seed`; files of `conf` can be chosen."""
    _register_resolvers()
    typed = [f"hydra.searchpath=[file://{conf}]", f"hydra.sweep.dir={place}", "hydra.mode=MULTIRUN"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        of_hydra = GlobalHydra.instance().hydra
        assert of_hydra is not None
        master = of_hydra.compose_config("train", typed, RunMode.MULTIRUN)
        assert master.hydra.sweep.dir.startswith(f"{conf.parent}")  # the launcher reads it first
        return master, compose(HydraContext(of_hydra.config_loader, Callbacks(master)), master, jobs, 0, ["seed"])


def test_jobs_are_composed_whatever_lies_beside_the_files_and_keep_their_configuration(tmp_path):
    folder = tmp_path / "conf/experiment"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text("# @package _global_\ntrainer: {max_epochs: 1}\n")
    (folder / ".#tiny.yaml").symlink_to("somebody@host.1234:1700000000")  # as Emacs locks a file
    os.mkfifo(folder / "pipe.yaml")
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(300_000_000)
    (folder / "loop").symlink_to(tmp_path / "conf")
    jobs = [["experiment=tiny", "tracking=none", "optimizer._target_=torch.optim.RMSprop", f"seed={i}"] for i in (3, 4)]
    _, composed = composed_jobs(tmp_path / "conf", jobs, f"{tmp_path}/out")
    (folder / "tiny.yaml").write_text("# @package _global_\ntrainer: {max_epochs: 99}\n")
    assert [job.settings["seed"] for job in composed] == ["3", "4"]
    sent = pickle.loads(composed[1].sent(tmp_path / "run", resume=True))
    assert (sent.seed, sent.trainer.max_epochs, sent.trainer.resume) == (4, 1, str(tmp_path / "run"))
    assert set(sent.optimizer) == {"_target_", "lr", "weight_decay"}  # the class's own defaults are in it already
    assert (sent.hydra.run.dir, sent.hydra.job.num, sent.hydra.mode) == (str(tmp_path / "run"), 1, RunMode.RUN)
    assert sent.hydra.overrides.task == jobs[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf"]


VALUES = r"""# @package _global_
model:
  _target_: own_models.Needy
  now: ${now:%f}
  values:
    - [1, 1.0, 1e-5, -.inf, 0.1, 123456789012345678901, true, null, [], {}, [[]]]
    - ['1', '1e-5', '1._e1', '0x1F', '1:30', '2024-01-31', 'true', 'null', '~', '', ' ', "a\nb\t\x07", 'Möwe ☃']
    - [{1: one, 2: two}, {true: yes}, {key: !!binary "AP8="}]
    - ['${seed}', '\${seed}', '${oc.env:NOT_SET,3}', '${repository:}/x', '${hydra:job.num}']
"""


def test_a_job_gets_every_value_as_the_sweep_has_it(tmp_path):
    """Types, texts that look like numbers, interpolations, and what `${now:}` was in the name of the sweep's folder."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/values.yaml").write_text(VALUES, encoding="utf-8")
    place = f"{tmp_path}/${{now:%f}}"
    master, (job,) = composed_jobs(tmp_path, [["experiment=values", "tracking=none"]], place)
    sent = pickle.loads(job.sent(tmp_path / "run", resume=False))
    found = OmegaConf.to_container(sent.model, resolve=False)
    assert repr(found) == repr(OmegaConf.to_container(job.composed.model, resolve=False))
    assert repr(found["values"][0]) == "[1, 1.0, 1e-05, -inf, 0.1, 123456789012345678901, True, None, [], {}, [[]]]"
    assert all(isinstance(text, str) for text in found["values"][1])
    assert sent.model.now == master.hydra.sweep.dir.rpartition("/")[2]
    assert OmegaConf.get_type(sent, "hydra") is OmegaConf.get_type(master, "hydra")
