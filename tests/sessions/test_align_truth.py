"""Alignment of days whose truth is known: day 0's decoder on them, without their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lfads_torch.data import write_session
from lfads_torch.data.synthetic import days
from lfads_torch.metrics.decoding import Decoder
from lfads_torch.post_run.decode import DecodeOptions, decode_run
from lfads_torch.run_model import run_model
from lfads_torch.runs.sampling import sample_run
from lfads_torch.sessions.align_day import AlignOptions, align_day

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def train(
    file: Path, run: Path, units: int, epochs: int, more: dict[str, Any] | None = None
) -> Decoder:
    """Train day 0 and a decoder of the generator's states."""
    sizes = dict.fromkeys(("ic_enc", "ci_enc", "con", "gen"), units)
    sizes |= {"ic": min(24, units), "co": 2, "fac": min(16, units), "encod_data": min(32, units)}
    changes: dict[str, Any] = {
        "model": "alignable",
        **{f"model.{name}_dim": size for name, size in sizes.items()},
        **dict.fromkeys(("model.kl_increase_epoch", "model.l2_increase_epoch"), 40),
        **{"datamodule.datafile_pattern": str(file), "datamodule.batch_size": 64},
        "trainer": {"max_epochs": epochs, "accelerator": "cpu", "enable_progress_bar": False},
        "callbacks": {"raster_plot": None, "trajectory_plot": None},
        "posterior_sampling.fn.num_samples": 10,
        **(more or {}),
    }
    run_model(changes, run_dir=run)
    options = DecodeOptions(features="gen_states", lags=(0,), baselines=False, n_draws=0)
    return decode_run(run, options).decoder


def r2(place: Path, decoder: Decoder) -> float:
    """Return R2 on validation windows."""
    result = decode_run(place, DecodeOptions(score=("valid",), n_draws=0), decoder=decoder)
    return float(result.table[0].scores.r2_uniform)


def test_the_same_day_again_keeps_its_decoder(tmp_path: Path) -> None:
    [day] = days(1, 40, 100, n_bins=12, seed=0, mean_rate=3.0)
    file = write_session(tmp_path / "day0.h5", day, {"bin_ms": 20.0})
    fast = dict.fromkeys(("model.kl_increase_epoch", "model.l2_increase_epoch"), 5)
    fast |= {"model.lr_init": 0.02, "datamodule.batch_size": 16}
    decoder = train(file, tmp_path / "run", 16, 10, fast)
    before = r2(tmp_path / "run", decoder)
    options = AlignOptions(init="day0", epochs=4, seeds=1, batch_size=16, num_samples=10)
    align_day(tmp_path / "run", file, tmp_path / "again", options)
    assert before > 0.9
    assert r2(tmp_path / "again", decoder) > before - 0.02


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_day_of_other_units_is_decoded_by_day_0s_decoder(tmp_path: Path, seed: int) -> None:
    files = [
        write_session(tmp_path / f"day{k}.h5", day, {"bin_ms": 20.0})
        for k, day in enumerate(days(seed=seed))
    ]
    decoder = train(files[0], tmp_path / "run", 48, 150)
    before = r2(tmp_path / "run", decoder)
    plain = tmp_path / "plain.h5"
    sample_run(tmp_path / "run", data=files[1], output=plain, num_samples=10)
    options = AlignOptions(init="random", lr=2e-3, epochs=60, num_samples=10)
    alignment = align_day(tmp_path / "run", files[1], tmp_path / "out", options)
    unaligned, aligned = r2(plain, decoder), r2(tmp_path / "out", decoder)
    # What docs/alignment.md shows: `pytest -s -m slow`.
    print(f"{alignment.text()}\nR2: {before:.3f}, unaligned {unaligned:.3f}, aligned {aligned:.3f}")
    assert unaligned <= 0.5 * before
    assert aligned >= 0.9 * before
