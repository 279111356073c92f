"""Figures of responses, latents, decoding, dynamics and scores, by content: axes, labels, data."""

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgba

from lfads_torch.errors import UserError
from lfads_torch.metrics import gaussian_smooth
from lfads_torch.post_run import plots
from lfads_torch.post_run.dynamics import Generator, find_fixed_points
from lfads_torch.post_run.plots.groups import by_condition, mean_and_error
from lfads_torch.post_run.plots.initial import discriminants
from lfads_torch.post_run.plots.inputs import align
from lfads_torch.post_run.plots.scores import channel_scores, score_intervals
from lfads_torch.post_run.plots.style import LOOKS, paper
from lfads_torch.post_run.plots.training import training_beside


def drawn(figure):
    """Lay the figure out wholly, so that whatever cannot be drawn fails here."""
    figure.draw_without_rendering()
    return figure


def texts(figure):
    return [t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_text()]


def visible(figure):
    return [ax for ax in figure.axes if ax.get_visible()]


def population(n_trials=12, n_bins=15, n_units=6, seed=0):
    rng = np.random.default_rng(seed)
    rates = np.exp(0.4 * rng.normal(size=(n_trials, n_bins, n_units)).cumsum(axis=1))
    return rng.poisson(rates).astype(float), rates


class TestGroups:
    def test_numbers_names_and_nan(self):
        groups, n_all = by_condition([2.0, np.nan, 1.0, 2.0], 4)
        assert [(g.name, g.trials.tolist()) for g in groups] == [("1", [2]), ("2", [0, 3])]
        assert n_all == 2
        groups, _ = by_condition(np.array([b"left", b"right", b"left"]), 3)
        assert [g.name for g in groups] == ["left", "right"]

    def test_of_too_many_the_largest_are_kept_in_their_order(self):
        labels = [5, 5, 4, 3, 3, 3, 2, 1, 1]
        groups, n_all = by_condition(labels, 9, max_groups=3)
        assert ([g.name for g in groups], n_all) == (["1", "3", "5"], 5)

    def test_colours_differ(self):
        for n in (3, 8, 20):
            groups, _ = by_condition(np.arange(n), n, max_groups=n)
            assert len({to_rgba(g.colour) for g in groups}) == n

    def test_without_conditions(self):
        groups, n_all = by_condition(None, 3)
        assert (groups[0].trials.tolist(), n_all, groups[0].name) == ([0, 1, 2], 1, "")

    def test_mean_and_error_by_hand(self):
        mean, error = mean_and_error(np.array([[1.0, np.nan], [3.0, 5.0]]))
        assert mean.tolist() == [2, 5]
        assert error.tolist() == [1, 0], "sd sqrt(2) over sqrt(2) trials; one trial has none"


class TestPaper:
    def test_dark_figures_are_legible(self):
        spikes, rates = population()
        for name, look in LOOKS.items():
            with paper(name):
                figure = drawn(plots.psths(spikes, rates))
            assert to_rgba(figure.get_facecolor()) == to_rgba(look.paper)
            axis = figure.axes[0]
            for text in (axis.title, axis.yaxis.label, *axis.get_yticklabels()):
                assert to_rgba(text.get_color()) == to_rgba(look.ink)

    @pytest.mark.parametrize("look", LOOKS.values(), ids=list(LOOKS))
    def test_lines_stand_out_from_the_paper(self, look):
        for colour in (look.ink, look.blue, look.orange, look.green, look.pink, look.muted):
            assert contrast(colour, look.paper) > 2.4
        assert contrast(look.ink, look.paper) > 12

    def test_unknown_paper(self):
        with pytest.raises(UserError, match=r"paper is 'sepia'; legal are 'light', 'dark'"):
            paper("sepia").__enter__()

    def test_is_light_again_afterwards(self):
        with paper("dark"):
            pass
        figure = plots.psths(*population())
        assert to_rgba(figure.get_facecolor()) == to_rgba("white")


def contrast(one, other):
    """Contrast of the WCAG, between 1 and 21."""

    def luminance(colour):
        channels = np.array(to_rgba(colour)[:3])
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


