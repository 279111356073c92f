"""`lfads stream`: a recording fed bin by bin, its table, its JSON, its file and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import lfads_torch
from lfads_torch.cli import main
from lfads_torch.data import write_session
from lfads_torch.metrics.decoding import fit_decoder
from lfads_torch.online.replay import Recording, replay
from lfads_torch.online.stream import Stream
from tests.online.models import model, spikes
from tests.small import trainer

WRIST = Path(__file__).parents[3] / "shared" / "data"
N_BINS, WINDOW, OVERLAP = 64, 10, 4


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A causal and another model, a recording of two stretches cut into windows, a decoder."""
    monkeypatch.chdir(tmp_path)
    for name, causal in (("causal", True), ("whole", False)):
        lfads, fake = model(WINDOW, causal=causal), trainer(tmp_path)
        fake.strategy.connect(lfads)
        fake.save_checkpoint(tmp_path / f"{name}.ckpt")
    starts = np.array([0, 6, 12, 18, 34, 40, 46, 52])  # bins 28 to 33 lie in no window
    x = spikes(N_BINS)
    y = np.random.default_rng(3).normal(size=(N_BINS, 2)).astype(np.float32)
    x[5, 2] = np.nan
    arrays: dict[str, Any] = {}
    for split, chosen in (("train", starts[:6]), ("valid", starts[6:])):
        for name, rows in (("encod_data", x), ("recon_data", x), ("behavior", y)):
            arrays[f"{split}_{name}"] = np.stack([rows[s : s + WINDOW] for s in chosen])
        arrays[f"{split}_chop_start"] = chosen
    attrs = {"chop_overlap": OVERLAP, "chop_n_bins": N_BINS, "bin_ms": 20.0}
    write_session(tmp_path / "data.h5", arrays, attrs)
    lfads_torch.Stream(tmp_path / "causal.ckpt")
    features, targets = np.random.default_rng(0).normal(size=(2, 60, 4))
    decoder = fit_decoder(
        features, targets[:, :2], alphas=[1.0], lags=(0, 1), **{"features": "factors"}
    )
    decoder.save(tmp_path / "decoder.json")
    np.save(tmp_path / "x.npy", x)
    return tmp_path


@pytest.mark.parametrize("name", ["causal", "whole"])
def test_a_replay_is_the_stream_over_each_stretch(
    place: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["stream", f"{name}.ckpt", "--data", "data.h5", "--decoder", "decoder.json"]
    assert main([*command, "-o", "out.h5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    x = np.load(place / "x.npy")
    stretches = [np.arange(28), np.arange(34, 62)]
    expected = [Stream(f"{name}.ckpt", decoder="decoder.json").run(x[rows]) for rows in stretches]
    with h5py.File("out.h5") as file:
        for field in ("rates", "factors", "decoded"):
            one = np.concatenate([getattr(part, field) for part in expected])
            np.testing.assert_array_equal(file[field][()], one)
        np.testing.assert_array_equal(file["bin"][()], np.concatenate(stretches))
        np.testing.assert_array_equal(file["position"][()], [*range(28), *range(28)])
    assert result["bins"] == 56 and result["latency_ms"]["calls"] == 56
    assert result["deadlines"] == 0
    # Poisson likelihoods by hand, over the bins that have outputs.
    rates = np.concatenate([part.rates for part in expected]).astype(np.float64)
    counts = x[np.concatenate(stretches)].astype(np.float64)
    known = np.isfinite(counts) & np.isfinite(rates)
    mean = np.array([counts[k, i].mean() for i, k in enumerate(known.T)])
    gain = counts * np.log(rates / mean) - (rates - mean)
    bps = gain[known].sum() / counts[known].sum() / np.log(2)
    assert result["scores"]["bps"] == pytest.approx(bps, rel=1e-4)
    assert set(result["scores"]) == {"bps", "r2_0", "r2_1", "r2_uniform"}
    spans = [(row["start"], row["stop"]) for row in result["drift"]]
    assert spans == [(0, 10), (10, 20), (20, 28)]


def test_the_table_and_the_first_bins(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "causal.ckpt", "--data", "data.h5", "--bins", "7"]) == 0
    text = capsys.readouterr().out
    assert "7 bins" in text and "p99.9" in text and "bps" in text and "0 to 6" in text


def test_one_split_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bins that a training window holds, too, are no validation."""
    command = ["stream", "causal.ckpt", "--data", "data.h5", "--split", "valid", "--json"]
    assert main([*command, "-o", "out.h5"]) == 0
    with h5py.File("out.h5") as file:
        assert file["bin"][()].tolist() == list(range(50, 62))
    assert json.loads(capsys.readouterr().out)["bins"] == 12


def test_bins_that_come_too_fast_are_late(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["stream", "causal.ckpt", "--data", "data.h5", "--json", "--bins", "20"]
    assert main([*command, "--realtime", "0.0001"]) == 1
    late = json.loads(capsys.readouterr().out)
    assert late["deadlines"] == 20 and late["missed"] == 20
    assert main([*command, "--bins", "2", "--realtime", "2000"]) == 0


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--data", "none.h5"], "none.h5"),
        (["--key", "spikes"], "spikes"),
        (["--split", "test"], "test"),
        (["--mode", "fast"], "legal: auto, step, window"),
        (["--realtime", "0"], "--realtime is 0"),
        (["--decoder", "data.h5"], "is not a decoder"),
        (["--bins", "0"], "--bins is 0"),
    ],
)
def test_mistakes_end_with_status_2(
    place: Path, more: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stream", "causal.ckpt", "--data", "data.h5", *more]) == 2
    assert text in capsys.readouterr().err


def test_other_channels_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live = Stream("causal.ckpt")
    with pytest.raises(ValueError, match="has 5 channels; the model reads 6"):
        replay(live, Recording(np.zeros((4, 5)), np.zeros(4, np.int64)))


@pytest.mark.skipif(not WRIST.is_dir(), reason="needs the wrist recordings")
@pytest.mark.parametrize("causal", [True, False])
def test_two_days_with_dead_channels(causal: bool) -> None:
    """Day 95 through a model of as many channels; ten that died are NaN from some bin on."""
    with h5py.File(WRIST / "isometric_wrist_day95.h5") as file:
        windows = file["valid_encod_data"][:40].astype(np.float32)
    x = windows.reshape(-1, windows.shape[2])[: 300 if not causal else 1000]
    x[200:, :10] = np.nan
    lfads = model(30, causal=causal, n_channels=x.shape[1])
    live = lfads_torch.stream(lfads)
    out = live.run(x)
    begun = 0 if causal else 29
    assert np.isfinite(out.rates[begun:]).all() and live.t == len(x)
    zeroed = lfads_torch.stream(lfads).run(np.nan_to_num(x))
    np.testing.assert_array_equal(out.rates[begun:], zeroed.rates[begun:])
