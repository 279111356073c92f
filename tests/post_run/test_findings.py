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
    folder.mkdir(exist_ok=True)
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


def bursting(n_read: int) -> dict[str, Any]:
    """Trials of slow rates whose inferred rates and inputs follow what is read bin by bin."""
    rng = np.random.default_rng(0)
    data: dict[str, Any] = {}
    for split, n in (("train", 60), ("valid", 40)):
        slow = 0.3 + 0.2 * np.sin(np.linspace(0, 6, 40) + rng.uniform(0, 6, (n, 1)))
        counts = rng.poisson(np.repeat(slow[..., None], 12, axis=2)).astype(np.float32)
        mean = counts[..., :n_read].mean(axis=2)
        data[f"{split}_recon_data"], data[f"{split}_encod_data"] = counts, counts[..., :n_read]
        rates = np.repeat(0.6 * slow[..., None] + 0.4 * mean[..., None], 12, axis=2)
        data[f"{split}_output_params"] = rates.astype(np.float32)
        data[f"{split}_co_means"] = np.stack([np.roll(mean, -1, axis=1), slow], axis=2)
        data[f"{split}_co_stds"] = np.full((n, 40, 2), 0.1, np.float32)
        data[f"{split}_slow"] = np.repeat(slow[..., None], 12, axis=2)
    return data


def test_rates_that_follow_the_noise_of_what_is_read(tmp_path: Path) -> None:
    title = "Rates follow bursts that other channels do not share"
    assert found(tmp_path / "held_out", bursting(8))[title] == "caution"
    fair = bursting(8)
    for split in ("train", "valid"):
        fair[f"{split}_output_params"] = fair[f"{split}_slow"]
    assert title not in found(tmp_path / "fair", fair)
    # Where all channels are read, the inputs alone can be looked at.
    title = "Inferred inputs follow every burst of spikes"
    assert found(tmp_path / "read", bursting(12))[title] == "note"
    smooth = bursting(12)
    for split in ("train", "valid"):
        smooth[f"{split}_co_means"] = smooth[f"{split}_slow"][..., :2]
    assert title not in found(tmp_path / "smooth", smooth)


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


def test_a_score_that_never_left_its_floor_chose_the_first_epoch(tmp_path: Path) -> None:
    title = "The score that chose is the same in all epochs"
    write_run(tmp_path, arrays())
    (tmp_path / "csv_logs").mkdir()
    for last, is_told in ((-1, True), (-0.5, False)):
        (tmp_path / "config.yaml").write_text("select_by: valid/co_bps_smth")
        rows = "epoch,valid/recon_smth,valid/co_bps_smth\n0,3,-1\n1,2,-1\n2,1,"
        (tmp_path / "csv_logs/metrics.csv").write_text(f"{rows}{last}\n")
        found = {f.title: f.text for f in find_all(read_run(tmp_path, Wanted(quick=True)))}
        assert (title in found) == is_told
        assert "epoch 0, the first" in found.get(title, "epoch 0, the first")
