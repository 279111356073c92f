"""The benchmarks measure what they say, at sizes that take no time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from epoch import measure_epoch
from fresh import measure_cold, measure_memory
from roofline import Roofline
from shapes import SHAPES, Shape, build_batch, build_model
from speed import draw_scaling, measure, scaling_shapes
from steps import package_step, textbook_step
from textbook import TextbookLFADS
from timing import by_turns, median_ratio
from torch.utils.flop_counter import FlopCounterMode

TINY = Shape(4, 5, 7, 6, 8, 3, 4, 5, 9, 2, 3, 2, n_train=8, n_valid=4)


def test_roofline_counts_the_products_of_the_textbook() -> None:
    model = TextbookLFADS(build_model(TINY))
    model.hps.ci_lag = 0  # With a lag, the CI encoder's last bins have no gradient.
    with FlopCounterMode(display=False) as counter:
        model.training_step({0: build_batch(TINY)}).backward()
    assert Roofline(TINY).flops == counter.get_total_flops()


def test_roofline_runs_what_it_counts() -> None:
    roofline = Roofline(TINY)
    with FlopCounterMode(display=False) as counter:
        roofline.run()
    assert roofline.flops == counter.get_total_flops()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes_build_the_textbook_and_the_package(shape: Shape) -> None:
    model = build_model(shape)
    textbook = TextbookLFADS(model)
    assert textbook.state_dict().keys() == model.state_dict().keys()


def test_package_and_textbook_infer_the_same() -> None:
    model, batch = build_model(TINY).eval(), {0: build_batch(TINY)}
    own, theirs = model(batch)[0], TextbookLFADS(model).eval()(batch)[0]
    for name, expected in theirs._asdict().items():
        torch.testing.assert_close(getattr(own, name), expected)


@pytest.mark.parametrize("step", [package_step(TINY, "auto"), textbook_step(TINY)])
def test_steps_can_be_repeated(step: Callable[[], None]) -> None:
    step()
    step()


def test_scaling_is_drawn_from_its_report() -> None:
    shapes = scaling_shapes()
    assert len(shapes) == 16 and all(shape.bins_read > 0 for shape in shapes.values())
    seconds = {f"{name}, s": 0.5 for name in ("package", "textbook", "roofline")}
    figure = draw_scaling({name: {"step": seconds} for name in shapes})
    assert [axis.get_xlabel() for axis in figure.axes][1:3] == ["bins", "channels"]
    assert all(len(axis.lines) == 3 for axis in figure.axes)


def test_by_turns_measures_each_action_every_round() -> None:
    calls: list[str] = []
    actions = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = by_turns(actions, rounds=3)
    assert [len(times) for times in seconds.values()] == [3, 3]
    order = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert order == ["a", "b", "a", "b", "a", "b"]


def test_median_ratio_is_within_rounds() -> None:
    assert median_ratio([2.0, 30.0, 8.0], [1.0, 10.0, 1.0]) == 3.0


def test_step_and_sampling() -> None:
    found = measure(TINY, ["step", "sampling"], "auto", rounds=1, n_trials=3)
    step, sampling = found["step"], found["sampling"]
    assert step["textbook / package"] == pytest.approx(step["textbook, s"] / step["package, s"])
    assert step["package / roofline"] == pytest.approx(step["package, s"] / step["roofline, s"])
    assert sampling["trials"] == 3
    assert sampling["textbook / package"] > 0


def test_epoch_counts_its_steps() -> None:
    found = measure_epoch(TINY, "auto", rounds=2)
    assert found["number of training steps"] == 2
    assert found["epoch / steps of training"] > found["epoch / steps of training and validation"]


@pytest.mark.slow
def test_processes_of_their_own() -> None:
    shape = replace(TINY, batch=64, bins=60, bins_read=50)
    memory = measure_memory(shape, "auto", 1)
    assert min(memory.values()) > 0
    cold = measure_cold(shape, "auto", 1)
    assert cold["start of Python to end of the first step, s"] > cold["first step alone, s"] > 0
