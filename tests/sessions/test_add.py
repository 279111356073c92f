"""A session added to a trained model, and the commands for many sessions."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from lfads_torch import cli
from lfads_torch.checkpoint import load_model
from lfads_torch.data import write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.errors import UserError
from lfads_torch.modules.recons import Gaussian, ZeroInflatedGamma
from lfads_torch.post_run.outputs import output_files
from lfads_torch.run_model import run_model
from lfads_torch.sessions.add import add_session
from lfads_torch.sessions.extend import extend_model, start_maps
from tests.small import arrays, datamodule, lfads, write

SMALL: dict[str, Any] = {
    "trainer": {"max_epochs": 2, "enable_progress_bar": False, "accelerator": "cpu"},
    "model": {
        **dict.fromkeys(("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim"), 6),
        **{"fac_dim": 4, "co_dim": 1, "encod_data_dim": 5, "lr_init": 0.01},
    },
    "datamodule": {"batch_size": 16},
    "callbacks": {"raster_plot": None, "trajectory_plot": None},
    "posterior_sampling.fn.num_samples": 2,
}
FILES = ("a", "c")  # the new one, b, comes between them

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sessions of one task, and a run on two of them."""
    place = tmp_path_factory.mktemp("sessions")
    data = lorenz(4, 15, 21, 10, 1.0, seed=1)
    for k, name in enumerate("abc"):
        own = {
            key: value[..., 7 * k : 7 * k + 7 + k % 2 - (k == 2)] if value.ndim == 3 else value
            for key, value in data.items()
            if "latents" not in key and "truth" not in key
        }
        write_session(place / f"{name}.h5", own)
    run_model(
        {**SMALL, "datamodule.datafile_pattern": [str(place / f"{n}.h5") for n in FILES]},
        config_path="multi.yaml",
        run_dir=place / "run",
    )
    return place


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {key: file[key][()] for key in file}


def state_of(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run).state_dict()


def test_only_the_new_maps_are_trained(folder: Path) -> None:
    added = add_session(folder / "run", folder / "b.h5", folder / "plus", epochs=6)
    assert added.name == "b"
    model = load_model(folder / "plus")
    assert model.session_names == ["a", "b", "c"]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{g}.1.{w}" for g in ("readin", "readout") for w in ("weight", "bias")}
    # The weights of all else are the same bits, so the others' outputs are the same.
    old, new = state_of(folder / "run"), model.state_dict()
    for name, value in old.items():
        group, _, rest = name.partition(".")
        if group in ("readin", "readout") and rest.startswith("1."):
            name = f"{group}.2.{rest[2:]}"
        assert torch.equal(value, new[name]), name
    for number, before in ((0, 0), (2, 1)):
        ours = arrays_of(output_files(folder / "plus")[number])
        theirs = arrays_of(output_files(folder / "run")[before])
        for key in ("valid_output_params", "train_factors", "valid_ic_mean", "train_co_means"):
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-4, atol=1e-6)
    for name in FILES:
        assert added.losses[name][1] == pytest.approx(added.losses[name][0], rel=1e-5)
    assert added.losses["b"][1] < added.losses["b"][0]


def test_the_result_is_an_ordinary_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = folder / "ordinary"
    add_session(folder / "run", folder / "b.h5", place, epochs=1)
    moved = folder / "moved"
    shutil.move(place, moved)
    before = state_of(moved)
    run_model({"trainer.max_epochs": 2}, run_dir=moved, resume=True)
    after = state_of(moved)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("readin.1.", "readout.1.")) for name in changed)
    assert cli.main(["sample", str(moved), "--samples", "1"]) == 0
    assert "lfads_output_c.h5" in capsys.readouterr().out


def test_then_all(folder: Path) -> None:
    place = folder / "all"
    added = add_session(folder / "run", folder / "b.h5", place, epochs=1, all_epochs=1)
    base, maps, whole = (load_model(p) for p in (folder / "run", place / "maps", place))
    frozen = {n for n, p in base.named_parameters() if not p.requires_grad}
    assert {n for n, p in whole.named_parameters() if not p.requires_grad} == frozen
    changed = {n for n, v in maps.state_dict().items() if not torch.equal(v, whole.state_dict()[n])}
    assert {"readin.0.weight", "readin.1.weight", "encoder.ic_linear.weight"} <= changed
    assert not changed & frozen
    assert whole.hparams["lr_init"] == pytest.approx(base.hparams["lr_init"] / 10)
    assert not list((place / "maps").glob("lfads_output*.h5"))
    assert added.result.run_dir == place
    # And on from there: what the first run trained is trained, not what the last stage did.
    shutil.copy(folder / "b.h5", folder / "d.h5")
    again = add_session(place / "maps", folder / "d.h5", folder / "more", epochs=1, all_epochs=1)
    assert again.name == "d"
    last = load_model(folder / "more")
    assert last.session_names == ["a", "b", "c", "d"]
    assert {n for n, p in last.named_parameters() if not p.requires_grad} == frozen


