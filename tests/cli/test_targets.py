"""A configuration may name any importable class; what is not found, and a key that it does not take, is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from feedrate.cli.targets import build, locate, takes
from feedrate.errors import UserError


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes an importable module, given its dotted name and its text."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> None:
        path = tmp_path / (name.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


def refused(path: str) -> str:
    with pytest.raises(UserError) as caught:
        locate(path, "model")
    message = str(caught.value)
    assert message.startswith(f"model._target_={path}: ")
    assert len(message.splitlines()) <= 2
    return message


# ---------------------------------------------------------------------------------------------------------
# finding it
# ---------------------------------------------------------------------------------------------------------


def test_a_class_a_nested_class_and_a_function_are_found(module: Callable[[str, str], None]) -> None:
    module("targets_a.deep.mod", "class Net:\n    class Inner: pass\ndef make(): pass\n")
    assert locate("torch.nn.Linear", "model") is nn.Linear
    assert locate("targets_a.deep.mod.Net", "model").__name__ == "Net"
    assert locate("targets_a.deep.mod.Net.Inner", "model").__name__ == "Inner"
    assert locate("targets_a.deep.mod.make", "model").__name__ == "make"


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("targets_nowhere.Net", "No module named 'targets_nowhere'"),
        ("torch.nn.Linaer", "torch.nn.Linaer'; did you mean Linear?"),
        ("torch.nowhere.Net", "torch.nowhere"),
        ("torch.nn.Linear.nowhere", "has no attribute 'nowhere'"),
        ("torch..Net", "cannot be imported"),
        ("", "cannot be imported"),
        ("torch.nn", "names a module; a class is needed"),
        ("torch.pi", "names a float; a class is needed"),
    ],
)
def test_what_cannot_be_found_is_said(path: str, part: str) -> None:
    message = refused(path)
    assert part in message
    assert "a class is needed" in message or "Searched: src/, the repository root, PYTHONPATH" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("import targets_lacking\n", "No module named 'targets_lacking'"),
        ("from torch import nothing_of_that_name\n", "cannot import name 'nothing_of_that_name'"),
        ("x = 1\n1 / 0\n", "ZeroDivisionError: division by zero) ({name}.py, line 2"),
        ("assert False\n", "AssertionError: no text) ({name}.py, line 1"),
        ("def f(:\n", "SyntaxError: invalid syntax ({name}.py, line 1)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3) ({name}.py, line 2"),
    ],
)
def test_a_module_that_fails_by_itself_says_why_and_where(
    module: Callable[[str, str], None], request: pytest.FixtureRequest, text: str, part: str
) -> None:
    name = f"targets_failing_{request.node.callspec.indices['text']}"
    module(name, text)
    assert part.format(name=name) in refused(f"{name}.Net")


def test_a_missing_import_within_a_package_of_a_similar_name_is_not_taken_for_the_package(
    module: Callable[[str, str], None],
) -> None:
    module("targets_pack.__init__", "")
    module("targets_pack.net", "import targets_pa\n")
    assert "No module named 'targets_pa'" in refused("targets_pack.net.Net")
    assert "No module named 'targets_pack.nte'" in refused("targets_pack.nte.Net")


# ---------------------------------------------------------------------------------------------------------
# building it
# ---------------------------------------------------------------------------------------------------------

MODELS = """
import torch

class Nothing(torch.nn.Module):
    def __init__(self):
        super().__init__()

class Net(torch.nn.Module):
    def __init__(self, num_outputs, width=4, depth=2):
        super().__init__()
        self.got = num_outputs, width, depth

