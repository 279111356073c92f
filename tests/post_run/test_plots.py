"""Figures are tested by content: axes, labels, data, colours; not by pixels."""

import io

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from lfads_torch.errors import DataError
from lfads_torch.post_run.plots import (
    factors_3d,
    raster_panel,
    read_csv_log,
    training_curves,
    trajectories,
)
from lfads_torch.post_run.plots.style import evenly


def rendered(figure):
    """Draw the figure wholly, so that whatever cannot be drawn fails here."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=40)
    buffer.seek(0)
    return imread(buffer)


def texts(figure):
    return [t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_text()]


def population(n_trials=5, n_bins=20, n_units=8, seed=0):
    rng = np.random.default_rng(seed)
    rates = np.exp(0.5 * rng.normal(size=(n_trials, n_bins, n_units)).cumsum(axis=1))
    return rng.poisson(rates).astype(float), rates


class TestRasterPanel:
    def test_columns_rows_and_data(self):
        spikes, rates = population()
        figure = raster_panel(
            spikes, rates, 2 * rates, rates[..., :2], sort_units=False, n_trials=2
        )
        rendered(figure)
        panels = [ax for ax in figure.axes if ax.get_images()]
        assert len(panels) == 2 * 3
        titles = [ax.get_title() for ax in figure.axes[:4]]
        assert titles == [
            "spikes per bin",
            "true rates",
            "inferred rates",
            "inferred inputs (a.u.)",
        ]
        drawn = [ax.get_images()[0].get_array() for ax in panels]
        for row in range(2):
            for column, values in enumerate((spikes, 2 * rates, rates)):
                assert np.array_equal(drawn[3 * row + column], values[row].T)
        lines = [ax for ax in figure.axes if len(ax.lines) == 3]
        assert np.array_equal(lines[1].lines[1].get_ydata(), rates[1, :, 0])
        limits = {ax.get_images()[0].get_clim() for i, ax in enumerate(panels) if i % 3}
        assert len(limits) == 1, "true and inferred rates share one colour scale"

    def test_units_where_the_bin_width_is_known(self):
        spikes, rates = population()
        figure = raster_panel(spikes, rates, bin_ms=20, n_trials=1, sort_units=False)
        assert {"time (ms)", "spikes/s"} <= set(texts(figure))
        assert np.allclose(figure.axes[1].get_images()[0].get_array(), rates[0].T * 50)
        assert figure.axes[0].get_xlim() == (0, 400)
        figure = raster_panel(spikes, rates)
        assert {"time (bins)", "spikes/bin"} <= set(texts(figure))
        figure = raster_panel(spikes, rates, bin_ms=20, counts=False)
        assert "spikes/s" not in texts(figure)
        assert "value" in texts(figure)

    def test_sorting_keeps_every_unit_and_the_held_out_ones_below(self):
        spikes, rates = population()
        figure = raster_panel(spikes, rates, n_trials=1, n_encod=5, encod_bins=15)
        drawn = np.asarray(figure.axes[1].get_images()[0].get_array())
        assert {tuple(row) for row in drawn[:5]} == {tuple(row) for row in rates[0, :, :5].T}
        assert {tuple(row) for row in drawn[5:]} == {tuple(row) for row in rates[0, :, 5:].T}
        horizontal, vertical = figure.axes[0].lines
        assert set(horizontal.get_ydata()) == {4.5}
        assert set(vertical.get_xdata()) == {15}
        assert any("units below and bins to the right" in text for text in texts(figure))

    def test_missing_bins_are_masked(self):
        spikes, rates = population()
        spikes[0, 3:5] = np.nan
        figure = raster_panel(spikes, rates, n_trials=1)
        masked = np.ma.getmaskarray(figure.axes[0].get_images()[0].get_array())
        assert masked[:, 3:5].all()
        assert masked.sum() == 2 * spikes.shape[-1]

    def test_leaves_the_callers_style_alone(self):
        before = dict(mpl.rcParams)
        raster_panel(*population())
        assert dict(mpl.rcParams) == before

    @settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        n_trials=st.integers(0, 2),
        n_bins=st.integers(1, 3),
        n_units=st.integers(1, 3),
        fill=st.sampled_from([None, 0.0, np.nan, -1.0]),
    )
    def test_never_fails(self, n_trials, n_bins, n_units, fill):
        spikes, rates = population(n_trials, n_bins, n_units)
        if fill is not None:
            spikes[:], rates[:] = fill, fill
        truth = np.zeros((n_trials, 0, 0))
        assert rendered(raster_panel(spikes, rates, truth, rates)).size


class TestFactors3d:
    def test_maps_factors_onto_the_latents(self):
        rng = np.random.default_rng(0)
        truth = rng.normal(size=(6, 12, 3)).cumsum(axis=1)
        factors = truth @ rng.normal(size=(3, 5)) + 1
        figure = factors_3d(factors, truth, bin_ms=10, trial=2)
        rendered(figure)
        true, mapped = (ax.collections[0] for ax in figure.axes[:2])
        assert len(true._segments3d) == len(mapped._segments3d) == 6 * 11
        assert np.allclose(mapped._segments3d, true._segments3d)
        assert "factors, mapped linearly (R² = 1.000)" in texts(figure)
        assert {"time (ms)", "latent 2", "trial 2"} <= set(texts(figure))
        courses = [ax for ax in figure.axes if ax.get_ylabel().startswith("latent") and ax.lines]
        thick, thin = courses[-1].lines[:2]
        assert np.array_equal(thick.get_ydata(), truth[2, :, 2])
        assert np.allclose(thin.get_ydata(), truth[2, :, 2])

    @pytest.mark.parametrize("n_dims", [2, 3, 4])
    def test_one_trial_nan_and_other_dimensions(self, n_dims):
        truth = np.random.default_rng(1).normal(size=(1, 6, n_dims))
        factors = truth.copy()
        factors[0, 2] = np.nan
        assert rendered(factors_3d(factors, truth)).size

    def test_nothing_finite(self):
        nothing = np.full((2, 4, 3), np.nan)
        assert texts(factors_3d(nothing, nothing)) == ["no bin with finite factors and latents"]


class TestTrajectories:
    def test_components_hold_the_variance(self):
        rng = np.random.default_rng(0)
        factors = rng.normal(size=(50, 10, 4)) * [10, 5, 1, 0.1]
        figure = trajectories(factors, max_trials=7)
        rendered(figure)
        axis = figure.axes[0]
        flat = factors.reshape(-1, 4) - factors.mean((0, 1))
        power = np.linalg.eigvalsh(flat.T @ flat)[::-1]
        labels = [axis.get_xlabel(), axis.get_ylabel(), axis.get_zlabel()]
        shares = power / power.sum()
        assert labels == [f"PC {k + 1} ({shares[k]:.0%})" for k in range(3)]
        assert axis.get_title() == "factors of 7 of 50 trials"
        segments = np.asarray(axis.collections[0]._segments3d)
        assert len(segments) == 7 * 9
        # The three components keep all distances but for the smallest one's part.
        steps = np.linalg.norm(segments[:, 1] - segments[:, 0], axis=1)
        full = np.linalg.norm(np.diff(factors[evenly(50, 7)], axis=1), axis=2).ravel()
        assert np.allclose(steps, full, atol=0.2)

    @settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        n_trials=st.integers(0, 2),
        n_bins=st.integers(1, 3),
        n_factors=st.integers(1, 4),
        fill=st.sampled_from([None, 0.0, np.nan]),
    )
    def test_never_fails(self, n_trials, n_bins, n_factors, fill):
        factors = np.random.default_rng(0).normal(size=(n_trials, n_bins, n_factors))
        if fill is not None:
            factors[:1] = fill
        assert rendered(trajectories(factors)).size


def test_windows_of_a_recording_are_joined():
    rng = np.random.default_rng(0)
    path = rng.normal(size=(90, 5)).cumsum(axis=0)
    starts = np.array([0, 10, 20, 60, 70])  # bins 40 to 59 are not in any window
    windows = np.stack([path[start : start + 20] for start in starts])
    figure = trajectories(windows, bin_ms=20, starts=starts)
    rendered(figure)
    plane, *over_time = [axis for axis in figure.axes if axis.get_ylabel().startswith("PC")]
    assert "all 70 bins" in plane.get_title()
    time, first = over_time[0].lines[0].get_data()
    assert len(time) == 40, "the longest stretch"
    assert over_time[-1].get_xlabel() == "time (s)"
    assert time[-1] == pytest.approx(0.79)
    # The same axes for all windows: bins that two windows share are drawn once.
    centre = path[np.r_[0:40, 60:90]]
    assert (
        np.corrcoef(first, path[:40] @ np.linalg.svd(centre - centre.mean(0))[2][0])[0, 1] ** 2
        > 0.9
    )


def test_without_conditions_few_trials_are_drawn():
    factors = np.random.default_rng(0).normal(size=(60, 12, 4)).cumsum(axis=1)
    assert trajectories(factors).axes[0].get_title() == "factors of 10 of 60 trials"


LOG = """epoch,step,train/loss,valid/loss,valid/recon_smth,train/wt_kl/ramp,valid/bps
0,9,,5.0,5.0,,-3.0
0,9,6.0,,,0.5,
1,19,,4.0,4.3,,0.1
1,19,5.0,,,1.0,
1,19,,3.0,3.6,,0.2
2,29,,nan,3.7,,0.3
"""


class TestTrainingCurves:
    @pytest.mark.parametrize(("kl", "titles"), [(0.0, ["loss"]), (0.1, ["loss", "KL terms"])])
    def test_terms_that_are_zero_throughout_have_no_panel(self, kl, titles):
        log = {"epoch": [0, 1], "train/loss": [2.0, 1.0], "train/wt_kl/ic": [0.0, kl]}
        assert [ax.get_title() for ax in training_curves(log).axes if ax.get_visible()] == titles

    def test_reads_lightnings_sparse_rows(self, tmp_path):
        path = tmp_path / "csv_logs" / "metrics.csv"
        path.parent.mkdir()
        path.write_text(LOG)
        for place in (path, tmp_path):
            series = read_csv_log(place)
            assert [list(x) for x in series["train/loss"]] == [[0, 1], [6, 5]]
            epochs, values = series["valid/loss"]
            assert list(epochs) == [0, 1, 2]
            assert list(values[:2]) == [5, 3], "of an epoch logged twice the last stands"

    def test_panels_and_curves(self, tmp_path):
        (tmp_path / "metrics.csv").write_text(LOG)
        figure = training_curves(tmp_path)
        rendered(figure)
        panels = {ax.get_title(): ax for ax in figure.axes if ax.get_visible()}
        assert list(panels) == ["loss", "reconstruction", "bits per spike", "ramps"]
        train, valid = panels["loss"].lines
        assert list(train.get_ydata()) == [6, 5]
        assert list(valid.get_ydata()) == [5, 3], "values that are not finite leave a gap"
        legend = [t.get_text() for t in panels["reconstruction"].get_legend().get_texts()]
        assert legend == ["valid, smoothed", "best: 1"]
        assert panels["ramps"].get_ylim() == (-0.05, 1.05)
        assert all(ax.get_xlabel() == "epoch" for ax in panels.values())
        low, high = panels["bits per spike"].get_ylim()
        assert low >= -0.5 * high

    def test_marks_the_epoch_that_the_run_selects(self):
        log = {
            "epoch": [0, 1, 2],
            "valid/recon_smth": [3.0, 2.0, 1.0],
            "valid/co_bps": [0.1, 0.3, 0.2],
            "valid/co_bps_smth": [0.1, 0.2, 0.15],
        }
        for select_by, panel, at in (
            ("valid/co_bps_smth", "bits per spike", (1, 0.3)),
            ("valid/recon_smth", "reconstruction", (2, 1.0)),
        ):
            dots = [
                (axis.get_title(), line.get_xydata()[0].tolist())
                for axis in training_curves(log, select_by).axes
                for line in axis.lines
                if str(line.get_label()).startswith("best")
            ]
            assert dots == [(panel, list(at))], select_by

    def test_takes_a_table(self):
        figure = training_curves({"epoch": [0, 1, 2], "train/loss": [3.0, np.nan, 1.0]})
        assert list(figure.axes[0].lines[0].get_xdata()) == [0, 2]

    def test_a_notebook_shows_it_without_pyplot(self):
        figure = training_curves({"epoch": [0, 1], "train/loss": [2.0, 1.0]})
        assert figure._repr_png_().startswith(b"\x89PNG")

    def test_scores_that_the_data_do_not_have_get_no_panel(self, tmp_path):
        # A loss that is NaN has diverged, which is to be seen.
        (tmp_path / "metrics.csv").write_text("epoch,train/loss,valid/r2\n0,nan,nan\n1,nan,nan\n")
        assert [axis.get_title() for axis in training_curves(tmp_path).axes] == ["loss"]

    @pytest.mark.parametrize("values", [[np.nan, np.nan], [np.inf, np.inf], [1.0, 1.0], [0.0, 0.0]])
    @pytest.mark.parametrize("key", ["train/loss", "train/wt_kl/ic", "valid/r2"])
    def test_never_fails(self, key, values):
        assert rendered(training_curves({"epoch": [0, 1], key: values})).size

    def test_errors(self, tmp_path):
        with pytest.raises(DataError, match=r"no training log at .*metrics\.csv"):
            training_curves(tmp_path)
        (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
        with pytest.raises(DataError, match="no column 'epoch'"):
            training_curves(tmp_path)
        with pytest.raises(DataError, match="needs one named 'epoch'"):
            training_curves({"train/loss": [1.0]})