class TestPsths:
    def test_curves_are_condition_averages(self):
        spikes, rates = population()
        conditions = np.arange(12) % 2
        figure = drawn(
            plots.psths(spikes, rates, conditions, units=[4, 1], bin_ms=10, smooth_bins=1)
        )
        assert [ax.get_title() for ax in figure.axes[:2]] == ["unit 4", "unit 1"]
        above, below = figure.axes[1], figure.axes[3]
        smooth = gaussian_smooth(spikes * 100, 1)
        assert np.allclose(above.lines[1].get_ydata(), smooth[1::2, :, 1].mean(axis=0))
        assert np.allclose(below.lines[0].get_ydata(), 100 * rates[::2, :, 1].mean(axis=0))
        assert {"time (ms)", "condition", "smoothed spikes\n(spikes/s)"} <= set(texts(figure))
        assert [t.get_text() for t in figure.legends[0].get_texts()] == ["0", "1"]

    def test_chooses_units_whose_responses_are_reliable(self):
        rng = np.random.default_rng(0)
        rates = np.ones((40, 20, 9))
        rates[::2, :, 7] = 5.0
        figure = plots.psths(rng.poisson(rates), rates, np.arange(40) % 2, n_units=1)
        assert figure.axes[0].get_title() == "unit 7"

    def test_says_how_many_conditions_there_are(self):
        spikes, rates = population()
        figure = plots.psths(spikes, rates, np.arange(12), max_conditions=5)
        assert "condition (5 of 12)" in texts(figure)


class TestSingleTrials:
    def test_lines_and_ticks(self):
        spikes, rates = population(n_trials=3)
        figure = drawn(
            plots.single_trials(
                spikes, rates, 2 * rates, units=[5], trials=[2], smooth_bins=None, bin_ms=20
            )
        )
        axis = figure.axes[0]
        truth, rate = axis.lines
        assert np.allclose(rate.get_ydata(), rates[2, :, 5] * 50)
        assert np.allclose(truth.get_ydata(), rates[2, :, 5] * 100)
        assert len(axis.collections[0].get_segments()) == spikes[2, :, 5].sum()
        assert axis.get_title() == "trial 2"
        assert {"unit 5\n(spikes/s)", "inferred rate", "true rate", "spikes"} <= set(texts(figure))

    def test_values_that_are_no_counts_are_a_line(self):
        spikes, rates = population(n_trials=1)
        figure = drawn(plots.single_trials(spikes - 0.5, rates, counts=False, units=[0]))
        assert np.allclose(figure.axes[0].lines[0].get_ydata(), spikes[0, :, 0] - 0.5)
        assert "data" in texts(figure)


class TestTrajectories:
    def test_by_condition(self):
        factors = np.random.default_rng(0).normal(size=(10, 8, 4))
        conditions = np.repeat([0, 1], 5)
        figure = drawn(plots.trajectories(factors, conditions, n_dims=2, max_trials=4))
        axis = figure.axes[0]
        thin = [line for line in axis.lines if line.get_linewidth() < 1]
        thick = [line for line in axis.lines if line.get_linewidth() > 2]
        assert (len(thin), len(thick)) == (4, 2)
        assert not hasattr(axis, "zaxis")
        # Averages are over all trials of a condition, drawn or not.
        centre = factors.reshape(-1, 4) - factors.reshape(-1, 4).mean(axis=0)
        basis = np.linalg.svd(centre, full_matrices=False)[2][:2]
        wanted = (factors - factors.mean((0, 1))) @ basis.T
        assert np.allclose(np.abs(thick[1].get_xydata()), np.abs(wanted[5:].mean(axis=0)))
        assert "condition; dots: start" in texts(figure)


class TestInitialConditions:
    def test_separates_what_can_be_separated(self):
        rng = np.random.default_rng(0)
        labels = np.repeat([0, 1, 2], 20)
        ic = rng.normal(size=(60, 8)) + 6 * np.eye(8)[labels]
        figure = drawn(plots.initial_conditions(ic, labels))
        assert any("100% of held-out trials" in text for text in texts(figure))
        assert "discriminant 2" in texts(figure)

    def test_noise_is_told_at_chance(self):
        rng = np.random.default_rng(1)
        labels = np.repeat([0, 1], 40)
        groups, _ = by_condition(labels, 80)
        found = discriminants(rng.normal(size=(80, 30)), groups)
        assert found.chance == 0.5
        assert 0.3 < found.accuracy < 0.7, "many dimensions and no cross-validation would be ~1"
        assert found.n_axes == 1

    def test_without_conditions_trials_are_coloured_by_order(self):
        ic = np.random.default_rng(0).normal(size=(9, 3))
        figure = drawn(plots.initial_conditions(ic))
        assert figure.axes[0].collections[0].get_array().tolist() == list(range(9))
        assert "trial" in texts(figure)

    @pytest.mark.parametrize("labels", [[0, 1], [0, 0, 0], ["a", "b", "b"]])
    def test_too_few_trials_to_separate(self, labels):
        ic = np.random.default_rng(0).normal(size=(len(labels), 4))
        assert "principal components" in texts(drawn(plots.initial_conditions(ic, labels)))


