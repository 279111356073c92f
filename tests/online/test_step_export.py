"""Causal models as files: one bin after another, with the states carried, equals the stream."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from lfads_torch.cli import main
from lfads_torch.errors import ConfigError, UserError
from lfads_torch.metrics.decoder import Decoder
from lfads_torch.model import LFADS
from lfads_torch.modules import recons
from lfads_torch.modules.readin_readout import FanInLinear
from lfads_torch.online import export
from lfads_torch.online.export import export_model, graph_of
from lfads_torch.online.numpy_runner import Runner
from lfads_torch.online.session import TrainedSession
from lfads_torch.online.stream import Stream
from tests.online.models import model, spikes
from tests.small import trainer

pytestmark = pytest.mark.filterwarnings("ignore:no controller")

N_BINS = 60
NAMES = ("rates", "factors", "inputs", "decoded", "behavior")


def decoder(lags: tuple[int, ...], features: str, size: int) -> Decoder:
    rng = np.random.default_rng(1)
    return Decoder(
        lags=lags,
        feature_mean=rng.normal(size=size),
        feature_scale=rng.uniform(0.5, 1, size),
        weight=rng.normal(size=(len(lags), size, 2)),
        bias=rng.normal(size=2),
        alpha=np.ones(2),
        features=features,
        target_names=["x", "y"],
    )


def session(lfads: LFADS) -> TrainedSession:
    names = tuple(map(str, range(6)))
    return TrainedSession(lfads, 0, "day0", Path("run"), Path(__file__), 20.0, names, None)


def saved(lfads: LFADS, folder: Path) -> Path:
    """Checkpoint of a model as it is."""
    run = trainer(folder)
    run.strategy.connect(lfads)
    run.save_checkpoint(folder / "last.ckpt")
    return folder


def streamed(lfads: LFADS, x: Any, ext: Any, decoded_by: Any) -> dict[str, Any]:
    output = Stream(lfads, "step", decoder=decoded_by).run(x, ext)
    return {k: getattr(output, k) for k in NAMES}


def same(actual: dict[str, Any], expected: dict[str, Any], first: int = 0) -> None:
    for name in NAMES:
        if name in actual and np.size(actual[name]):
            np.testing.assert_allclose(
                actual[name][-N_BINS:], expected[name][-N_BINS:], rtol=1e-5, atol=1e-5, err_msg=name
            )


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "learned initial condition": ({"ci_lag": 1, "behavior_dim": 2, "behavior_from": "rates"}, None),
    "first bins, lag, inputs": (
        {"ic_enc_seq_len": 5, "ci_lag": 2, "ext_input_dim": 2, "behavior_dim": 2},
        decoder((0, 1, 3), "factors", 4),
    ),
    "no controller": (
        {"ic_enc_seq_len": 4, "co_dim": 0, "behavior_dim": 2, "behavior_from": "factors"},
        decoder((0,), "gen_states", 5),
    ),
    "gaussian": (
        {"ci_lag": 0, "reconstruction": recons.Gaussian(), "cell_clip": math.inf},
        decoder((2,), "rates", 6),
    ),
    "gamma": (
        {
            "ci_lag": 3,
            "reconstruction": recons.Gamma(),
            "behavior_dim": 2,
            "behavior_from": "rates",
        },
        decoder((1, 2), "inputs", 2),
    ),
    "zero-inflated gamma": (
        {"reconstruction": recons.ZeroInflatedGamma(6, 0.1, 1.0, 1.0, 0.1)},
        None,
    ),
    "linear read-in": (
        {"encod_data_dim": 4, "readin": FanInLinear(6, 4), "readout": FanInLinear(4, 6)},
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_numpy_equals_the_stream(case: str) -> None:
    arguments, decoded_by = CASES[case]
    lfads = model(30, causal=True, **arguments)
    graph = graph_of(session(lfads), "step", decoded_by, force=False)
    x = spikes(N_BINS + 10, missing=0.1) + (0.1 if case == "gamma" else 0)
    ext = None
    if lfads.hparams.ext_input_dim:
        ext = np.random.default_rng(2).normal(size=(len(x), 2)).astype(np.float32)
    runner = Runner(io.BytesIO(export.as_weights(graph, export.properties_of(graph))))
    outputs = [
        {k: v.copy() for k, v in runner.step(c, None if ext is None else ext[t]).items()}
        for t, c in enumerate(x)
    ]
    actual = {k: np.stack([output[k] for output in outputs]) for k in outputs[0]}
    same(actual, streamed(lfads, x, ext, decoded_by))
    first = lfads.hparams.ic_enc_seq_len
    assert np.isnan(actual["rates"][: max(first - 1, 0)]).all()
    assert np.isfinite(actual["rates"][max(first - 1, 0) :]).all()


def rich(**more: Any) -> tuple[LFADS, Decoder, Any, Any]:
    arguments, decoded_by = CASES["first bins, lag, inputs"]
    lfads = model(30, causal=True, **{**arguments, **more})
    x = spikes(1000, missing=0.1)
    return lfads, decoded_by, x, np.random.default_rng(2).normal(size=(1000, 2)).astype(np.float32)


def carried(graph: Any, functions: list[export.Function], x: Any, ext: Any) -> dict[str, Any]:
    """Outputs of the bins from S - 1 on, of two rows of which the second is the first."""
    twice = {"x": np.stack([x, x], 1), "ext": np.stack([ext, ext], 1)}
    first = graph.step.first_bins
    outputs = [functions[1]({k: v[:first].swapaxes(0, 1) for k, v in twice.items()})]
    for t in range(first, len(x)):
        states = export.states_after(outputs[-1])
        outputs.append(functions[0]({**{k: v[t] for k, v in twice.items()}, **states}))
    return {k: np.stack([output[k][1] for output in outputs]) for k in outputs[0]}


@pytest.mark.parametrize(
    "ending",
    ["npz", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pt2", "onnx"))],
)
def test_a_thousand_bins_with_the_states_carried(ending: str, tmp_path: Path) -> None:
    lfads, decoded_by, x, ext = rich()
    decoded_by.save(tmp_path / "decoder.json")
    file = tmp_path / f"m.{ending}"
    run = saved(lfads, tmp_path)
    exported = export_model(run, file, decoder=tmp_path / "decoder.json", bin_ms=20)
    assert exported.difference < 1e-5 and exported.paths[0] == file
    expected = streamed(lfads, x, ext, decoded_by)
    if ending == "npz":
        assert exported.paths[1].name == "numpy_runner.py"
        np.savez(tmp_path / "x.npz", x=x, ext=ext)
        code = (
            "import sys\n"
            "sys.modules.update(torch=None, lfads_torch=None)\n"
            "import numpy as np\n"
            "from numpy_runner import Runner\n"
            "runner, data = Runner('m.npz'), np.load('x.npz')\n"
            "outputs = [\n"
            "    {k: v.copy() for k, v in runner.step(*bins).items()}\n"
            "    for bins in zip(data['x'], data['ext'])\n"
            "]\n"
            "np.savez('out.npz', **{k: np.stack([o[k] for o in outputs]) for k in outputs[0]})\n"
        )
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        actual = dict(np.load(tmp_path / "out.npz"))
    else:
        assert exported.paths[1].name == f"m_start.{ending}"
        reader = {"pt2": export.program_function, "onnx": export.onnx_function}[ending]
        functions = [reader(path.read_bytes()) for path in exported.paths]
        graph = graph_of(session(lfads), "step", decoded_by, force=False)
        actual = carried(graph, functions, x, ext)
    for name in NAMES:
        n = min(len(actual[name]), len(expected[name]))
        np.testing.assert_allclose(actual[name][-n:], expected[name][-n:], rtol=1e-5, atol=1e-5)
    assert exported.properties["decoder"]["targets"] == ["x", "y"]
    assert exported.properties["mode"] == "step" and exported.properties["bin_ms"] == 20
    assert exported.properties["inputs"]["state_ci"] == ["B", 3, 3]


@pytest.mark.parametrize("ending", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_initial_states_are_beside_the_graph(ending: str, tmp_path: Path) -> None:
    lfads = model(30, causal=True, ci_lag=1)
    (file,) = export_model(saved(lfads, tmp_path), tmp_path / f"m.{ending}").paths
    if ending == "onnx":
        texts = {p.key: p.value for p in onnx.load(file).metadata_props}
        function = export.onnx_function(file.read_bytes())
    else:
        names = ("ci", "con", "gen", "fac")
        texts = {f"initial/state_{name}": "" for name in names}
        torch.export.load(file, extra_files=texts)
        function = export.program_function(file.read_bytes())
    states = {
        k.removeprefix("initial/"): np.array(json.loads(v), np.float32)
        for k, v in texts.items()
        if k.startswith("initial/")
    }
    x, outputs = spikes(20), []
    for c in x:
        outputs.append(function({"x": c[None], **states}))
        states = export.states_after(outputs[-1])
    rates = np.concatenate([output["rates"] for output in outputs])
    expected = streamed(lfads, x, None, None)["rates"]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-5)


def test_state_and_reset_of_the_runner() -> None:
    lfads, decoded_by, x, ext = rich()
    graph = graph_of(session(lfads), "step", decoded_by, force=False)
    content = export.as_weights(graph, export.properties_of(graph))
    one, other = Runner(io.BytesIO(content)), Runner(io.BytesIO(content))
    for at in (3, 30):  # within the first bins, and after them
        one.reset()
        for t in range(at):
            one.step(x[t], ext[t])
        other.load_state(one.state())
        for t in range(at, at + 10):
            a, b = one.step(x[t], ext[t]), other.step(x[t], ext[t])
            assert all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)
    fresh = Runner(io.BytesIO(content))
    one.reset()
    for t in range(10):
        a, b = one.step(x[t], ext[t]), fresh.step(x[t], ext[t])
        assert all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)


def test_what_the_runner_refuses_leaves_it_as_it_was() -> None:
    lfads = model(30, causal=True)
    graph = graph_of(session(lfads), "step", None, force=False)
    content = io.BytesIO(export.as_weights(graph, export.properties_of(graph)))
    runner, x = Runner(content), spikes(3)
    runner.step(x[0])
    before = runner.state()
    for bad, message in (
        (x[0][:5], r"counts of shape \(5,\).*takes \(6,\)"),
        (np.r_[x[0][:5], -1], "channel 5 is -1.0; legal: whole numbers >= 0"),
        (np.r_[x[0][:5], np.inf], "channel 5 is inf"),
    ):
        with pytest.raises(ValueError, match=message):
            runner.step(bad)
    with pytest.raises(ValueError, match="external inputs"):
        runner.step(x[0], np.zeros(2))
    after = runner.state()
    assert all(np.array_equal(before[k], after[k]) for k in before)


def test_the_runner_is_short_and_fast() -> None:
    """A guard far above the figures of benchmarks/online.py: machines that test are busy."""
    text = Path(export.numpy_runner.__file__).read_text(encoding="utf-8")
    assert text.count("\n") <= 120
    sizes = dict.fromkeys(("ic_enc_dim", "ci_enc_dim", "con_dim", "gen_dim", "ic_dim"), 100)
    lfads = model(30, n_channels=100, causal=True, **sizes)
    trained = TrainedSession(lfads, 0, "", Path(), Path(__file__), None, ("",) * 100, None)
    graph = graph_of(trained, "step", None, force=False)
    runner = Runner(io.BytesIO(export.as_weights(graph, export.properties_of(graph))))
    times = []
    for counts in spikes(300, 100):
        began = time.perf_counter()
        runner.step(counts)
        times.append(time.perf_counter() - began)
    assert np.median(times) < 2e-3


class Own(nn.Module):
    """Read-in of one's own."""

    lookahead = 0

    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


