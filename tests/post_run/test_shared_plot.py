"""The figure of the factors that sessions share."""

from __future__ import annotations

import numpy as np
import pytest

from lfads_torch.post_run.plots import paper, shared_factors

RNG = np.random.default_rng(0)


def factors(n_sessions: int, conditions: int = 4, k: int = 5) -> list[np.ndarray]:
    made = [RNG.normal(size=(conditions, 20, k)) for _ in range(n_sessions)]
    made[0][1] = np.nan  # a session lacks a condition
    return made


def test_one_column_per_session_and_a_row_per_factor() -> None:
    made = factors(3)
    figure = shared_factors(made, ["a", "b", "c"], made[1], ["N", "E", "S", "W"], bin_ms=20.0)
    assert len(figure.axes) == 9
    assert [axes.get_title() for axes in figure.axes[:3]] == ["a", "b", "c"]
    assert figure.axes[-1].get_xlabel() == "time (ms)"
    lines = figure.axes[1].get_lines()
    assert len(lines) == 8  # per condition the component and the factor
    np.testing.assert_array_equal(lines[1].get_ydata(), made[1][0, :, 0])
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["N", "E", "S", "W"]
    assert "dotted: shared component" in legend.get_title().get_text()


def test_many_sessions_and_few_factors() -> None:
    figure = shared_factors(factors(20, conditions=30, k=1), [f"s{i}" for i in range(20)])
    assert len(figure.axes) == 6
    assert figure.axes[0].get_title() == "s0"
    assert figure.axes[5].get_title() == "s19"
    assert "6 of 20 sessions" in figure.legends[0].get_title().get_text()


@pytest.mark.parametrize("made", [[], [np.zeros((0, 3, 2))]])
def test_nothing_to_draw(made: list[np.ndarray]) -> None:
    assert shared_factors(made, ["a"] * len(made)).texts[0].get_text() == "no factors to draw"


def test_on_dark_paper() -> None:
    with paper("dark"):
        shared_factors(factors(2), ["a", "b"]).canvas.draw()
