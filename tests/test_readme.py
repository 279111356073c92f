"""The README's commands and code, executed in its order in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.golden_utils import load_golden

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# What `make` and `pip` do is shown by running the tests at all.
NOT_RUN = ("make ", "pip ")


def blocks() -> list[tuple[str, str]]:
    """Language and text of every code block, in order."""
    return BLOCK.findall(README.read_text(encoding="utf-8"))


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def write_old_checkpoint(folder: Path) -> None:
    """Weights of the existing implementation, as its trainer would have left them."""
    golden = load_golden("controller")
    numbers = {k: v for k, v in golden.hps.items() if isinstance(v, bool | int | float)}
    path = folder / "old_run" / "lightning_checkpoints" / "epoch=99-step=600.ckpt"
    path.parent.mkdir(parents=True)
    from lfads_torch.modules.recons import Poisson

    # A pickled object, which must not be built as one.
    hyper_parameters = {**numbers, "reconstruction": Poisson()}
    torch.save({"state_dict": golden.params, "hyper_parameters": hyper_parameters}, path)


def test_the_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    write_old_checkpoint(tmp_path)
    n_run = 0
    for language, text in blocks():
        first = text.splitlines()[0]
        if language == "bash" and not text.startswith(NOT_RUN):
            run(["bash", "-euo", "pipefail", "-c", text], tmp_path)
        elif first.startswith("# ") and first.endswith((".py", ".yaml")):
            target = tmp_path / first.removeprefix("# ")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        elif language == "python":
            run([sys.executable, "-c", text], tmp_path)
        else:
            continue
        n_run += 1
    assert n_run >= 10
    assert (tmp_path / "runs/first/lfads_output_sess0.h5").is_file()
    assert (tmp_path / "new_rates.h5").is_file() or list(tmp_path.glob("new_rates*.h5"))


@pytest.mark.parametrize(
    "name", ["README.md", *(f"docs/{p.name}" for p in README.parent.glob("docs/*.md"))]
)
def test_links_lead_somewhere(name: str) -> None:
    page = README.parent / name
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [
        link
        for link in links
        if not link.startswith(("http", "mailto:")) and not (page.parent / link).exists()
    ]
    assert not missing, f"{name}: {missing}"
