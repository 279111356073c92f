"""Code as users of the existing implementation write it, each piece as it stands."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FILE = Path(__file__).parent / "files" / "user_code.py"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("user_code", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_code"] = module
    spec.loader.exec_module(module)
    return module


USER_CODE = load()
PIECES = [name for name in vars(USER_CODE) if name.startswith("probe_")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PIECES)
def test_a_piece_of_user_code_works(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    getattr(USER_CODE, name)(str(tmp_path))