def test_what_the_maps_start_from(folder: Path) -> None:
    data = datamodule(folder / "[abc].h5")
    model = extend_model(load_model(folder / "run"), data, "b")

    def averages(number: int) -> np.ndarray:
        read = []
        for batch in data.split_loader("train", session=number):
            read.append(model.readin[number](batch[number][0].encod_data).detach().numpy())
        conditions = arrays_of(folder / f"{'abc'[number]}.h5")["train_cond_idx"]
        return np.stack([np.concatenate(read)[conditions == c].mean(0) for c in range(4)])

    def likeness() -> float:
        return float(np.corrcoef(averages(1).ravel(), averages(0).ravel())[0, 1])

    drawn = model.readin[1].weight.clone()
    start_maps(model, data, "b")
    assert torch.equal(model.readin[1].weight, drawn)  # nothing to start from
    before = likeness()
    start_maps(model, data, "b", "cond_idx")
    assert likeness() > max(0.4, before + 0.2)
    # The read-out, in any case: about the mean of each channel.
    batch = next(iter(data.split_loader("train", session=1)))[1][0]
    means = model({1: batch})[1].output_params.detach().mean(dim=(0, 1))
    np.testing.assert_allclose(means, batch.recon_data.mean(dim=(0, 1)), rtol=0.3)


def test_an_aligned_file_says_where_its_read_in_starts(folder: Path, tmp_path: Path) -> None:
    for name in "abc":
        shutil.copy(folder / f"{name}.h5", tmp_path)
    rng = np.random.default_rng(0)
    weight, offset = rng.normal(size=(8, 5)), rng.normal(size=8)
    with h5py.File(tmp_path / "b.h5", "a") as file:
        file["readin_weight"], file["readout_bias"], file["readin_offset"] = weight, offset, offset
    data = datamodule(str(tmp_path / "*.h5"))
    model = extend_model(load_model(folder / "run"), data, "b")
    start_maps(model, data, "b")
    x = torch.randn(3, 8)
    np.testing.assert_allclose(
        model.readin[1](x).detach(), (x.numpy() - offset) @ weight, rtol=1e-4, atol=1e-4
    )


def test_a_single_session_can_be_extended(folder: Path) -> None:
    """Its read-in is the identity, so that the new session's gives its channels."""
    overrides = {
        **SMALL,
        "model": {k: v for k, v in SMALL["model"].items() if k != "encod_data_dim"},
        "datamodule.datafile_pattern": str(folder / "a.h5"),
    }
    run_model(overrides, run_dir=folder / "single")
    added = add_session(folder / "single", folder / "b.h5", folder / "two", epochs=1)
    model = load_model(folder / "two")
    assert isinstance(model.readin[0], nn.Identity)
    assert tuple(model.readin[1].weight.shape) == (7, 8)
    assert added.losses["a"][1] == pytest.approx(added.losses["a"][0], rel=1e-5)


@pytest.mark.parametrize("recon", [Gaussian(), ZeroInflatedGamma(3, 0.0, 5.0, 5.0, 0.0)])
def test_observation_models_with_parameters_of_their_own(tmp_path: Path, recon: Any) -> None:
    rng = np.random.default_rng(0)
    sessions = [
        {**arrays(12, 6, channels=(n, n), seed=n), "train_which": rng.integers(0, 2, 12)}
        for n in (3, 5, 4)
    ]
    data = datamodule(write(tmp_path, *sessions))
    old = datamodule(str(tmp_path / "day[02].h5"))
    model = extend_model(lfads(old, reconstruction=recon, encod_data_dim=4), data, "day1")
    assert [r.scale.shape[1] for r in model.recon if hasattr(r, "scale")] in ([], [3, 5, 4])
    start_maps(model, data, "day1", "which")
    trials = torch.from_numpy(sessions[1]["train_encod_data"])
    batch = {1: next(iter(data.split_loader("train", session=1)))[1][0]}
    means = model(batch)[1].output_params
    assert means.isfinite().all()
    # About right from the start: the mean of each channel.
    np.testing.assert_allclose(
        means.mean(dim=(0, 1)).detach(), trials.mean(dim=(0, 1)), rtol=0.4, atol=0.1
    )


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    run, new = folder / "run", folder / "b.h5"
    with pytest.raises(UserError, match="holds no run with a checkpoint"):
        add_session(tmp_path, new, tmp_path / "x")
    with pytest.raises(UserError, match=r"epochs \(--epochs\) is 0; legal are whole numbers >= 1"):
        add_session(run, new, tmp_path / "x", epochs=0)
    with pytest.raises(UserError, match="needs a folder of its own"):
        add_session(run, new, run)
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "status.json").write_text("{}")
    with pytest.raises(UserError, match="already holds a run"):
        add_session(run, new, tmp_path / "busy")
    with pytest.raises(UserError, match=r"a.h5 has the name of a session that the model knows"):
        add_session(run, folder / "a.h5", tmp_path / "x")
    with pytest.raises(UserError, match="No data file"):
        add_session(run, folder / "z.h5", tmp_path / "x")
    with pytest.raises(UserError, match=r"sessions c, which the model was trained on, are not"):
        add_session(run, new, tmp_path / "x", data=folder / "a.h5")
    with pytest.raises(UserError, match=r"no 'train_targets'"):
        add_session(run, new, tmp_path / "x", conditions="targets")
    other = write_session(tmp_path / "other.h5", arrays(bins=(6, 6)))
    with pytest.raises(UserError, match="same number of bins"):
        add_session(run, other, tmp_path / "x")
    apart = {**arrays(bins=(10, 10)), "train_cond_idx": np.full(7, 99)}
    with pytest.raises(UserError, match="shares no condition"):
        path = write_session(tmp_path / "apart.h5", apart)
        add_session(run, path, tmp_path / "x", conditions="cond_idx")
    assert not (tmp_path / "x").exists()


