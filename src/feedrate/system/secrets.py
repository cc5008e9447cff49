"""Keeps passwords, tokens and keys out of all that is recorded: `without_secrets` for text, `masked` for settings.

Secrets are recognised by the names of settings, environment variables and parts of addresses.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

MASK = "***"
MIN_CHARACTERS = 6  # of a value that is masked anywhere; a shorter one would be found in ordinary words

# last words of a name: `api_key`, `apiKey`, `MY_API_KEY`, `aws.secretAccessKey`
_SECRET_END = re.compile(
    r"(?:password|passwd|passphrase|pwd|secret|token|credentials?|creds|apikey"
    r"|(?:^|_)(?:o?auth|authorization)|(?:api|access|private|secret|account|auth|encryption|signing)_?key)$"
)
# of a vocabulary or a model, and counts of them
_NO_SECRET = re.compile(r"(?:^|_)(?:bos|eos|pad|unk|mask|cls|sep|class|special|stop|start|end|num|max|min|per)_?token$")
_FOLDERS = {"PWD", "OLDPWD"}  # of the shell: where it stands, no password
_KEY = r"[A-Za-z_][\w.@/-]*"
_USER_INFO = re.compile(r"(?<=://)[^/\s'\"]+@")
# `key=value`, `key: value`, `"key": "value"`; a key begins only where no other character of a key stands before, and is
# matched without backtracking, so that a long word takes linear time
_PAIR = re.compile(
    rf"(?<![\w.@/-])(?P<lead>(?:(?![A-Za-z_])[\w.@/-])*)(?=(?P<key>{_KEY}))(?P=key)(?P<between>['\"]?\s?[=:]\s?)"
    rf"(?P<value>\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&'\"()\[\]{{}}]+)"
)
_OVERRIDE = re.compile(rf"^(?P<key>[+~]*{_KEY})=(?P<value>.*)$", re.DOTALL)
_INTERPOLATION = re.compile(r"^\$\{[^{}]*\}$")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_learned: set[str] = set()  # values of this process's own settings; see `learn`


def looks_secret(name: str) -> bool:
    """Whether a setting or variable of that (dotted) name holds a secret."""
    last = re.split(r"[./@]", name.strip("+~"))[-1]
    words = _CAMEL.sub("_", last).replace("-", "_").lower()
    return bool(_SECRET_END.search(words)) and not _NO_SECRET.search(words)


def learn(settings: Any) -> None:
    """Remembers the values of secret settings, which are masked in this process also without their name beside them."""
    _learned.update(value for value in _values(settings) if len(value) >= MIN_CHARACTERS)


def without_secrets(text: str) -> str:
    """`text` with `***` in place of secrets.

    These are user and password of `scheme://user:password@host`, values beside a secret name (`api_key=…`,
    `"token": "…"`, `?sig_token=…`), and anywhere learned values and those of environment variables with secret names.
    """
    override = _OVERRIDE.match(text)
    if override and looks_secret(override["key"]) and not _INTERPOLATION.match(override["value"]):
        return f"{override['key']}={MASK}"
    variables = {v for k, v in os.environ.items() if len(v) >= MIN_CHARACTERS and k not in _FOLDERS and looks_secret(k)}
    for value in sorted(_learned | variables, key=len, reverse=True):
        text = text.replace(value, MASK)
        if (encoded := quote(value, safe="")) != value:
            text = text.replace(encoded, MASK)
    text = _USER_INFO.sub(lambda m: m[0] if m[0].endswith("}@") and "${" in m[0] else f"{MASK}@", text)
    return _PAIR.sub(_mask_pair, text)


def masked(settings: Any, name: str = "") -> Any:
    """Nested settings (mappings, lists, plain values) without secrets; interpolations such as `${oc.env:NAME}` stay."""
    if isinstance(settings, Mapping):
        return {key: masked(value, str(key)) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [masked(value, name) for value in settings]
    if settings in (None, "") or isinstance(settings, bool) or _INTERPOLATION.match(str(settings)):
        return settings
    if looks_secret(name):
        return MASK
    return without_secrets(settings) if isinstance(settings, str) else settings


def mask_files(folder: Path) -> None:
    """Masks the YAML files that Hydra has written into a folder; interpolations stay."""
    from omegaconf import OmegaConf

    for path in folder.glob("*.yaml"):
        before = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        after = masked(before)
        if after != before:
            path.write_text(OmegaConf.to_yaml(OmegaConf.create(after)), encoding="utf-8")


def mask_logs() -> None:
    """Masks what is logged from now on, on the terminal and in files."""
    for logger in (logging.getLogger(name) for name in (None, "feedrate", "feedrate.file")):
        for handler in logger.handlers:
            if not any(isinstance(f, _Filter) for f in handler.filters):
                handler.addFilter(_Filter())


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_secrets(record.getMessage()), None
        return True


def _mask_pair(match: re.Match[str]) -> str:
    value, bare = match["value"], match["value"].strip("'\"")
    plain = value.startswith("$") or not bare.strip("*") or bare.lower() in ("null", "none", "true", "false")
    if plain or not looks_secret(match["key"]):
        return match[0]
    quotes = value[0] if value[0] in "'\"" else ""
    return f"{match['lead']}{match['key']}{match['between']}{quotes}{MASK}{quotes}"


def _values(settings: Any, name: str = "") -> Iterator[str]:
    """The secrets in nested settings."""
    if isinstance(settings, (Mapping, list, tuple)):
        for key, value in settings.items() if isinstance(settings, Mapping) else ((name, one) for one in settings):
            yield from _values(value, str(key))
        return
    if looks_secret(name) and not isinstance(settings, bool):
        yield str(settings)
    found = [match[1] for match in re.finditer(r"://[^/\s:@]*:([^/\s@]+)@", str(settings))]
    found += [match["value"] for match in _PAIR.finditer(str(settings)) if looks_secret(match["key"])]
    for value in found:
        yield from (value, unquote(value))
