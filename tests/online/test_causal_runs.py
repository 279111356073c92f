"""A causal model trains, resumes, samples, is scored and streams like any other model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lfads_torch
from lfads_torch.cli import main
from lfads_torch.data import write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.folder import LAST
from lfads_torch.run_model import run_model
from tests.small import DIMS

SMALL: dict[str, Any] = {
    **{f"model.{name}": size for name, size in DIMS.items()},
    "model": "causal",
    "model.tbptt_bins": 5,
    "datamodule.batch_size": 16,
    "callbacks.raster_plot": None,
    "callbacks.trajectory_plot": None,
    "posterior_sampling.fn.num_samples": 2,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_causal_run_from_training_to_stream(first: int, tmp_path: Path) -> None:
    path = tmp_path / "tiny.h5"
    write_session(path, lorenz(8, 4, 6, 12, 0.5, seed=1), {"bin_ms": 10.0})
    own = {**SMALL, "datamodule.datafile_pattern": str(path), "model.ic_enc_seq_len": first}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_model({**own, "trainer.max_epochs": 2}, run_dir=whole)
    run_model({**own, "trainer.max_epochs": 1}, run_dir=parts)
    run_model({"trainer.max_epochs": 2}, run_dir=parts, resume=True)
    states = [torch.load(f / LAST, weights_only=True)["state_dict"] for f in (whole, parts)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    # Training has moved what only a causal model has.
    assert first or states[0]["encoder.ic_learned"].abs().min() > 0
    assert main(["evaluate", str(whole), "--draws", "20", "--no-baselines"]) == 0
    live = lfads_torch.stream(whole, bin_ms=10)
    assert (live.mode, live.bin_ms, live.n_channels) == ("step", 10.0, 6)
    rates = live.run(lfads_torch.load_outputs(whole)[0].valid["encod_data"][0]).rates
    assert np.isfinite(rates[max(first - 1, 0) :]).all()
    with pytest.raises(ValueError, match=r"bin_ms is 20, but .* bins of 10 ms"):
        lfads_torch.stream(whole, bin_ms=20)
