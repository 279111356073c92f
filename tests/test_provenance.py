"""What made a file is in every file: status, checkpoints, outputs, data, report."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

import lfads_torch
from lfads_torch import run_model
from lfads_torch.checkpoint import read_checkpoint
from lfads_torch.data.fingerprint import summary
from lfads_torch.folder import LAST, RunFolder
from lfads_torch.kernels.c_library import describe
from lfads_torch.post_run.report.record import Wanted, read_run
from lfads_torch.post_run.report.single import environment_facts
from lfads_torch.provenance import describe_install, provenance
from tests.faults.test_checkpoints import RUN
from tests.small import arrays, write

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("made")
    pattern = write(folder, arrays())
    data = {"datamodule.datafile_pattern": pattern, "datamodule.batch_size": 8}
    run_model({**RUN, **data, "trainer.max_epochs": 1}, run_dir=folder / "run")
    return folder / "run"


def check(made: dict[str, Any]) -> None:
    """Compare with what the libraries say of themselves."""
    assert made["version"] == lfads_torch.__version__
    assert made["python"] == platform.python_version()
    packages = ("torch", "numpy", "pytorch-lightning", "hydra-core", "h5py", "scikit-learn")
    assert made["packages"] == {name: metadata.version(name) for name in packages}
    # Builds of PyPI keep to themselves that they are for CUDA.
    assert torch.__version__.startswith(made["packages"]["torch"])
    assert {"commit", "dirty"} <= made.keys()


def test_status_checkpoint_and_outputs_say_what_made_them(run: Path) -> None:
    status = RunFolder(run).status
    check(status["environment"])
    assert status["version"] == lfads_torch.__version__
    stored = read_checkpoint(run / LAST)["lfads"]["provenance"]
    with h5py.File(run / status["outputs"][0]) as file:
        written = json.loads(file.attrs["provenance"])
    for made in (stored, written):
        check(made)
        assert made["data"] == status["data"]
        assert made["kernels"] == describe()
        assert (made["device"], made["threads"]) == ("cpu", torch.get_num_threads())


def test_the_report_shows_it(run: Path) -> None:
    facts = dict(environment_facts(read_run(run, Wanted(quick=True))))
    status = RunFolder(run).status
    made = status["environment"]
    assert facts["lfads-torch"] == made["version"]
    assert facts["kernels"] == made["kernels"]
    assert torch.__version__.startswith(facts["torch"])
    assert facts["data, day0.h5"] == f"checksum {summary(status['data'][0])}"
    if made["commit"]:
        assert facts["commit"].startswith(made["commit"])


def test_what_computes_is_named_where_something_computed() -> None:
    assert "kernels" not in provenance()
    assert provenance("cuda")["device"] != "cpu"
    for key in ("version", "python"):
        assert provenance()[key] in describe_install()
