"""The configuration of a sweep's jobs is that of its start, whatever lies beside the files or happens to them."""

from __future__ import annotations

import os
import pickle

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode

from feedrate.cli.launch import CONF, _register_resolvers
from hydra_plugins.feedrate_launcher._jobs import compose


def test_jobs_are_composed_whatever_lies_beside_the_files_and_keep_their_configuration(tmp_path):
    folder = tmp_path / "conf/experiment"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text("# @package _global_\ntrainer: {max_epochs: 1}\n")
    (folder / ".#tiny.yaml").symlink_to("somebody@host.1234:1700000000")  # as Emacs locks a file
    os.mkfifo(folder / "pipe.yaml")
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(300_000_000)
    (folder / "loop").symlink_to(tmp_path / "conf")
    _register_resolvers()
    typed = [f"hydra.searchpath=[file://{tmp_path}/conf]", f"hydra.sweep.dir={tmp_path}/out", "hydra.mode=MULTIRUN"]
    jobs = [["experiment=tiny", "tracking=none", "optimizer._target_=torch.optim.RMSprop", f"seed={i}"] for i in (3, 4)]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        of_hydra = GlobalHydra.instance().hydra
        assert of_hydra is not None
        master = of_hydra.compose_config("train", typed, RunMode.MULTIRUN)
        composed = compose(HydraContext(of_hydra.config_loader, Callbacks(master)), master, jobs, 0, ["seed"])
    (folder / "tiny.yaml").write_text("# @package _global_\ntrainer: {max_epochs: 99}\n")
    assert [job.settings["seed"] for job in composed] == ["3", "4"]
    sent = pickle.loads(composed[1].sent(tmp_path / "run", resume=True))
    assert (sent.seed, sent.trainer.max_epochs, sent.trainer.resume) == (4, 1, str(tmp_path / "run"))
    assert set(sent.optimizer) == {"_target_", "lr", "weight_decay"}  # the class's own defaults are in it already
    assert (sent.hydra.run.dir, sent.hydra.job.num, sent.hydra.mode) == (str(tmp_path / "run"), 1, RunMode.RUN)
    assert sent.hydra.overrides.task == jobs[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf"]
