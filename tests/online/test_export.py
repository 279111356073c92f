"""Trained models as files: what they hold equals the model, and needs nothing of this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from lfads_torch.checkpoint import load_model
from lfads_torch.cli import main
from lfads_torch.errors import ConfigError, UserError
from lfads_torch.model import LFADS
from lfads_torch.modules import recons
from lfads_torch.modules.readin_readout import FanInLinear
from lfads_torch.online import export
from lfads_torch.online.export import export_model, onnx_function, program_function
from lfads_torch.online.session import open_session
from lfads_torch.tuples import SessionBatch
from tests.small import arrays, datamodule, lfads, trainer, write


class Root(nn.Module):
    """Read-in of one's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


class Deciding(nn.Module):
    """Read-in of one's own that looks at the numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def trained(folder: Path, *sessions: dict[str, Any], **arguments: Any) -> Path:
    """Run folder with the checkpoint of a model whose weights are all far from where they start."""
    keys = ["behavior"] if "train_behavior" in sessions[0] else []
    data = datamodule(write(folder, *sessions), batch_size=4, batch_keys=keys)
    model = lfads(data, **arguments)
    run = trainer(folder)
    run.fit(model, data)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    run.save_checkpoint(folder / "last.ckpt")
    return folder


def offline(model: LFADS, number: int, x: np.ndarray, ext: np.ndarray | None = None) -> Any:
    """Outputs of the model itself for windows, with what is missing as in training."""
    data = torch.from_numpy(x)
    n_bins = model.hparams["recon_seq_len"]
    none = torch.zeros(len(x), 0, 0)
    batch = SessionBatch(
        encod_data=data,
        recon_data=data,
        ext_input=torch.zeros(len(x), n_bins, 0) if ext is None else torch.from_numpy(ext),
        truth=none,
        sv_mask=none.bool(),
        lengths=torch.full((len(x),), n_bins),
    )
    with torch.no_grad():
        return model({number: batch})[number]


def counts(*shape: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).poisson(1.0, shape).astype(np.float32)
    x[::2, ..., 1] = np.nan
    return x


FIELDS = {"rates": "output_params", "factors": "factors", "inputs": "co_means"}
FIELDS |= {"behavior": "behavior"}


def same(actual: Any, expected: Any) -> None:
    for name, value in actual.items():
        truth = getattr(expected, FIELDS[name])
        np.testing.assert_allclose(value, truth, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions of unlike channels, external inputs, bins beyond the window."""
    torch.manual_seed(0)
    shape: Any = {"bins": (4, 5), "ext": 2}
    maps: Any = {
        "readin": [FanInLinear(3, 4), FanInLinear(5, 4)],
        "readout": [FanInLinear(4, 3), FanInLinear(4, 5)],
    }
    rng, behavior = np.random.default_rng(0), {}
    for split, n in (("train", 7), ("valid", 5)):
        behavior[f"{split}_behavior"] = rng.normal(3, 2, (n, 4, 2)).astype(np.float32)
    return trained(
        tmp_path_factory.mktemp("rich"),
        {**arrays(**shape, channels=(3, 3)), **behavior},
        {**arrays(**shape, channels=(5, 5)), **behavior},
        behavior_dim=None,
        encod_data_dim=4,
        ic_enc_seq_len=2,
        ci_lag=1,
        **maps,
    )