def test_what_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = saved(model(30), tmp_path)
    assert main(["export", str(run), str(tmp_path / "m.npz")]) == 2
    said = capsys.readouterr().err
    assert "the model is not causal" in said and "write .onnx or .pt2" in said
    assert "window" not in said  # which a .npz refuses
    assert main(["export", str(run), str(tmp_path / "m.onnx"), "--mode", "step"]) == 2
    assert "the model is not causal" in capsys.readouterr().err
    assert main(["export", str(run), str(tmp_path / "m.npz"), "--mode", "window"]) == 2
    assert "one bin at a time" in capsys.readouterr().err
    own = graph_of(session(model(30, causal=True, readin=Own())), "step", None, force=False)
    with pytest.raises(ConfigError, match=r"readin is Own, which \.npz cannot hold"):
        export.as_weights(own, export.properties_of(own))
    lfads = session(model(30, causal=True))
    for bad, message in (
        (decoder((0,), "factors", 3), "reads 3 features .* the model has 4"),
        (decoder((0,), "speed", 4), "was fitted to 'speed'"),
        (decoder((-1, 0), "factors", 4), "lags -1 to 0"),
    ):
        with pytest.raises(UserError, match=message):
            graph_of(lfads, "step", bad, force=False)


def test_a_window_decodes_from_its_first_full_bin() -> None:
    by = decoder((0, 2), "factors", 4)
    lfads = model(8)
    graph = graph_of(session(lfads), "auto", by, force=False)
    with torch.no_grad():
        outputs = graph(torch.from_numpy(spikes(8, missing=0.2))[None])
    expected = by.predict(outputs["factors"].numpy())
    np.testing.assert_allclose(outputs["decoded"], expected, rtol=1e-5, atol=1e-5)
    assert np.isnan(expected[0, :2]).all() and np.isfinite(expected[0, 2:]).all()
