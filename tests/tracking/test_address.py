"""The address of the store: what is taken, what is refused, and that no password is ever shown."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from feedrate.config import ROOT
from feedrate.errors import UserError
from feedrate.system.secrets import without_secrets
from feedrate.tracking.address import experiment_link, read_address, run_link

ODD_NAMES = ["My%20Drive", "why?", "a#b", "a b", "größe 猫", "100%", "{x}$HOME", "a@b:c@d;e&f=g", "'\"\\"]


@pytest.mark.parametrize("uri", ["outputs/mlflow.db", "sqlite:///outputs/mlflow.db", f"{ROOT}/outputs/mlflow.db"])
def test_a_path_counts_from_the_repository_root_from_any_folder(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = read_address(uri, "outputs/artifacts")
    assert address.database == ROOT / "outputs" / "mlflow.db"
    assert address.uri == f"sqlite:///{ROOT}/outputs/mlflow.db"
    assert address.artifacts == (ROOT / "outputs" / "artifacts").as_uri()


def test_artifacts_lie_beside_the_file_unless_said_otherwise(tmp_path: Path) -> None:
    assert read_address(f"{tmp_path}/a b/x.db").artifacts == (tmp_path / "a b" / "artifacts").as_uri()
    assert read_address(f"{tmp_path}/x.db", "s3://bucket/runs").artifacts == "s3://bucket/runs"
    assert read_address("http://host:5000", "outputs/artifacts").artifacts is None
    assert read_address("http://host:5000", "s3://bucket/runs").artifacts == "s3://bucket/runs"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_path_is_the_same_file_for_sqlalchemy_whatever_characters_it_has(tmp_path: Path, name: str) -> None:
    from sqlalchemy.engine import make_url

    for uri in (f"{tmp_path}/{name}/x.db", f"sqlite:///{tmp_path}/{name}/x.db"):
        address = read_address(uri)
        assert address.database == tmp_path / name / "x.db"
        assert make_url(address.uri).database == str(address.database)
        assert make_url(address.uri.format(SCHEMA_VERSION=1)).database == str(address.database)  # as Optuna does
        assert url2pathname(urlsplit(str(address.artifacts)).path) == str(tmp_path / name / "artifacts")


@pytest.mark.parametrize(
    ("uri", "rule"),
    [
        ("sqlite://", "sqlite:///PATH"),
        ("sqlite:///:memory:", "sqlite:///PATH"),
        ("file:///data/mlruns", "not in a folder"),
        ("", "tracking=none"),
        ("conf", "not in a folder"),
    ],
)
def test_an_address_that_can_be_no_store_is_refused_with_the_remedy(uri: str, rule: str) -> None:
    with pytest.raises(UserError, match=rule) as caught:
        read_address(uri)
    assert "tracking.uri" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_no_link_and_no_text_shows_the_password() -> None:
    address = read_address("https://ann:p@ssw0rd@mlflow.example.org/team/")
    assert address.uri == "https://ann:p@ssw0rd@mlflow.example.org/team"
    assert address.shown == "https://***@mlflow.example.org/team"
    assert address.page == "https://mlflow.example.org/team"
    text = "a http://u:p@h/x and postgresql://me:pw@db:5432/runs, mail me@example.org"
    assert without_secrets(text) == "a http://***@h/x and postgresql://***@db:5432/runs, mail me@example.org"


def test_links_open_the_training_pages_of_mlflow() -> None:
    page = read_address("outputs/mlflow.db").page
    view = "workflowType=machine_learning&viewStateShareKey=feedrate"
    assert experiment_link(page, "7") == f"{page}/#/experiments/7/runs?{view}"
    assert run_link(page, "7", "abc") == f"{page}/#/experiments/7/runs/abc?workflowType=machine_learning"


def test_links_lead_to_the_port_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = read_address(f"{tmp_path}/mlflow.db")
    assert address.page == "http://127.0.0.1:5000"
    monkeypatch.setenv("PORT", "5007")  # which `make ui` reads too
    assert address.page == "http://127.0.0.1:5007"
