"""`examples/minimal.py`, shorter than its reader runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "examples" / "minimal.py"


def test_the_first_example_trains_and_draws(tmp_path: Path) -> None:
    arguments = ["--folder", str(tmp_path / "run"), "--conditions", "10", "--epochs", "2"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "R2 of the rates on 16 validation trials: " in done.stdout
    assert (tmp_path / "run" / "rates.png").stat().st_size > 10_000
