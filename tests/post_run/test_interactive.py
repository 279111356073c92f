"""Figures of plotly hold the arrays that they were given."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from lfads_torch.errors import DataError, UserError
from lfads_torch.post_run.plots import interactive_factors, trial_browser

RNG = np.random.default_rng(0)


def test_factors_keep_their_distances() -> None:
    pytest.importorskip("plotly")
    factors = RNG.normal(size=(6, 10, 3))
    figure = interactive_factors(factors, ["a", "b"] * 3, bin_ms=20)
    assert [trace.legendgroup for trace in figure.data] == ["a"] * 3 + ["b"] * 3
    assert sum(bool(trace.showlegend) for trace in figure.data) == 2
    drawn = np.stack([figure.data[1].x, figure.data[1].y, figure.data[1].z], axis=1)
    # Three factors in three components: only turned, trial 2 is the second of "a".
    assert np.linalg.norm(np.diff(drawn, axis=0), axis=1) == pytest.approx(
        np.linalg.norm(np.diff(factors[2], axis=0), axis=1)
    )
    assert "trial 2, time (ms)" in figure.data[1].hovertemplate
    with pytest.raises(DataError, match="three or more"):
        interactive_factors(factors[..., :2])


def test_the_browser_shows_one_trial_at_a_time() -> None:
    pytest.importorskip("plotly")
    spikes = RNG.poisson(0.5, (5, 10, 4))
    rates = RNG.gamma(2.0, 0.2, (5, 10, 4))
    figure = trial_browser(spikes, rates, rates, bin_ms=20, trials=[1, 4])
    assert [trace.visible for trace in figure.data] == [True] * 3 + [False] * 3
    [slider] = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["1", "4"]
    assert list(slider.steps[1].args[1]) == [False] * 3 + [True] * 3
    units = np.asarray(figure.data[5].customdata)[:, 0]
    assert np.asarray(figure.data[5].z) == pytest.approx(rates[4][:, units].T * 50)
    assert np.asarray(figure.data[3].z) == pytest.approx(spikes[4][:, units].T)
    with pytest.raises(DataError, match="legal are 0 to 4"):
        trial_browser(spikes, rates, trials=[7])


@pytest.mark.parametrize("draw", [interactive_factors, trial_browser])
def test_without_plotly_the_extra_is_named(draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    arrays = [np.ones((2, 3, 4))] * (1 + (draw is trial_browser))
    with pytest.raises(UserError, match=rf"{draw.__name__} needs plotly.*\[interactive\]"):
        draw(*arrays)
