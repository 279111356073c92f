"""The commands and the code of docs/data.md, executed in its order in an empty folder."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import sys
import warnings
from pathlib import Path

import pytest

from lfads_torch.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore")
def test_docs_data_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # what the command line changes for its whole process
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("warnings.showwarning", warnings.showwarning)
    commands, pieces = 0, 0
    for language, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                program, *arguments = shlex.split(line)
                assert program == "lfads"
                with contextlib.redirect_stdout(io.StringIO()):
                    assert main(arguments) == 0, line
                commands += 1
        elif language == "python":
            if text.startswith("# needs pynwb") and not importlib.util.find_spec("pynwb"):
                pytest.skip("pynwb is not installed")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(text, str(PAGE), "exec"), {})
            pieces += 1
    assert (commands, pieces) == (9, 4)
    assert (tmp_path / "chopped.h5").is_file()
