"""What a sweep copies of the configuration's folders, so that later edits reach none of its jobs."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import OmegaConf

from hydra_plugins.feedrate_launcher._freeze import FrozenFiles


def frozen(source: Path, folder: Path) -> list[str]:
    """Names of the files that are copied."""
    sources = [{"path": str(source), "schema": "file", "provider": "main"}]
    job = {"config_name": "train"}
    master = {"job": job, "overrides": {"hydra": []}, "runtime": {"config_sources": sources}}
    FrozenFiles(OmegaConf.create({"hydra": master}), folder)
    root = folder / "conf/main"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_yaml_files_are_copied_whatever_lies_beside_them(tmp_path):
    conf = tmp_path / "conf"
    for name in ("train.yaml", "model/cnn.yaml", "model/deep/er.yaml"):
        (conf / name).parent.mkdir(parents=True, exist_ok=True)
        (conf / name).write_text(f"name: {name}\n")
    (conf / "model/.#cnn.yaml").symlink_to("somebody@host.1234:1700000000")  # as Emacs locks a file
    os.mkfifo(conf / "model/pipe.yaml")
    os.mkfifo(conf / "pipe")
    with (conf / "weights.bin").open("wb") as file:
        file.truncate(300_000_000)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/mine.yaml").write_text("a: 1\n")
    (conf / "optimizer").symlink_to(tmp_path / "shared")
    (conf / "scheduler").symlink_to(tmp_path / "shared")
    (conf / "model/linked.yaml").symlink_to(tmp_path / "shared/mine.yaml")
    (conf / "model/loop").symlink_to(conf)
    wanted = ["model/cnn.yaml", "model/deep/er.yaml", "model/linked.yaml", "optimizer/mine.yaml",
              "scheduler/mine.yaml", "train.yaml"]  # fmt: skip
    assert frozen(conf, tmp_path / "sweep") == wanted
    assert (tmp_path / "sweep/conf/main/train.yaml").read_text() == "name: train.yaml\n"
    assert frozen(conf, tmp_path / "sweep") == wanted  # a sweep that goes on