class TestAlign:
    def test_by_hand(self):
        values = np.arange(10.0).reshape(2, 5, 1)
        cut, at = align(values, [1, 3], before=2, after=1)
        assert at == 2
        assert np.array_equal(cut[0, :, 0], [np.nan, 0, 1, 2], equal_nan=True)
        assert np.array_equal(cut[1, :, 0], [6, 7, 8, 9], equal_nan=True)

    @settings(max_examples=40, deadline=None)
    @given(
        events=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=3, max_size=3),
        n_bins=st.integers(1, 6),
    )
    def test_the_event_lies_in_its_column(self, events, n_bins):
        values = np.arange(3.0 * n_bins).reshape(3, n_bins, 1)
        cut, at = align(values, events)
        for trial, event in enumerate(events):
            if np.isfinite(event) and 0 <= event < n_bins:
                assert cut[trial, at, 0] == values[trial, int(event), 0]
                inside = np.isfinite(cut[trial]).sum()
                assert inside == n_bins, "by default nothing of a trial is cut off"
            else:
                assert not np.isfinite(cut[trial, at, 0]) or not np.isfinite(event)


class TestAlignedInputs:
    def test_means_and_single_trials(self):
        inputs = np.random.default_rng(0).normal(size=(6, 8, 2))
        conditions = [1, 0, 1, 0, 1, 0]
        figure = drawn(
            plots.aligned_inputs(
                inputs, np.full(6, 3), conditions, bin_ms=10, event_name="go", before=3, after=4
            )
        )
        left, right = figure.axes[:2]
        assert np.allclose(left.lines[0].get_ydata(), inputs[1::2, :, 0].mean(axis=0))
        image = np.asarray(right.get_images()[0].get_array())
        assert np.allclose(image, inputs[[1, 3, 5, 0, 2, 4], :, 0])
        assert right.get_images()[0].get_extent()[:2] == [-30, 50]
        assert "time from go (ms)" in texts(figure)

    def test_of_many_dimensions_those_that_vary(self):
        inputs = np.random.default_rng(0).normal(size=(5, 4, 6)) * [1, 9, 1, 8, 1, 7]
        figure = plots.aligned_inputs(inputs, max_dims=3)
        labels = [ax.get_ylabel() for ax in figure.axes]
        assert labels[:6:2] == ["input 1 (a.u.)", "input 3 (a.u.)", "input 5 (a.u.)"]

    def test_no_trial_reaches_the_event(self):
        assert texts(plots.aligned_inputs(np.ones((2, 3, 1)), [np.nan, 99], event_name="go")) == [
            "no trial reaches the go"
        ]


class TestLatentUsage:
    def test_bars_are_sorted_sums_and_unused_ones_are_counted(self):
        co = np.zeros((4, 5, 3))
        co[..., 1], co[..., 2] = 2.0, 0.001
        ic = np.tile([0.0, 3.0], (4, 1))
        figure = drawn(plots.latent_usage(ic, co, bin_ms=10))
        inputs, over_time, start = figure.axes
        assert np.allclose([bar.get_height() for bar in inputs.patches], [10, 0.005, 0])
        assert [t.get_text() for t in inputs.get_xticklabels()] == ["1", "2", "0"]
        assert inputs.get_title() == "inferred inputs: 1 of 3 used"
        assert start.get_title() == "initial condition: 1 of 2 used"
        assert np.allclose(over_time.lines[1].get_ydata(), 2.0)
        colours = [line.get_color() for line in over_time.lines]
        assert colours == list(plots.style.look().palette[:3]), "those of the figure of trials"

    def test_those_that_are_not_drawn_are_counted(self):
        figure = drawn(plots.latent_usage(np.ones(64), max_dims=40))
        assert len(figure.axes[0].patches) == 40
        assert figure.axes[0].get_title() == "initial condition: 64 of 64 used"
        assert "the first 40" in figure.axes[0].get_xlabel()

    def test_nothing(self):
        assert texts(plots.latent_usage()) == ["no divergence to draw"]


