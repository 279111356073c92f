"""Decoders with lags: against scikit-learn, plain loops, and data whose answer is known."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from lfads_torch.errors import DataError, DataWarning, UserError
from lfads_torch.metrics.decoder import Decoder
from lfads_torch.metrics.decoding import ALPHAS, fit_decoder, parse_lags

pytestmark = pytest.mark.filterwarnings("ignore:the best penalty")


def recording(n_pieces=12, n_bins=40, n_features=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_pieces, n_bins, n_features)) * [3, 1, 0.1, 0.05, 2] + 4
    y = x[..., :2] @ rng.normal(size=(2, 3)) + rng.normal(size=(n_pieces, n_bins, 3))
    return x, y


def rows_by_hand(x, y, lags):
    """Lags of every bin that has them all in its trial, with a loop."""
    inputs, targets = [], []
    for trial, target in zip(x, y, strict=True):
        for t in range(len(trial)):
            if all(0 <= t - lag < len(trial) for lag in lags):
                inputs.append([trial[t - lag] for lag in lags])
                targets.append(target[t])
    return np.array(inputs), np.array(targets)


def test_a_delay_is_decoded_by_lags_that_reach_it():
    x, _ = recording(seed=1)
    y = np.full((*x.shape[:2], 1), np.nan)
    y[:, 3:] = x[:, :-3, :1]
    reaches = fit_decoder(x[:8], y[:8], lags=(0, 1, 2, 3), alphas=[1e-6])
    assert reaches.score(x[8:], y[8:]).r2_uniform > 1 - 1e-9
    short = fit_decoder(x[:8], y[:8], lags=(0, 1, 2))
    assert short.score(x[8:], y[8:]).r2_uniform < 0.5
    ahead = fit_decoder(x[:8], x[:8, :, :1], lags=(-1, 0), alphas=[1e-6])
    assert not ahead.causal
    assert reaches.causal


def test_as_sklearn_at_a_fixed_penalty():
    x, y = recording()
    lags = (0, 2)
    decoder = fit_decoder(x, y, lags=lags, alphas=[3.0])
    inputs, targets = rows_by_hand(x, y, lags)
    # Every bin of a trial is read by some lag of some row.
    mean, scale = x.reshape(-1, 5).mean(axis=0), x.reshape(-1, 5).std(axis=0)
    design = ((inputs - mean) / scale).reshape(len(inputs), -1)
    expected = Ridge(alpha=3.0).fit(design, targets)
    np.testing.assert_allclose(decoder.weight.reshape(10, 3).T, expected.coef_, atol=1e-8)
    got = decoder.predict(x)[:, 2:].reshape(-1, 3)
    assert got == pytest.approx(expected.predict(design), abs=1e-8)
    scores = decoder.score(x, y)
    assert scores.r2_weighted == pytest.approx(
        r2_score(targets, got, multioutput="variance_weighted"), abs=1e-12
    )
    assert scores.r2 == pytest.approx(r2_score(targets, got, multioutput="raw_values"), abs=1e-12)
    for column in range(3):
        r = np.corrcoef(targets[:, column], got[:, column])[0, 1]
        assert scores.r[column] == pytest.approx(r, abs=1e-12)
    assert (scores.rows, scores.left_out) == (len(inputs), 12 * 2)
    # The matrices read features as they are.
    weight, bias = decoder.matrices()
    assert np.einsum("rlf,lfd->rd", inputs, weight) + bias == pytest.approx(got, abs=1e-10)


def test_each_penalty_is_the_best_over_folds_with_guards():
    """Folds are made by hand, and what is within reach of a fold is left out of its fit."""
    x, y = recording(n_pieces=10, n_bins=20)
    x, y = x[..., :3], y * [0.05, 1, 30]
    decoder = fit_decoder(x, y, lags=(0, 1), guard=4)
    inputs, targets = rows_by_hand(x, y, (0, 1))
    bins = np.concatenate([np.arange(1, 20) + 20 * k for k in range(10)])
    design = ((inputs - x.reshape(-1, 3).mean(0)) / x.reshape(-1, 3).std(0)).reshape(190, -1)
    for column in range(3):
        errors = []
        for alpha in ALPHAS:
            error = 0.0
            for fold in np.array_split(np.arange(190), 5):
                near = (bins < bins[fold[0]] - 5) | (bins > bins[fold[-1]] + 5)
                fit = Ridge(alpha=alpha).fit(design[near], targets[near, column])
                error += ((fit.predict(design[fold]) - targets[fold, column]) ** 2).sum()
            errors.append(error)
        assert decoder.alpha[column] == ALPHAS[int(np.argmin(errors))]
    assert len(set(decoder.alpha)) > 1


def test_nothing_crosses_a_border():
    """Marks in the last bins of each piece reach no row of the next."""
    x, y = recording()
    marked = x.copy()
    marked[:, -2:] = np.nan
    decoder = fit_decoder(x, y, lags=(0, 1, 2))
    kept = np.isfinite(decoder.predict(marked)).all(axis=2)
    assert (kept == (np.arange(40) >= 2) & (np.arange(40) < 38)).all()
    # The same with pieces by number, of which one number is used twice.
    flat = decoder.predict(marked.reshape(-1, 5), np.repeat(np.arange(12) % 3, 40))
    np.testing.assert_array_equal(flat, decoder.predict(marked).reshape(-1, 3))


def test_folds_part_no_trial():
    """A value that is constant in a trial tempts a decoder whose folds part trials."""
    rng = np.random.default_rng(1)
    x = np.repeat(rng.normal(size=(60, 1, 40)), 12, axis=1) + 0.1 * rng.normal(size=(60, 12, 40))
    y = np.repeat(rng.normal(size=(60, 1, 1)), 12, axis=1)
    decoder = fit_decoder(x[:40], y[:40], lags=(0, 1))
    assert decoder.alpha[0] == max(ALPHAS)
    assert decoder.score(x[40:], y[40:]).r2_uniform <= 0.05


def test_saved_and_loaded_bit_for_bit(tmp_path):
    x, y = recording()
    x[..., 4] = 1.0  # does not vary, so it is dropped
    decoder = fit_decoder(
        x, y, lags=(0, 1), bin_ms=20.0, features="factors", fitted_on={"run": "runs/a"}
    )
    assert decoder.feature_scale[4] == 0
    path = decoder.save(tmp_path / "decoder.json")
    loaded = Decoder.load(path)
    assert loaded.to_dict() == decoder.to_dict()
    assert loaded.fitted_on["run"] == "runs/a"
    assert loaded.fitted_on["rows"] == 12 * 39
    np.testing.assert_array_equal(loaded.predict(x), decoder.predict(x))
    content = json.loads(path.read_text())
    assert content["format"] == 1
    assert np.shape(content["weight"]) == (2, 5, 3)


def test_bin_by_bin_as_all_at_once():
    x, y = recording(n_pieces=4, n_bins=60)
    x[..., 4] = 1.0
    decoder = fit_decoder(x, y, lags=(1, 3))
    flat = x[0].copy()
    flat[20, 1] = np.inf
    flat[30, 4] = np.nan  # a feature that is not read
    expected = decoder.predict(flat)
    state = decoder.state()
    got = []
    for t, row in enumerate(flat):
        if t == 33:
            saved = state.state()
            state.reset()
            state = decoder.state()
            state.load_state(saved)
        got.append(state.step(row).copy())
    np.testing.assert_allclose(got, expected, atol=1e-10)
    assert np.isnan(got[:3]).all()
    assert np.flatnonzero(np.isnan(got[3:]).any(axis=1)).tolist() == [18, 20]
    several = decoder.state(batch=2)
    pair = [several.step(np.stack([row, x[1, t]])).copy() for t, row in enumerate(flat)]
    np.testing.assert_allclose(np.array(pair)[:, 0], expected, atol=1e-10)
    np.testing.assert_allclose(np.array(pair)[:, 1], decoder.predict(x[1]), atol=1e-10)


def test_a_channel_that_died_keeps_no_row_out():
    x, y = recording()
    x[..., 2] = np.nan
    decoder = fit_decoder(x, y)
    assert decoder.feature_scale[2] == 0
    assert decoder.score(x, y).left_out == 0


def test_intervals_are_over_pieces_and_over_blocks_of_one_piece():
    x, y = recording(n_pieces=30)
    decoder = fit_decoder(x[:20], y[:20], lags=(0,), bin_ms=20.0)
    scores = decoder.score(x[20:], y[20:], n_draws=200)
    low, high = scores.intervals["r2_uniform"]
    assert low < scores.r2_uniform < high
    assert len(scores.intervals["r2"]) == 3
    # 400 bins of 20 ms are one block; of 10 ms they are one, too, of 100 ms eight.
    one = decoder.score(x[20:].reshape(-1, 5), y[20:].reshape(-1, 3), n_draws=50)
    assert one.intervals == {}
    slow = fit_decoder(x[:20], y[:20], bin_ms=100.0)
    assert slow.score(x[20:].reshape(-1, 5), y[20:].reshape(-1, 3), n_draws=50).intervals


def test_only_rows_that_are_chosen():
    x, y = recording()
    where = np.zeros(x.shape[:2], dtype=bool)
    where[:, 10:] = True
    y[:, :10] = 1e6
    decoder = fit_decoder(x, y, lags=(0, 1), alphas=[1.0], where=where)
    assert decoder.fitted_on["rows"] == 12 * 30
    assert decoder.score(x, y, where=where).r2_uniform > 0.4
    assert decoder.score(x, y).r2_uniform < 0


def test_errors(tmp_path):
    x, y = recording()
    decoder = fit_decoder(x, y, lags=(-1, 0))
    with pytest.raises(UserError, match=r"reads 5 features.*have 4"):
        decoder.predict(x[..., :4])
    with pytest.raises(UserError, match="reads later bins"):
        decoder.state()
    with pytest.raises(UserError, match="takes 10 in each of 5"):
        fit_decoder(x[:1, :30], y[:1, :30])
    with pytest.raises(UserError, match="x has 480 rows, y 440"):
        fit_decoder(x, y[:11])
    with pytest.raises(UserError, match="nothing can be scored"):
        decoder.score(x, y * np.nan)
    with pytest.raises(UserError, match="FIRST:LAST"):
        parse_lags("3:0")
    (tmp_path / "no.json").write_text("{}")
    for name in ("no.json", "absent.json"):
        with pytest.raises(DataError, match=name):
            Decoder.load(tmp_path / name)
    content = decoder.to_dict()
    content["bias"] = [0.0]
    (tmp_path / "no.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"no\.json is damaged.*weight has shape"):
        Decoder.load(tmp_path / "no.json")


@pytest.mark.filterwarnings("default:the best penalty")
def test_the_end_of_the_grid_is_a_warning():
    x, _ = recording()
    noise = np.random.default_rng(5).normal(size=(*x.shape[:2], 1))
    with pytest.warns(DataWarning, match="of force x is the largest that was tried, 1e"):
        fit_decoder(x, noise, target_names=["force x"])


def test_needs_no_torch():
    code = "import sys, lfads_torch.metrics.decoding\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
