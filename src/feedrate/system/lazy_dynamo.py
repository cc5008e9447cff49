"""Keeps torch.optim from importing torch._dynamo, which takes 2 to 5 s and serves only torch.compile."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

_NAME = "torch._dynamo"


class _Postponed(ModuleType):
    """Answers the two calls of torch.optim; any other access imports the module."""

    graph_break = staticmethod(lambda *_, **__: None)
    disable = staticmethod(lambda function, *_, **__: function)

    def __getattr__(self, name: str) -> Any:
        if name == "__file__":  # which inspect reads of every module
            raise AttributeError(name)
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
            importlib.import_module(_NAME)
        return getattr(sys.modules[_NAME], name)


def postpone_dynamo() -> None:
    """Imports torch._dynamo only when something other than an optimizer's step needs it."""
    import torch

    if _NAME not in sys.modules:
        stand_in = _Postponed(_NAME)
        stand_in.__spec__ = importlib.util.find_spec(_NAME)
        sys.modules[_NAME] = torch._dynamo = stand_in
