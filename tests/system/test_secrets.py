"""Passwords, tokens and keys are masked wherever they could be recorded; ordinary settings stay as they are."""

from __future__ import annotations

import pytest

from feedrate.system.secrets import looks_secret, mask_files, masked, without_secrets
from feedrate.tracking.naming import run_name


@pytest.mark.parametrize(
    "name",
    ["password", "db.passwd", "client_secret", "HF_TOKEN", "api_key", "apiKey", "+a.b.api_key", "AWS_SECRET_ACCESS_KEY",
     "private-key", "credentials", "PGPASSWORD", "auth", "headers.Authorization"],
)  # fmt: skip
def test_names_of_secrets_are_known(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize(
    "name",
    ["num_tokens", "tokenizer", "max_tokens", "cls_token", "pad_token", "author", "key", "keys", "monkey",
     "SSH_AUTH_SOCK", "XAUTHORITY", "secretary", "token_dim"],
)  # fmt: skip
def test_names_of_ordinary_settings_are_not(name: str) -> None:
    assert not looks_secret(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:hunter2@host:5000/x", "http://***@host:5000/x"),
        ("+a.b.api_key=hunter2 with spaces", "+a.b.api_key=***"),
        ("src/train.py seed=1 +a.api_key=hunter2 model=mlp", "src/train.py seed=1 +a.api_key=*** model=mlp"),
        ("https://h/x?user=ann&sig_token=hunter2&page=3", "https://h/x?user=ann&sig_token=***&page=3"),
        ('{"password": "hunter2", "lr": 0.1}', '{"password": "***", "lr": 0.1}'),
        ("dataset={root: a, token: hunter2}", "dataset={root: a, token: ***}"),
        ("a.api_key=${oc.env:KEY}", "a.api_key=${oc.env:KEY}"),
        ("the tokenizer: bert, num_tokens=512", "the tokenizer: bert, num_tokens=512"),
    ],
)  # fmt: skip
def test_texts_lose_their_secrets_and_nothing_else(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


def test_values_of_secret_environment_variables_are_masked_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "p@ss w/rd!")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    assert without_secrets("said p@ss w/rd! and p%40ss%20w%2Frd%21, abc") == "said *** and ***, abc"


def test_nested_settings_keep_their_form_and_lose_their_secrets() -> None:
    settings = {
        "root": "/data", "limit": None, "store": {"api_key": "hunter2", "pin": 12, "passwords": ["x"], "token": 77},
        "list": [{"secret": "a"}], "flag_token": True, "auth": "${oc.env:AUTH}",
    }  # fmt: skip
    assert masked(settings) == {
        "root": "/data", "limit": None, "store": {"api_key": "***", "pin": 12, "passwords": ["x"], "token": "***"},
        "list": [{"secret": "***"}], "flag_token": True, "auth": "${oc.env:AUTH}",
    }  # fmt: skip


def test_files_of_hydra_are_masked_and_interpolations_stay(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text("a:\n  api_key: hunter2\n  token: ${oc.env:T}\n  lr: 1e-3\n")
    (tmp_path / "overrides.yaml").write_text("- +a.api_key=hunter2\n- seed=3\n")
    (tmp_path / "other.yaml").write_text("# a comment\nlr: 1e-3\n")
    mask_files(tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "a:\n  api_key: '***'\n  token: ${oc.env:T}\n  lr: 0.001\n"
    assert (tmp_path / "overrides.yaml").read_text() == "- +a.api_key=***\n- seed=3\n"
    assert (tmp_path / "other.yaml").read_text() == "# a comment\nlr: 1e-3\n"


def test_a_run_is_not_named_after_a_secret() -> None:
    assert "hunter2" not in run_name({"model": "mlp"}, ["+dataset.api_key=hunter2", "seed=3"])


def test_the_shells_own_folder_is_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/projects/project")
    monkeypatch.setenv("OLDPWD", "/projects/elsewhere")
    text = "run folder  /projects/project/outputs/runs/1, before /projects/elsewhere"
    assert without_secrets(text) == text


@pytest.mark.parametrize("word", ["a", "0a", "1", "a."])
def test_a_line_of_one_very_long_word_is_masked_too(word: str) -> None:
    """A line of minified code or of encoded data: time that grows with the square of its length would be hours."""
    line = word * 150_000
    assert without_secrets(f"{line} api_key=abcdefgh {line}") == f"{line} api_key=*** {line}"