class TestDecodedBehavior:
    def test_traces_scores_and_names(self):
        true = np.random.default_rng(0).normal(size=(7, 10, 2))
        figure = drawn(
            plots.decoded_behavior(true, true, true / 2, names=["x (cm)"], trials=[6, 2], bin_ms=20)
        )
        left, right = figure.axes[:2]
        assert [len(ax.lines) for ax in figure.axes[::2]] == [6, 6]
        baseline, truth, decoded = left.lines[:3]
        assert np.allclose(truth.get_ydata(), true[6, :, 0])
        assert np.allclose(decoded.get_ydata(), truth.get_ydata())
        assert np.allclose(baseline.get_ydata(), true[6, :, 0] / 2)
        assert right.get_title() == "R² = 1.00"
        assert {"x (cm)", "behaviour 1", "trial 6", "time, 200 ms each"} <= set(texts(figure))

    def test_score_by_hand(self):
        true = np.array([[[0.0], [2.0]]])
        figure = plots.decoded_behavior(true, true * 0 + [[[1.0], [2.0]]])
        assert figure.axes[1].get_title() == "R² = 0.50"

    def test_a_column_that_does_not_vary_is_named_and_not_drawn(self):
        true = np.random.default_rng(0).normal(size=(3, 4, 3))
        true[..., 1], true[..., 2] = 2.0, np.nan
        figure = drawn(plots.decoded_behavior(true, true, names=["x", "y", "z"]))
        assert [axis.get_ylabel() for axis in figure.axes] == ["x", "decoded"]
        assert "not drawn, as it does not vary over these trials: y, z" in texts(figure)
        still = plots.decoded_behavior(true[..., 1:], true[..., 1:])
        assert texts(still) == ["no behaviour varies over these trials"]


class TestFixedPoints:
    def test_points_spectra_and_units(self):
        n = 2
        turn = 0.9 * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
        weight = np.concatenate([np.zeros((2 * n, n)), turn])
        own = Generator(weight, np.repeat([0.0, 50.0, 0.0], n))
        states = np.random.default_rng(0).normal(size=(4, 6, n))
        found = find_fixed_points(own, states)
        figure = drawn(plots.fixed_points(found, states, bin_ms=10))
        space, spectrum, modes = figure.axes
        drawn_values = spectrum.lines[-1].get_xydata()
        assert np.allclose(
            drawn_values, np.stack([found.eigenvalues[0].real, found.eigenvalues[0].imag], axis=1)
        )
        assert len(space.collections[0].get_segments()) == 4
        x, y = modes.lines[0].get_xydata().T
        assert np.allclose(y, found.time_constants()[0] * 10)
        assert np.allclose(x, found.frequencies()[0] * 100)
        assert {"0: fixed, stable", "time constant (ms)", "frequency (Hz)"} <= set(texts(figure))

    def test_no_points_and_one_state(self):
        own = Generator(np.zeros((3, 1)), np.zeros(3))
        found = find_fixed_points(own, np.full((1, 1), np.nan))
        figure = drawn(plots.fixed_points(found, np.zeros((1, 3, 1))))
        assert "no fixed or slow point found" in texts(figure)