class Wider(Net):
    def __init__(self, factor=3, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

class Open:
    def __init__(self, **kwargs):
        self.got = kwargs

class Fails:
    def __init__(self, how="plain"):
        if how == "user":
            from feedrate.errors import UserError
            raise UserError("model.how: is wrong")
        raise ValueError("" if how == "silent" else "first\\nsecond")

def make(width):
    return width
"""


@pytest.fixture
def models(module: Callable[[str, str], None]) -> None:
    module("targets_models", MODELS)


def built(name: str, injected: Any = None, common: frozenset[str] = frozenset(), **keys: Any) -> Any:
    return build({"_target_": f"targets_models.{name}", **keys}, "model", injected or {}, common)


@pytest.mark.usefixtures("models")
def test_what_a_constructor_names_is_injected_and_the_rest_comes_from_the_keys() -> None:
    assert built("Net", {"num_outputs": 10, "sample_shape": (1, 2)}, width=8).got == (10, 8, 2)
    assert built("Net", {"num_outputs": 10}, num_outputs=3).got == (3, 4, 2)  # a key comes first
    assert built("Net", {"num_outputs": 10}, num_outputs=None).got == (10, 4, 2)
    assert isinstance(built("Nothing", {"num_outputs": 10}), nn.Module)
    assert built("make", {"num_outputs": 10}, width=[1, {"a": 2}]) == [1, {"a": 2}]
    assert type(built("make", width=[1, {"a": 2}])[1]) is dict
    tensor = torch.zeros(3)
    assert built("make", {"width": tensor}) is tensor


@pytest.mark.usefixtures("models")
def test_a_constructor_that_hands_on_its_keywords_takes_those_of_the_class_it_extends() -> None:
    net = built("Wider", {"num_outputs": 10, "sample_shape": (1,)}, depth=9)
    assert (net.got, net.factor) == ((10, 4, 9), 3)
    assert set(takes(locate("targets_models.Wider", "model"))) == {"factor", "num_outputs", "width", "depth"}
    assert built("Open", {"num_outputs": 10}, anything=1).got == {"anything": 1}


@pytest.mark.usefixtures("models")
def test_a_key_that_the_constructor_does_not_take_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        built("Net", {"num_outputs": 10}, widht=8)
    message = str(caught.value)
    assert message.startswith("model.widht: not taken by targets_models.Net; did you mean width?\nIt takes: ")
    with pytest.raises(UserError, match=r"model.a, model.b: not taken by targets_models.Nothing\nIt takes: noth"):
        built("Nothing", a=1, b=2)
    with pytest.raises(UserError, match="unexpected keyword argument 'widht'"):
        built("Wider", {"num_outputs": 10}, widht=8)


@pytest.mark.usefixtures("models")
def test_a_key_that_the_constructor_lacks_is_named() -> None:
    with pytest.raises(UserError, match=r"model.num_outputs: needed by targets_models.Net; set it"):
        built("Net")


@pytest.mark.usefixtures("models")
def test_keys_that_are_not_meant_for_the_constructor_reach_it_only_if_it_names_them() -> None:
    common = frozenset({"width", "interval"})
    assert built("Net", {"num_outputs": 1}, common, width=7, interval="step").got == (1, 7, 2)
    assert built("Net", {"num_outputs": 1}, common, width=None).got == (1, 4, 2)  # not given: the class's own default


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "model: targets_models.Fails(...) failed with ValueError: first"),
        ({"how": "silent"}, "model: targets_models.Fails(...) failed with ValueError: no text"),
        ({"how": "user"}, "model.how: is wrong"),
    ],
)
def test_a_constructor_that_raises_is_said_in_one_line(keys: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        built("Fails", **keys)
    assert str(caught.value) == said


@pytest.mark.usefixtures("models")
def test_a_nested_target_is_built_first_and_its_errors_are_said() -> None:
    inner = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    assert isinstance(built("make", width=inner), nn.Linear)
    for wrong, said in (
        ({**inner, "in_featurs": 2}, "in_featurs"),
        ({**inner, "_target_": "torch.nn.Linaer"}, "Linaer"),
        ({"_target_": "targets_models.Fails"}, "ValueError: first"),
        ({"_target_": "textwrap.indent"}, "add _partial_=true"),
    ):
        with pytest.raises(UserError) as caught:
            built("make", width=wrong)
        assert str(caught.value).startswith("model.width: ")
        assert said in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 3


def test_a_class_written_in_C_is_built_with_what_it_is_given() -> None:
    assert build({"_target_": "builtins.complex", "real": 1, "imag": 2}, "model", {"num_outputs": 3}) == 1 + 2j
    assert build({"_target_": "torch.Size"}, "model", {}) == torch.Size([])
