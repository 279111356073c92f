"""`lfads decode`: on files whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfads_torch.cli import main
from lfads_torch.data import write_session
from lfads_torch.metrics.decoder import Decoder
from lfads_torch.post_run.decode import DecodeOptions, decode_run, open_source
from lfads_torch.prep.chop import chop_recording
from lfads_torch.prep.resplit import split_file

pytestmark = pytest.mark.filterwarnings("ignore:the best penalty")
ATTRS = {"bin_ms": 20.0, "behavior": "force x, force y, normalised"}


def series(n_bins: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Factors, spikes of them, and a behaviour that follows the factors two bins later."""
    rng = np.random.default_rng(seed)
    factors = np.cumsum(rng.normal(size=(n_bins, 4)), axis=0)
    factors -= np.linspace(0, 1, n_bins)[:, None] * factors[-1]
    rates = np.exp(0.1 * factors @ np.random.default_rng(9).normal(size=(4, 12)) - 1).clip(max=3)
    behavior = np.full((n_bins, 2), np.nan)
    behavior[2:] = factors[:-2, :2]
    counts = rng.poisson(rates)
    return {
        "factors": factors,
        "output_params": rates,
        "encod_data": counts.astype(np.uint8),
        "recon_data": counts.astype(np.uint8),
        "behavior": behavior,
        "moving": (np.abs(factors[:, :1]) > 1).astype(float),
    }