@pytest.mark.slow
def test_a_window_in_onnx_equals_the_model(rich: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    exported = export_model(rich, file, session="day1", bin_ms=10)
    assert exported.paths == (file,) and exported.difference < 1e-5
    function, model = onnx_function(file.read_bytes()), load_model(rich)
    for n_rows in (1, 3):
        ext = np.random.default_rng(1).normal(size=(n_rows, 5, 2)).astype(np.float32)
        x = counts(n_rows, 4, 5)
        same(function({"x": x, "ext": ext}), offline(model, 1, x, ext))
    graph = onnx.load(file)
    assert {"MatMul", "Sigmoid", "Tanh", "Clip", "IsNaN"} <= {n.op_type for n in graph.graph.node}
    assert not {"GRU", "Loop", "Scan"} & {n.op_type for n in graph.graph.node}
    assert graph.opset_import[0].version >= 17
    meta = json.loads({p.key: p.value for p in graph.metadata_props}["meta"])
    assert meta["session"] == "day1" and meta["bin_ms"] == 10 and meta["mode"] == "window"
    assert meta["inputs"] == {"x": ["B", 4, 5], "ext": ["B", 5, 2]}
    assert meta["outputs"]["rates"] == ["B", 5, 5]
    assert meta["outputs"]["behavior"] == ["B", 5, 2]
    assert str(rich) not in graph.SerializeToString().decode("latin1")


@pytest.mark.slow
def test_a_window_in_torch_export_needs_nothing_of_this_package(rich: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.pt2"
    export_model(rich, file, session="0")
    x, ext = counts(2, 4, 3), np.ones((2, 5, 2), np.float32)
    np.savez(tmp_path / "x.npz", x=x, ext=ext)
    code = (
        "import sys, json, numpy as np\n"
        "sys.modules['lfads_torch'] = None\n"
        "import torch\n"
        "extra = {'meta': ''}\n"
        "module = torch.export.load('m.pt2', extra_files=extra).module()\n"
        "assert json.loads(extra['meta'])['session'] == 'day0'\n"
        "x = np.load('x.npz')\n"
        "out = module(**{k: torch.from_numpy(x[k]) for k in x})\n"
        "np.savez('out.npz', **{k: v.detach().numpy() for k, v in out.items()})\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    same(dict(np.load(tmp_path / "out.npz")), offline(load_model(rich), 0, x, ext))


def test_a_program_with_the_operators_of_this_package(tmp_path: Path) -> None:
    run = trained(tmp_path, arrays(bins=(3, 3)))
    file = tmp_path / "m.pt2"
    assert main(["export", str(run), "-o", str(file), "--native"]) == 0
    x = counts(3, 3, 3)
    same(program_function(file.read_bytes())({"x": x}), offline(load_model(run), 0, x))
    program = torch.export.load(file)
    assert any("lfads" in str(node.target) for node in program.graph.nodes)
    with pytest.raises(UserError, match="--native"):
        export_model(run, tmp_path / "m.onnx", native=True)


PARTS: dict[str, dict[str, Any]] = {
    "poisson": {"reconstruction": recons.Poisson()},
    "gaussian": {"reconstruction": recons.Gaussian()},
    "gamma": {"reconstruction": recons.Gamma()},
    "zero-inflated gamma": {
        "reconstruction": recons.ZeroInflatedGamma(3, 0.05, 1.0, 1.0, 0.1),
        "co_dim": 0,
    },
    "your own": {"readin": Root(), "co_dim": 0},
}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("is_traced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_observation_model_and_your_own_parts(
    parts: str, is_traced: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    session = arrays(bins=(3, 3))
    if "gamma" in parts:
        session = {key: np.asarray(x) + 0.1 for key, x in session.items()}
    run = trained(tmp_path, session, **PARTS[parts])
    x = counts(2, 3, 3)
    if is_traced:
        (file,) = export_model(run, tmp_path / "m.pt2").paths
        outputs = program_function(file.read_bytes())({"x": x})
    else:
        with torch.no_grad():
            outputs = export.WindowGraph(open_session(run))(torch.from_numpy(x))
    assert ("inputs" in outputs) == (PARTS[parts].get("co_dim") != 0)
    same(outputs, offline(load_model(run), 0, x))


def test_a_file_that_is_not_exact_is_not_written(
    rich: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(content: bytes) -> Any:
        graph = export.WindowGraph(open_session(rich, 0))

        def run(inputs: Any) -> Any:
            with torch.no_grad():
                outputs = graph(**{k: torch.from_numpy(v) for k, v in inputs.items()})
            return {k: v.numpy() + 2e-4 for k, v in outputs.items()}

        return run

    monkeypatch.setattr(export, "as_program", lambda *_: b"")
    monkeypatch.setattr(export, "program_function", wrong)
    file = tmp_path / "m.pt2"
    assert main(["export", str(rich), str(file), "--session", "0"]) == 1
    assert "0.0002" in capsys.readouterr().out and not file.exists()


def test_what_is_refused(rich: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*words: str) -> str:
        assert main(["export", str(rich), *words]) == 2
        return capsys.readouterr().err

    assert "2 sessions: day0, day1; choose one (--session" in error(f"{tmp_path}/m.pt2")
    assert "did you mean day1" in error(f"{tmp_path}/m.pt2", "--session", "dya1")
    (tmp_path / "old.pt2").write_bytes(b"kept")
    assert "--overwrite" in error(f"{tmp_path}/old.pt2", "--session", "0")
    assert (tmp_path / "old.pt2").read_bytes() == b"kept"
    assert "'.txt'; legal: .npz, .nwb, .onnx, .pt2" in error(f"{tmp_path}/m.txt")
    assert "--source is for .nwb" in error(f"{tmp_path}/m.onnx", "--source", "a.nwb")
    assert "--session is for .onnx, .pt2 and .npz" in error("--session", "0")


def test_long_windows_need_force(rich: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(export, "MOST_BINS", 4)
    with pytest.raises(UserError, match=r"windows of 5 bins.*450 nodes.*--force"):
        export_model(rich, tmp_path / "m.pt2", session=0)


def test_the_extra_is_named(rich: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime is not installed.*lfads-torch\[export\]"):
        export_model(rich, tmp_path / "m.onnx", session=0)


def test_another_bin_width_is_refused(tmp_path: Path) -> None:
    from lfads_torch.data import write_session

    write_session(tmp_path / "day0.h5", arrays(bins=(3, 3)), {"bin_ms": 5.0})
    data = datamodule(tmp_path / "day0.h5", batch_size=4)
    run = trainer(tmp_path)
    run.fit(lfads(data), data)
    run.save_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "config.yaml").write_text(
        f"datamodule:\n  datafile_pattern: {data.sessions[0].path}\n"
    )
    with pytest.raises(UserError, match=r"bin_ms is 20, but .* bins of 5 ms"):
        export_model(tmp_path, tmp_path / "m.pt2", bin_ms=20)
    assert open_session(tmp_path).bin_ms == open_session(tmp_path, bin_ms=5).bin_ms == 5


def test_a_part_that_decides_by_numbers_is_named(tmp_path: Path) -> None:
    run = trained(tmp_path, arrays(bins=(3, 3)), readin=Deciding())
    with pytest.raises(ConfigError, match=r"cannot be traced.*\(Deciding\)"):
        export_model(run, tmp_path / "m.pt2")
