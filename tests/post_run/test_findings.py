"""What a report warns of, each provoked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfads_torch.post_run.report.findings import find_all
from lfads_torch.post_run.report.record import Wanted, read_run
from tests.post_run.outputs_of import READ, arrays, write_run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def found(folder: Path, data: dict[str, Any], losses: Any = None) -> dict[str, str]:
    """Findings of a run: titles and how grave they are."""
    write_run(folder, data)
    if losses is not None:
        (folder / "csv_logs").mkdir()
        rows = [f"{epoch},{value}" for epoch, value in enumerate(losses)]
        (folder / "csv_logs/metrics.csv").write_text("\n".join(["epoch,valid/recon_smth", *rows]))
    return {f.title: f.level for f in find_all(read_run(folder, Wanted(quick=True)))}


def test_a_fair_model(tmp_path: Path) -> None:
    titles = found(tmp_path, arrays())
    assert not {"Overfitting", "Rates are flat"} & set(titles)
    assert not [title for title in titles if "overlap" in title or "worse than" in title]


def test_overfitting(tmp_path: Path) -> None:
    data = arrays()
    data["train_output_params"] = data["train_recon_data"] + np.float32(0.05)
    assert "Overfitting" in found(tmp_path, data)


def test_a_small_difference_is_no_overfitting(tmp_path: Path) -> None:
    data = arrays()
    for split, size in (("train", 0.003), ("valid", 0.0)):
        counts = data[f"{split}_recon_data"]
        mean = counts.mean(axis=(0, 1))
        data[f"{split}_output_params"] = (mean + size * (counts - mean)).astype(np.float32)
    assert "Overfitting" not in found(tmp_path, data)


def test_worse_than_the_mean(tmp_path: Path) -> None:
    data = arrays()
    for split in ("train", "valid"):
        data[f"{split}_output_params"] = data[f"{split}_output_params"][:, ::-1] * 5
    titles = found(tmp_path, data)
    assert titles["Most channels are predicted worse than by their mean"] == "problem"


def test_flat_rates(tmp_path: Path) -> None:
    data = arrays()
    for split in ("train", "valid"):
        data[f"{split}_output_params"] = np.ones_like(data[f"{split}_output_params"])
    assert found(tmp_path, data)["Rates are flat"] == "problem"


def test_validation_windows_that_overlap_training(tmp_path: Path) -> None:
    data = arrays()
    shared = 4
    data["valid_encod_data"][:, :shared] = data["train_encod_data"][:30, READ[0] - shared :]
    title = "Validation windows overlap training windows"
    assert found(tmp_path, data)[title] == "caution"


@pytest.mark.parametrize(
    ("losses", "title"),
    [
        (np.linspace(1.0, 2.0, 20), "The validation loss never fell"),
        (1.0 - 1e-5 * np.arange(20), "The validation loss hardly fell"),
        (1.0 + 0.1 * np.abs(np.arange(20) - 10), "The validation loss rose again"),
        (2.0 - 0.05 * np.arange(20), "Training was still improving"),
    ],
)
def test_the_course_of_the_validation_loss(tmp_path: Path, losses: Any, title: str) -> None:
    course = {
        t for t in found(tmp_path, arrays(), losses) if "validation loss" in t or "impro" in t
    }
    assert course == {title}
