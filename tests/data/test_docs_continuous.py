"""The code of docs/continuous.md, executed in its order in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "continuous.md"


def test_docs_continuous_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pieces = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    names: dict[str, Any] = {}
    for text in pieces:  # the second goes on from the first
        exec(compile(text, str(PAGE), "exec"), names)
    assert len(pieces) == 2
    assert (tmp_path / "chopped_merged.h5").is_file()
