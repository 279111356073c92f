"""A stream equals the model offline, keeps its state, and goes on after what it refuses."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

import lfads_torch
from lfads_torch.errors import ConfigError
from lfads_torch.metrics.decoder import Decoder
from lfads_torch.metrics.decoding import fit_decoder
from lfads_torch.modules.recons import Gaussian
from lfads_torch.online.stream import Stream, StreamOutput
from lfads_torch.online.window import Window
from tests.online.models import model, spikes, tensor

pytestmark = pytest.mark.filterwarnings("ignore:no controller")


def assert_close(actual: Any, expected: Any, tol: float = 1e-5) -> None:
    np.testing.assert_allclose(actual, np.asarray(expected), rtol=tol, atol=tol)


def assert_same(one: StreamOutput, other: StreamOutput) -> None:
    """All fields bit-equal, NaN where NaN is."""
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- window mode ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bins", [6, 30])
@pytest.mark.parametrize("first", [0, 5])
def test_a_window_equals_the_model_offline(n_bins: int, first: int) -> None:
    """Against one batch of windows with a stride of one bin, missing channels and inputs."""
    lfads = model(n_bins, ic_enc_seq_len=first, ext_input_dim=1, recon_seq_len=n_bins + 3)
    x, ext = spikes(45, missing=0.2), np.random.default_rng(1).normal(size=(45, 1))
    live = lfads_torch.stream(lfads, horizon=2)
    out = live.run(x, ext)
    starts = range(45 - n_bins + 1)
    windows = torch.stack([torch.from_numpy(x[s : s + n_bins]) for s in starts])
    inputs = torch.stack([torch.from_numpy(ext[s : s + n_bins]).float() for s in starts])
    with torch.no_grad():
        whole = Window(lfads)(windows, inputs)
    for name in ("rates", "factors", "gen_states", "inputs"):
        assert np.isnan(getattr(out, name)[: n_bins - 1]).all()
        assert_close(getattr(out, name)[n_bins - 1 :], getattr(whole, name)[:, n_bins - 1])
    assert out.ahead is not None
    assert_close(out.ahead[n_bins - 1 :], whole.rates[:, n_bins : n_bins + 2])
    assert live.mode == "window" and out.t.tolist() == list(range(45))


def test_what_a_window_sees_before_it_is_full() -> None:
    lfads, x = model(5), spikes(8)
    padded = {"zeros": np.zeros_like(x[:4]), "repeat": np.repeat(x[:1], 4, axis=0)}
    for warmup, front in padded.items():
        out = lfads_torch.stream(lfads, warmup=warmup).run(x)
        whole = lfads_torch.stream(lfads).run(np.concatenate([front, x]))
        assert_close(out.rates, whole.rates[4:], 1e-6)
    out, every = (lfads_torch.stream(lfads, every=n).run(x) for n in (1, 3))
    assert every.fresh.tolist() == [False] * 6 + [True, False]
    assert_close(every.rates[6], out.rates[6], 1e-6)
    np.testing.assert_array_equal(every.rates[7], every.rates[6])


# ---- step mode -----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 5])
def test_steps_equal_the_model_offline(first: int) -> None:
    lfads = model(40, causal=True, ic_enc_seq_len=first, ext_input_dim=2, recon_seq_len=44)
    x, ext = spikes(40, missing=0.2), np.random.default_rng(1).normal(size=(40, 2))
    out = lfads_torch.stream(lfads, horizon=4).run(x, ext)
    with torch.no_grad():
        whole = Window(lfads)(tensor(x), tensor(ext).float())
    begin = max(first - 1, 0)
    assert np.isnan(out.rates[:begin]).all() and out.fresh.tolist() == [
        t >= begin for t in range(40)
    ]
    for name in ("rates", "factors", "gen_states", "inputs"):
        assert_close(getattr(out, name)[begin:], getattr(whole, name)[0, begin:40])
    assert out.ahead is not None
    assert_close(out.ahead[-1], whole.rates[0, 40:])


def test_later_bins_change_nothing() -> None:
    lfads, x = model(causal=True, ic_enc_seq_len=3), spikes(30)
    other = x.copy()
    other[20:], other[25:] = 1e6, np.nan
    one, two = (lfads_torch.stream(lfads).run(a) for a in (x, other))
    np.testing.assert_array_equal(one.rates[:20], two.rates[:20])
    assert not np.array_equal(one.rates[20:], two.rates[20:])


def test_a_restart_blends_into_a_new_state() -> None:
    """After each blend the stream is one that began at the restart; within, the mean of both."""
    lfads, x = model(causal=True, ic_enc_seq_len=2), spikes(30)
    out = lfads_torch.stream(lfads, restart=10, blend=5).run(x)
    old, new, newer = (lfads_torch.stream(lfads).run(x[n:]) for n in (0, 10, 20))
    np.testing.assert_array_equal(out.factors[:10], old.factors[:10])
    np.testing.assert_array_equal(out.factors[15:20], new.factors[5:10])
    np.testing.assert_array_equal(out.factors[25:], newer.factors[5:])
    np.testing.assert_array_equal(out.factors[10], old.factors[10])  # within the IC segment
    assert_close(out.factors[11], 0.75 * old.factors[11] + 0.25 * new.factors[1], 1e-6)
    assert_close(out.factors[12], 0.5 * old.factors[12] + 0.5 * new.factors[2], 1e-6)
    for restart, blend in ((10, 10), (10, 1)):
        with pytest.raises(ConfigError, match="legal are blend from 2"):
            lfads_torch.stream(lfads, restart=restart, blend=blend)


# ---- state ---------------------------------------------------------------------------------------

MODES: list[dict[str, Any]] = [
    {"causal": False, "n_bins": 7},
    {"causal": True, "n_bins": 30},
    {"causal": True, "n_bins": 30, "ic_enc_seq_len": 4},
]


def decoder(lags: tuple[int, ...] = (0, 1, 2), **facts: Any) -> Decoder:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 4)), rng.normal(size=(80, 2))
    return fit_decoder(x, y, lags=lags, alphas=[1.0], **{"features": "factors", **facts})


@pytest.mark.parametrize("case", MODES)
def test_state_reset_and_streams_side_by_side(case: dict[str, Any]) -> None:
    lfads, x = model(**case), spikes(60, missing=0.1)
    options: dict[str, Any] = {"decoder": decoder()}
    if case["causal"]:
        options |= {"restart": 16, "blend": 9}
    whole = lfads_torch.stream(lfads, **options)
    expected = whole.run(x)
    assert expected.decoded is not None and np.isfinite(expected.decoded[-1]).all()
    for cut in (2, 19, 40):  # within the IC segment, within a blend, after
        first, second = (lfads_torch.stream(lfads, **options) for _ in range(2))
        first.run(x[:cut])
        second.run(x[10:33])
        second.load_state(pickle.loads(pickle.dumps(first.state())))
        rest = second.run(x[cut:])
        assert_same(rest, StreamOutput(*(f[cut:] if f is not None else None for f in expected)))
    whole.reset()
    one, two = [], []
    other = lfads_torch.stream(lfads, **options)
    for a, b in zip(x, x[::-1], strict=True):
        one.append(whole.step(a, copy=True))
        two.append(other.step(b, copy=True))
    np.testing.assert_array_equal([o.rates for o in one], expected.rates)
    np.testing.assert_array_equal([o.decoded for o in one], expected.decoded)
    np.testing.assert_array_equal(
        [o.rates for o in two], lfads_torch.stream(lfads, **options).run(x[::-1]).rates
    )


@pytest.mark.parametrize("case", MODES)
def test_streams_in_one_batch(case: dict[str, Any]) -> None:
    lfads, x = model(**case), np.stack([spikes(12, seed=s) for s in (0, 1)], axis=1)
    both = lfads_torch.stream(lfads, batch=2, decoder=decoder()).run(x)
    assert both.rates.shape == (12, 2, 6)
    for i in (0, 1):
        alone = lfads_torch.stream(lfads, decoder=decoder()).run(x[:, i])
        assert_close(both.rates[:, i], alone.rates)
        assert_close(both.decoded[:, i], alone.decoded)


def test_state_goes_to_another_process(tmp_path: Path) -> None:
    lfads, x = model(causal=True), spikes(20)
    live = lfads_torch.stream(lfads)
    live.run(x[:9])
    files = {"state": live.state(), "x": x[9:], "weights": lfads.state_dict()}
    (tmp_path / "in.pkl").write_bytes(pickle.dumps(files))
    code = (
        "import pickle, sys, lfads_torch; from tests.online.models import model\n"
        "files = pickle.load(open('in.pkl', 'rb')); lfads = model(causal=True)\n"
        "lfads.load_state_dict(files['weights']); live = lfads_torch.stream(lfads)\n"
        "live.load_state(files['state'])\n"
        "pickle.dump(live.run(files['x']).rates, open('out.pkl', 'wb'))"
    )
    root = str(Path(__file__).parents[2])
    env = {"PYTHONPATH": root, "PATH": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)
    rates = pickle.loads((tmp_path / "out.pkl").read_bytes())
    np.testing.assert_array_equal(rates, live.run(x[9:]).rates)


def test_a_state_of_another_stream_is_refused() -> None:
    lfads, x = model(causal=True), spikes(5)
    live = lfads_torch.stream(lfads)
    live.run(x)
    before = live.state()
    for other in (model(gen_dim=8, causal=True), model(5)):
        with pytest.raises(ValueError, match=r"the state's .* this stream's"):
            live.load_state(lfads_torch.stream(other).state())
    with pytest.raises(ValueError, match="the state's t is None"):
        live.load_state({})
    for name, value in live.state().items():
        np.testing.assert_array_equal(value, before[name])


def test_outputs_are_used_again_unless_copied() -> None:
    live, x = lfads_torch.stream(model(causal=True)), spikes(3)
    first, kept = live.step(x[0]), live.step(x[1], copy=True)
    second = live.step(x[2])
    assert first.rates is not second.rates and np.shares_memory(first.rates, second.rates)
    assert not np.shares_memory(kept.rates, second.rates)


@pytest.mark.parametrize(
    ("n", "limit"), [(20_000, 5e6), pytest.param(10**6, 5e6, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow(n: int, limit: float) -> None:
    live, x = lfads_torch.stream(model(causal=True), decoder=decoder()), spikes(100)
    for i in range(2000):
        live.step(x[i % 100])
    process = psutil.Process()
    before = process.memory_info().rss
    for i in range(n):
        live.step(x[i % 100])
    assert process.memory_info().rss - before < limit


# ---- what it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_a_refused_bin_leaves_the_stream_as_it_was(causal: bool) -> None:
    lfads, x = model(5, causal=causal, ext_input_dim=1), spikes(12)
    ext = np.zeros((12, 1))
    expected = lfads_torch.stream(lfads).run(x, ext)
    live, outputs = lfads_torch.stream(lfads), []
    wrong: list[tuple[Any, Any, str]] = [
        (np.zeros(5), None, "counts has 5 channels; session 0 of the model reads 6"),
        (np.zeros((1, 6)), None, r"counts has shape \(1, 6\); legal is \(6,\)"),
        (
            np.array([0, 0, -1, 0, 0, 0]),
            None,
            "channel 2 is -1; legal are .*NaN where it is missing",
        ),
        (np.array([0, np.inf, 0, 0, 0, 0]), None, "channel 1 is inf"),
        (np.array([0, 0, 0, 0.5, 0, 0]), None, "channel 3 is 0.5; .*Poisson"),
        (np.array(list("abcdef")), None, "counts is of type <U1; legal are numbers"),
        (np.zeros(6), np.zeros(2), "ext has 2 channels; the model takes 1"),
        (np.zeros(6), [np.nan], "ext holds NaN"),
    ]
    for t in range(12):
        for counts, inputs, text in wrong:
            with pytest.raises(ValueError, match=text):
                live.step(counts, inputs)
        outputs.append(live.step(x[t], ext[t], copy=True).rates)
    np.testing.assert_array_equal(outputs, expected.rates)


def test_fractions_are_legal_where_the_model_takes_them() -> None:
    lfads = model(5, reconstruction=Gaussian(), readout=torch.nn.Linear(4, 12), causal=True)
    out = lfads_torch.stream(lfads).step(np.array([0.5, -1, 2, 0, 0, 0]))
    assert out.rates.shape == (6,) and np.isfinite(out.rates).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "step"}, "mode is 'step', but the model is not causal: the IC encoder over all"),
        ({"mode": "steps"}, "did you mean step"),
        ({"horizon": 3}, r"horizon is 3; legal are 0 to 2, .*\(recon_seq_len - encod_seq_len\)"),
        ({"session": 1}, "the model has no session 1"),
        ({"session": "day1"}, "the model has no session 'day1'"),
        ({"every": 0}, "every is 0"),
        ({"warmup": "none"}, "warmup is 'none'"),
        ({"restart": 5}, "are for mode='step'"),
        ({"decoder": "nowhere.json"}, "nowhere.json is not a decoder"),
        ({"decoder": decoder((-1, 0))}, "lags -1 to 0"),
        (
            {"decoder": decoder(features="spikes")},
            "fitted to 'spikes'; legal are rates, factors",
        ),
        ({"decoder": decoder(features="gen_states")}, "reads 4 features .*, the model has 5"),
        ({"decoder": decoder(smooth_ms=50.0)}, "smoothed over 50 ms"),
        ({"decoder": decoder(), "every": 2}, "lags .* which need every bin"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Stream(model(5, recon_seq_len=7), **options)


def test_threads_and_modes_of_the_program_stay() -> None:
    live, before = lfads_torch.stream(model(causal=True), threads=2), torch.get_num_threads()
    live.step(np.zeros(6))
    with pytest.raises(ValueError, match="channels"):
        live.step(np.zeros(2))
    assert torch.get_num_threads() == before and torch.is_grad_enabled()
    lfads = model(causal=True).train()
    with pytest.raises(ValueError, match="in training mode"):
        lfads_torch.stream(lfads)
    with pytest.raises(ConfigError, match="every is 2"):
        lfads_torch.stream(lfads.eval(), every=2)


def test_latency_counts_the_calls() -> None:
    """A guard, not a figure: 10 and 50 ms are far above what a step and a window take."""
    for lfads, limit in ((model(causal=True), 10.0), (model(5), 50.0)):
        live = lfads_torch.stream(lfads)
        assert live.latency() == {"calls": 0}
        live.run(spikes(40))
        latency = live.latency()
        assert latency["calls"] == 40 and 0 < latency["p50"] <= latency["p99"] <= latency["max"]
        assert latency["p50"] < limit and math.isfinite(latency["p99.9"])
