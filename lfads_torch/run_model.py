"""The public name of `runs.run`: ``from lfads_torch.run_model import run_model``.

``lfads_torch.run_model`` is that function, or this module where somebody imported it later; so the
module can be called, too.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .compat import ray_names
from .runs.run import RunResult, run_model

__all__ = ["RunResult", "run_model"]

ray_names.install()


class _CallableModule(ModuleType):
    """Make ``lfads_torch.run_model`` callable, whichever of module and function was bound last."""

    def __call__(self, *args: Any, **kwargs: Any) -> RunResult:
        return run_model(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