class TestScores:
    def test_dots_and_intervals(self):
        scores = {
            "ours": {"a": (0.5, 0.4, 0.6), "b": (0.2, None, None)},
            "other": {"a": (0.1, 0, 0.2)},
        }
        figure = drawn(score_intervals(scores, {"b": "B", "a": "A"}, highlight=["ours"]))
        assert [ax.get_title() for ax in visible(figure)] == ["B", "A"]
        dot, line = visible(figure)[1].lines[:2]
        assert (dot.get_xdata()[0], list(line.get_xdata())) == (0.5, [0.4, 0.6])
        assert [t.get_text() for t in visible(figure)[0].get_yticklabels()] == ["ours", "other"]

    def test_nothing_to_draw(self):
        assert texts(score_intervals({"x": {"a": (None, None, None)}})) == ["no score to draw"]

    def test_parts_of_time_are_lines(self):
        row = {"bps": {"values": [0.3, 0.2], "intervals": [(0.2, 0.4), (None, None)]}}
        figure = drawn(
            plots.scores_over_time({"day": {"ours": row, "x": {}}}, {"bps": "bits", "x": "X"})
        )
        assert [ax.get_title() for ax in visible(figure)] == ["bits"]
        assert visible(figure)[0].lines[0].get_ydata().tolist() == [0.3, 0.2]
        days = {f"day {k}": {"ours": row, "other": row} for k in range(9)}
        rows = visible(drawn(plots.scores_over_time(days)))
        assert [ax.get_ylabel() for ax in rows][::5] == ["day 0", "day 8"]
        assert len({line.get_color() for line in rows[0].lines}) == 2
        assert texts(plots.scores_over_time({})) == ["no score to draw"]

    def test_channels_against_a_baseline(self):
        own, other = [0.5, np.nan, -0.1, 0.3], [0.4, 0.2, 0.0, np.nan]
        figure = drawn(channel_scores(own, other, n_encod=3))
        ranked, against = figure.axes
        assert ranked.get_title() == "1 below zero, 1 without a score"
        assert against.get_title() == "LFADS better in 1 of 2"
        assert np.allclose(against.collections[0].get_offsets(), [[0.4, 0.5], [0.0, -0.1]])
        assert {"read", "held out"} <= set(texts(figure))

    def test_channels_far_from_the_others_do_not_squeeze_them(self):
        own = [*np.linspace(0, 0.4, 40), -9.0, 8.0]
        ranked, against = drawn(channel_scores(own, own)).axes
        assert -0.1 < ranked.get_ylim()[0] < 0 and 0.4 < against.get_xlim()[1] < 0.5
        hollow = [dots for dots in ranked.collections if not len(dots.get_facecolors())]
        assert [y for dots in hollow for _, y in dots.get_offsets()] == pytest.approx([0, 0.4])


class TestComparison:
    def test_curves_by_run(self):
        epochs = np.arange(4.0)
        logs = {
            "one": {"valid/recon_smth": (epochs, epochs[::-1] + 1)},
            "two": {
                "valid/recon_smth": (epochs, np.array([4.0, np.nan, 2, 1])),
                "x": (epochs, epochs),
            },
        }
        figure = drawn(training_beside(logs))
        assert len(figure.axes) == 1
        assert list(figure.axes[0].lines[1].get_xdata()) == [0, 2, 3]
        assert [t.get_text() for t in figure.legends[0].get_texts()] == ["one", "two"]

    def test_nothing_logged(self):
        assert texts(training_beside({"one": {}})) == ["nothing logged"]


FILLS = st.sampled_from([None, 0.0, np.nan, -1.0])


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    n_trials=st.integers(0, 3),
    n_bins=st.integers(1, 3),
    n_units=st.integers(1, 2),
    fill=FILLS,
    conditions=st.sampled_from([None, 0, np.nan, "own"]),
    dark=st.booleans(),
)
def test_no_figure_ever_fails(n_trials, n_bins, n_units, fill, conditions, dark):
    """Few trials, one unit, one condition, NaN and dead channels."""
    spikes, rates = population(n_trials, n_bins, n_units)
    if fill is not None:
        spikes[:, :, :1] = rates[:, :, :1] = fill
    labels = None if conditions is None else np.full(n_trials, conditions)
    if conditions == "own":
        labels = np.arange(n_trials)
    own = Generator(np.ones((3 * n_units, n_units)), np.zeros(3 * n_units))
    with paper("dark" if dark else "light"):
        for figure in (
            plots.psths(spikes, rates, labels),
            plots.single_trials(spikes, rates, rates),
            plots.trajectories(rates, labels),
            plots.initial_conditions(rates[:, 0], labels),
            plots.aligned_inputs(rates, np.zeros(n_trials), labels),
            plots.latent_usage(rates[:, 0], rates),
            plots.decoded_behavior(rates, spikes, rates),
            plots.fixed_points(find_fixed_points(own, rates), rates),
            channel_scores(spikes.sum((0, 1)), rates.sum((0, 1))),
        ):
            drawn(figure)