def write_trials(path: Path, seed: int = 0, shift: float = 0.0, **attrs: Any) -> Path:
    """Trials of 25 bins in shuffled order; ``window_start`` says where each one lies."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    n_trials = {"train": 60, "valid": 20, "test": 20}
    order, first = rng.permutation(100), 0
    trials = [series(25, seed=1000 * seed + k) for k in range(100)]
    for split, n in n_trials.items():
        chosen = order[first : first + n]
        first += n
        for name in trials[0]:
            arrays[f"{split}_{name}"] = np.stack([trials[k][name] for k in chosen])
        arrays[f"{split}_behavior"] += shift
        arrays[f"{split}_moving"] = arrays[f"{split}_moving"][..., 0]
        arrays[f"{split}_window_start"] = chosen * 2.0
    return write_session(path, arrays, ATTRS | attrs)


def write_recording(path: Path) -> Path:
    """One recording of 4000 bins in windows, the last part for testing."""
    values = series(4000)
    del values["moving"]
    values["behavior"] = np.nan_to_num(values["behavior"])
    arrays, attrs = chop_recording(
        values, 30, 6, by="time", valid_fraction=0.1, test_fraction=0.2, guard=4
    )
    return write_session(path, arrays, ATTRS | attrs)


def lfads(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def test_a_run_is_decoded_beside_smoothed_spikes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    write_trials(tmp_path / "run" / "lfads_output_day0.h5")
    assert lfads("decode", tmp_path / "run", "--lags", "0:2", "--draws", "50") == 0
    text = capsys.readouterr().out
    assert "trials in order of window_start" in text
    assert "encod_data, smoothed by" in text
    assert "written: " in text
    result = json.loads((tmp_path / "run" / "decode.json").read_text())
    rows = {(row["features"], row["split"]): row for row in result["table"]}
    assert len(rows) == 4
    scores = rows["factors", "test"]["scores"]
    assert scores["targets"] == ["force x", "force y"]
    assert scores["r2_uniform"] > 0.999
    assert (scores["rows"], scores["left_out"]) == (20 * 23, 20 * 2)
    low, high = scores["intervals"]["r2_weighted"]
    assert low <= scores["r2_weighted"] <= high
    decoder = Decoder.load(tmp_path / "run" / "decoder.json")
    assert (decoder.lags, decoder.bin_ms, decoder.causal) == ((0, 1, 2), 20.0, True)
    assert decoder.fitted_on["rows"] == 60 * 23
    assert decoder.scores["test"]["r2_uniform"] == scores["r2_uniform"]
    # Too short a reach loses the answer.
    both = DecodeOptions(lags=(0, 1), n_draws=0, baselines=False, fit=("train", "valid"))
    short = decode_run(tmp_path / "run", both)
    assert short.decoder.fitted_on["rows"] == 80 * 23
    assert [row.split for row in short.table] == ["test"]
    assert short.table[0].scores.r2_uniform < 0.98


def test_a_saved_decoder_scores_another_day_and_fits_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    day0 = write_trials(tmp_path / "day0.h5")
    day1 = write_trials(tmp_path / "day1.h5", seed=1, shift=1.0)
    saved = tmp_path / "decoder.json"
    assert lfads("decode", day0, "--lags", "0:3", "--save", saved, "--draws", "0") == 0
    before = saved.read_bytes()
    capsys.readouterr()
    command = ("decode", day1, "--apply", saved, "--score", "train,test", "--json")
    assert lfads(*command, "--draws", "0") == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["split"] for row in result["table"]] == ["train", "test"]
    assert saved.read_bytes() == before
    assert not (tmp_path / "decode.json").exists()
    # The behaviour of that day is shifted by 1, which a decoder that was fitted would follow.
    source = open_source(day1)
    x, y = source.rows("factors"), source.rows("behavior")
    got = Decoder.load(saved).predict(x, source.layout.pieces)
    rows = (source.layout.splits == 0) & np.isfinite(got).all(axis=1) & np.isfinite(y).all(axis=1)
    error = ((got - y)[rows] ** 2).sum(axis=0)
    spread = ((y[rows] - y[rows].mean(axis=0)) ** 2).sum(axis=0)
    scores = result["table"][0]["scores"]
    np.testing.assert_allclose(scores["r2"], 1 - error / spread, rtol=1e-10)
    assert error / rows.sum() == pytest.approx([1.0, 1.0], rel=1e-2)


def test_a_recording_is_merged_and_no_lag_crosses_a_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recording(tmp_path / "chopped.h5")
    result = decode_run(path, DecodeOptions(lags=(0, 1, 2), n_draws=100, by_time=3))
    assert "valid is too short for 3 parts" in result.notes[-1]
    assert result.notes[0].endswith("one recording of 4000 bins, merged from windows of 30")
    by_split = {row.split: row for row in result.table if row.features == "factors"}
    # Two rows at the beginning of each split lack a lag.
    assert by_split["test"].scores.left_out == by_split["valid"].scores.left_out == 2
    assert by_split["test"].scores.r2_uniform > 0.999
    assert "chronological" in by_split["test"].kind
    smoothed = [row for row in result.table if row.split == "test"][1]
    assert smoothed.by_time is not None
    # The parts are weighted by their blocks' bins, which are about as many.
    assert np.mean(smoothed.by_time.values) == pytest.approx(smoothed.scores.r2_uniform, abs=0.05)
    assert "parts of time" in result.text()
    assert lfads("decode", path, "--from", "encod_data", "--smooth-ms", "60", "--causal") == 0
    out = capsys.readouterr().out
    assert "encod_data, smoothed by 60 ms" in out
    assert list(tmp_path.iterdir()) == [path]  # a data file gets nothing beside it


def test_only_some_bins_are_scored(tmp_path: Path) -> None:
    path = write_trials(tmp_path / "day0.h5")
    quick: dict[str, Any] = {"n_draws": 0, "baselines": False, "score": ("test",)}
    every = decode_run(path, DecodeOptions(**quick)).table[0].scores
    fast = decode_run(path, DecodeOptions(fastest=0.25, **quick)).table[0].scores
    assert fast.rows == pytest.approx(every.rows / 4, rel=0.1)
    where = decode_run(path, DecodeOptions(where="moving", **quick)).table[0].scores
    source = open_source(path)
    moving = source.rows("moving", columns=False) > 0.5
    assert where.rows + where.left_out == (moving & (source.layout.splits == 2)).sum()


def test_causal_smoothing_reads_no_later_bin(tmp_path: Path) -> None:
    source = open_source(write_recording(tmp_path / "chopped.h5"))
    x = source.rows("encod_data")
    later = x.copy()
    later[2001:] = 99.0
    one, two = (source.smoothed(a, 80.0, True) for a in (x, later))
    np.testing.assert_array_equal(one[:2001], two[:2001])
    assert not np.array_equal(one[2001:2100], two[2001:2100])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--behavior", "hand"], "has no 'train_hand' (--behavior hand); it has series"),
        (["--from", "window_start"], "'train_window_start' has shape (60,)"),
        (["--apply", "d.json", "--lags", "0:1", "--from", "rates"], "leave out --from, --lags"),
        (["--lags=-1:2", "--causal"], "looks ahead, which --causal refuses"),
        (["--lags", "a"], "--lags is 'a'; legal are FIRST:LAST"),
        (["--overlap=-1"], "overlap is of windows that positions number"),
        (["--score", "valdi"], "has no split 'valdi'; legal are train, valid, test"),
        (["--apply", "wide.json"], "the decoder reads 12 features (factors), the data have 4"),
        (["--apply", "slow.json"], "fitted to bins of 50 ms"),
        (["--lags", "0:25"], "0 of 2500 rows have all lags, features and targets"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_trials(tmp_path / "day0.h5")
    if "json" in " ".join(arguments):
        quick: dict[str, Any] = {"n_draws": 0, "baselines": False}
        fitted = decode_run(path, DecodeOptions(**quick)).decoder.to_dict()
        wide = decode_run(path, DecodeOptions(features="rates", **quick)).decoder.to_dict()
        contents = {"d": fitted, "wide": wide | {"features": "factors"}}
        contents["slow"] = fitted | {"bin_ms": 50.0}
        for name, content in contents.items():
            Path(f"{name}.json").write_text(json.dumps(content))
    assert lfads("decode", path, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("alpha", "expected"), [(1e2, 0.33), (1e4, 0.33), (3e4, 0.36)])
def test_the_wrist_recording_gives_what_was_measured_before(
    tmp_path: Path, alpha: float, expected: float
) -> None:
    """R2 of force x, y on the last fifth, as another program of ours gave it from the same bins."""
    source = Path(__file__).parents[2].parent / "shared" / "data" / "isometric_wrist_day0.h5"
    if not source.is_file():
        pytest.skip(f"{source} is not here")
    path = split_file(source, tmp_path / "time.h5", positions="inds", overlap=6).path
    options = DecodeOptions(
        smooth_ms=80.0, alphas=(alpha,), fit=("train", "valid"), score=("test",), n_draws=0
    )
    scores = decode_run(path, options).table[0].scores
    assert np.mean(scores.r2[:2]) == pytest.approx(expected, abs=0.006)