# Commands -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the command line changes for its whole process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("warnings.showwarning", lambda *_: None)
    monkeypatch.setattr("warnings.filters", [])


def test_align_train_add(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As one types it: align, train from the alignment, add a session."""
    pattern, aligned = str(folder / "[abc].h5"), tmp_path / "aligned"
    options = ["--components", "4", "--output-dir", str(aligned), "--figure", "new/aligned.png"]
    assert cli.main(["align-init", pattern, *options]) == 0
    text = capsys.readouterr().out
    assert "3 sessions, 4 conditions, 4 components" in text
    assert (tmp_path / "new" / "aligned.png").stat().st_size > 1000
    train = ["train", "--config", "multi", "model=multisession_aligned", "--run-dir", "run"]
    train += [f"datamodule.datafile_pattern=[{aligned}/a.h5,{aligned}/c.h5]"]
    train += [f"model.{n}=6" for n in ("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim")]
    train += ["model.fac_dim=4", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    train += ["callbacks.raster_plot=null", "callbacks.trajectory_plot=null"]
    train += ["posterior_sampling.fn.num_samples=1", "datamodule.batch_size=16"]
    assert cli.main(train) == 0
    frozen = {n for n, p in load_model("run").named_parameters() if not p.requires_grad}
    assert {"readin.0.weight", "readin.1.bias"} <= frozen
    capsys.readouterr()
    add = ["add-session", "run", str(aligned / "b.h5"), "--epochs", "1", "--conditions", "cond_idx"]
    assert cli.main([*add, "--run-dir", "plus", "model.lr_init=0.002"]) == 0
    text = capsys.readouterr().out
    assert "reconstruction loss on validation trials, before and after" in text
    assert "(new)" in text
    assert load_model("plus").hparams["lr_init"] == 0.002
    assert cli.main([*add, "--run-dir", "plus"]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_strict_alignment(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = arrays_of(folder / "a.h5")
    data["train_cond_idx"][0] = 99
    path = write_session(tmp_path / "odd.h5", data)
    assert cli.main(["align-init", str(path), "--components", "2", "--strict"]) == 2
    assert "fewer than 2 training trials" in capsys.readouterr().err
    with h5py.File(path) as file:
        assert "readin_weight" not in file
    assert cli.main(["align-init", str(path), "--components", "2"]) == 0
    assert cli.main(["align-init", str(path), "--components", "2"]) == 2


def test_merging_a_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(2):
        rates = np.random.default_rng(k).random((30, 2))
        windows = {
            "train_output_params": np.stack([rates[:10], rates[6:16]]),
            "valid_output_params": rates[None, 16:26],
            "train_recon_data": np.zeros((2, 10, 2)),
            "valid_recon_data": np.zeros((1, 10, 2)),
            "train_chop_start": np.array([0, 6]),
            "valid_chop_start": np.array([16]),
        }
        write_session(tmp_path / f"lfads_output_sess{k}.h5", windows, {"chop_n_bins": 30})
        assert cli.main(["merge", str(tmp_path)]) == 0
        with h5py.File(tmp_path / f"lfads_merged_sess{k}.h5") as file:
            np.testing.assert_array_equal(file["output_params"][:26], rates[:26].astype(np.float64))
            assert np.isnan(file["output_params"][26:]).all()
            assert file["split"][()].tolist() == [0] * 16 + [1] * 10 + [-1] * 4
    capsys.readouterr()
    assert cli.main(["merge", str(tmp_path), "--output", "x.h5"]) == 2
    assert "holds 2 sessions" in capsys.readouterr().err
    one = str(tmp_path / "lfads_output_sess0.h5")
    assert cli.main(["merge", one, "--output", "x.h5", "--only", "output_params"]) == 0
    with h5py.File(tmp_path / "x.h5") as file:
        assert set(file) == {"output_params", "split"}
    assert cli.main(["merge", str(folder)]) == 2
    assert "holds no output file" in capsys.readouterr().err


def test_trials_are_not_windows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["merge", str(folder / "a.h5")]) == 2
    assert "does not say where its windows lie" in capsys.readouterr().err
