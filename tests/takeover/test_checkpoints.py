"""Checkpoints and run folders that the existing implementation wrote."""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lfads_torch.checkpoint import (
    data_settings,
    find_checkpoint,
    load_model,
    newest_checkpoint,
    read_checkpoint,
)
from lfads_torch.commands import train
from lfads_torch.compat.records import Record, load_pickled
from lfads_torch.compat.training import take_over
from lfads_torch.errors import ConfigError, UserError
from lfads_torch.model import LFADS
from lfads_torch.modules import augmentations, priors, recons
from lfads_torch.post_run.report.record import read_run
from lfads_torch.run_model import run_model
from lfads_torch.runs import build
from lfads_torch.runs.sampling import sample_run
from lfads_torch.tables import read_csv_log
from lfads_torch.tuples import SessionBatch

FILES = Path(__file__).parent / "files"
CHECKPOINTS = FILES / "checkpoints"
ZIG = "ZeroInflatedGamma(26, 0.1, 1.0, 1.0, 1e-3)"
#: What cannot be known from the file.
ANSWERS = {"mse": "MSE", "gaussian": "gaussian", "gamma": "Gamma", "zig_list": ZIG}
INPUTS = ("encod_data", "recon_data", "ext_input", "truth", "sv_mask")


def load_quietly(path: Path, **arguments: Any) -> LFADS:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*(read as Poisson|not used)")
        return load_model(path, **arguments)


def means(name: str) -> dict[int, dict[str, dict[str, np.ndarray]]]:
    """Inputs and outputs of the existing implementation by session."""
    sessions: dict[int, dict[str, dict[str, np.ndarray]]] = {}
    with np.load(FILES / "means" / f"{name}.npz") as file:
        for key in file:
            kind, session, field = key.split("/")
            sessions.setdefault(int(session), {"input": {}, "output": {}})[kind][field] = file[key]
    return sessions


def assert_same_means(model: LFADS, name: str) -> None:
    expected = means(name)
    batch = {
        s: (SessionBatch(*(torch.tensor(fields["input"][key]) for key in INPUTS)), ())
        for s, fields in expected.items()
    }
    with torch.no_grad():
        outputs: Any = model.predict_step(batch, 0, sample_posteriors=False)
    for s, fields in expected.items():
        for key, value in fields["output"].items():
            actual = getattr(outputs[s], key).numpy()
            np.testing.assert_allclose(actual, value, rtol=0, atol=1e-5, err_msg=f"{s} {key}")


def data_file(folder: Path, name: str) -> Path:
    """Data file of the trials of `means`."""
    fields = means(name)[0]["input"]
    with h5py.File(folder / "data.h5", "w") as file:
        for key in ("encod_data", "recon_data"):
            for split in ("train", "valid"):
                file[f"{split}_{key}"] = fields[key]
    return folder / "data.h5"


def revived(value: Any) -> Any:
    """Replace records by objects that pickle as those that they stand for."""
    memo: dict[int, Any] = {}

    def one(value: Any) -> Any:
        if id(value) in memo:
            return memo[id(value)]
        if isinstance(value, Record):
            module, _, name = value.target.rpartition(".")
            cls = getattr(import_module(module), name)
            thing = memo[id(value)] = cls.__new__(cls)
            thing.__dict__.update(one(value.attributes))
            return thing
        if isinstance(value, dict):
            return type(value)((key, one(item)) for key, item in value.items())
        if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
            return type(value)(one(item) for item in value)
        return value

    return one(value)


def variant(path: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Write a real checkpoint with a change."""
    checkpoint = revived(load_pickled(CHECKPOINTS / f"{name}.ckpt"))
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


# ---- the same model ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in CHECKPOINTS.glob("*.ckpt")))
def test_posterior_means_are_the_same(name: str) -> None:
    answer = {"reconstruction": ANSWERS[name]} if name in ANSWERS else {}
    assert_same_means(load_quietly(CHECKPOINTS / f"{name}.ckpt", **answer), name)


PLACES = {
    "run folder": "run_reach",
    "folder of checkpoints": "run_reach/lightning_checkpoints",
    "bare file": "run_reach/lightning_checkpoints/last.ckpt",
    "population": "population",
    "best model": "population/best_model",
    "Tune's folder": "population/best_model/checkpoint_epoch=3-step=8",
    "Tune's file": "population/best_model/checkpoint_epoch=3-step=8/tune.ckpt",
}


@pytest.mark.parametrize("place", PLACES)
def test_every_layout_of_folders(place: str) -> None:
    assert_same_means(load_quietly(FILES / PLACES[place]), "run_reach")


def test_augmentations_come_back_by_their_numbers(tmp_path: Path) -> None:
    model = load_quietly(CHECKPOINTS / "jitter.ckpt")
    jitter, shift, dropout = model.train_aug_stack.transforms
    assert (jitter.width, shift.std, shift.max_shift) == (1, 3.0, 6)
    assert float(dropout.cd_rate) == pytest.approx(0.3)
    assert (dropout.cd_pass_rate, dropout.ic_enc_seq_len) == (0.0, 0)
    assert model.train_aug_stack.batch_order == [0, 1, 2]
    assert model.train_aug_stack.loss_order == [2]
    assert len(model.infer_aug_stack) == 0
    model = load_quietly(CHECKPOINTS / "sbtt.ckpt")
    for stack, order in ((model.train_aug_stack, [1, 0]), (model.infer_aug_stack, [0])):
        assert isinstance(stack.transforms[0], augmentations.SelectiveBackpropThruTime)
        assert stack.loss_order == order


def test_numbers_and_priors_come_back() -> None:
    model = load_quietly(CHECKPOINTS / "sumrecon.ckpt")
    assert (model.hparams.loss_scale, model.hparams.recon_reduce_mean) == (1.0, False)
    assert model.hparams.kl_ic_scale == 1e-4
    assert isinstance(model.ic_prior, priors.MultivariateNormal)
    assert isinstance(model.co_prior, priors.AutoregressiveMultivariateNormal)
    model = load_quietly(CHECKPOINTS / "mvn_co.ckpt")
    assert isinstance(model.co_prior, priors.MultivariateNormal)
    model = load_quietly(CHECKPOINTS / "null.ckpt")
    assert not model.variational
    assert isinstance(model.ic_prior, priors.Null)
    model = load_quietly(CHECKPOINTS / "autonomous_ar.ckpt")
    assert not model.use_con
    assert isinstance(model.co_prior, priors.Null)


def test_a_fixed_read_in_stays_fixed() -> None:
    model = load_quietly(CHECKPOINTS / "reach_days_PCR.ckpt")
    assert [layer.in_features for layer in model.readin] == [16, 20, 13]
    assert not any(p.requires_grad for p in model.readin.parameters())
    assert all(p.requires_grad for p in model.readout.parameters())


def test_numbers_of_other_kinds(tmp_path: Path) -> None:
    """A search may have drawn NumPy's numbers, and states need not be clipped."""

    def change(checkpoint: dict[str, Any]) -> None:
        values = checkpoint["hyper_parameters"]
        values |= {"cell_clip": float("inf"), "lr_init": np.float64(0.25)}
        values |= {"gen_dim": np.int64(32), "dropout_rate": torch.tensor(0.5)}

    model = load_quietly(variant(tmp_path / "x.ckpt", "poisson", change))
    assert model.hparams.cell_clip == float("inf")
    assert (model.hparams.lr_init, model.hparams.dropout_rate) == (0.25, 0.5)


def test_scales_of_a_module_list_are_loaded(tmp_path: Path) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"]["recon.0.scale"] = torch.full((2, 26), 3.0)

    path = variant(tmp_path / "x.ckpt", "zig_list", change)
    with pytest.raises(ConfigError, match="a ZeroInflatedGamma without its numbers"):
        load_model(path)
    model = load_model(path, reconstruction=ZIG)
    assert model.recon[0].scale.unique().tolist() == [3.0]
    assert load_model(CHECKPOINTS / "zig_list.ckpt", reconstruction=ZIG).recon[0].scale[0, 0] == 1


def test_every_augmentation_comes_back(tmp_path: Path) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        stack = checkpoint["hyper_parameters"]["train_aug_stack"]
        dropout = augmentations.CoordinatedDropoutTF2(0.25, 0.5, 2)
        held_out = augmentations.SampleValidation(0.125, 3, recon_reduce_mean=False)
        plain = []
        for made in (dropout, held_out):  # as plain objects, which they were
            other = object.__new__(type(made))
            names = ("sv_rate", "ic_enc_seq_len", "recon_reduce_mean")
            other.__dict__.update({n: getattr(made, n) for n in names if hasattr(made, n)})
            plain.append(other)
        rate = torch.distributions.Bernoulli(0.5)
        plain[0].__dict__.update(cd_rate=0.25, cd_pass_dist=rate, grad_masks=[])
        stack.__dict__.update(batch_transforms=plain, loss_transforms=plain[::-1])

    model = load_quietly(variant(tmp_path / "x.ckpt", "poisson", change))
    dropout, held_out = model.train_aug_stack.transforms
    assert type(dropout) is augmentations.CoordinatedDropoutTF2
    assert (float(dropout.cd_rate), dropout.cd_pass_rate, dropout.ic_enc_seq_len) == (0.25, 0.5, 2)
    assert (held_out.sv_rate, held_out.ic_enc_seq_len) == (0.125, 3)
    assert held_out.recon_reduce_mean is False
    assert model.train_aug_stack.loss_order == [1, 0]


def test_numbers_that_only_the_folder_has(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(FILES / "run_reach", run)
    for path in (run / "lightning_checkpoints").glob("*.ckpt"):
        checkpoint = load_pickled(path)
        torch.save({"state_dict": checkpoint["state_dict"]}, path)
    model = load_quietly(run)
    assert_same_means(model, "run_reach")
    assert float(model.train_aug_stack.transforms[0].cd_rate) == pytest.approx(0.3)
    for path in (run / "hparams.yaml", run / "csv_logs" / "hparams.yaml"):
        path.write_text("a: [")
    with (
        pytest.warns(UserWarning, match="not used: .*hparams.yaml cannot be read"),
        pytest.raises(ConfigError, match="does not say encod_seq_len and recon_seq_len"),
    ):
        load_model(run)
    assert load_quietly(run, encod_seq_len=20, recon_seq_len=24).hparams.gen_dim == 20


# ---- questions and answers ---------------------------------------------------------------------


def test_poisson_is_said() -> None:
    with pytest.warns(UserWarning, match="read as Poisson.*MSE.*--reconstruction.*--config"):
        model = load_model(CHECKPOINTS / "poisson.ckpt")
    assert type(model.recon[0]) is recons.Poisson


@pytest.mark.parametrize(
    ("name", "without", "with_data"),
    [
        ("gaussian", "MSE for 52 channels; Gaussian or Gamma for 26", "Gaussian or Gamma for 26"),
        ("zig_list", "MSE for 78 .* Gamma for 39 .* ZeroInflatedGamma", "ZeroInflatedGamma"),
    ],
)
def test_what_is_asked(tmp_path: Path, name: str, without: str, with_data: str) -> None:
    path = CHECKPOINTS / f"{name}.ckpt"
    with pytest.raises(ConfigError, match=rf"{name}\.ckpt.*{without}.*--config.*--data FILE"):
        load_model(path)
    file = data_file(tmp_path, name)
    with pytest.raises(ConfigError, match=rf"have 26 channels. Legal are {with_data}"):
        load_model(path, data=file)
    with pytest.raises(ConfigError, match=r"MSE has 1 parameter\(s\) per channel.*Legal"):
        load_model(path, data=file, reconstruction="mse")
    with pytest.raises(ConfigError, match="reconstruction 'gauss' is unknown; did you mean Gauss"):
        load_model(path, reconstruction="gauss")


def test_data_that_are_no_counts_are_not_poisson(tmp_path: Path) -> None:
    file = data_file(tmp_path, "mse")
    with h5py.File(file, "r+") as content:
        content["train_recon_data"][:] += 0.5
    with pytest.raises(ConfigError, match=r"no spike counts.*hardly Poisson.*MSE"):
        load_model(CHECKPOINTS / "mse.ckpt", data=file)


def test_output_files_in_the_folder_say_the_number_of_channels(tmp_path: Path) -> None:
    shutil.copy(CHECKPOINTS / "gaussian.ckpt", tmp_path)
    data_file(tmp_path, "gaussian").rename(tmp_path / "lfads_output_maze.h5")
    with pytest.raises(ConfigError, match="have 26 channels"):
        load_model(tmp_path)


RECONS = "lfads_torch.modules.recons"
CONFIGS = {
    "bare list": f"reconstruction:\n- _target_: {RECONS}.Gamma\n",
    "one": f"reconstruction: {{_target_: {RECONS}.Gamma}}\n",
    "module list": "reconstruction: {_target_: torch.nn.ModuleList, modules: "
    f"[{{_target_: {RECONS}.Gamma}}]}}\n",
    "several sessions": f"reconstruction: {{_target_: {RECONS}.MultisessionReconstruction, "
    "datafile_pattern: '${datamodule.datafile_pattern}', "
    f"recon: {{_target_: {RECONS}.Gamma}}}}\n",
    "whole run": f"seed: 0\nmodel:\n  reconstruction: [{{_target_: {RECONS}.Gamma}}]\n",
}


@pytest.mark.parametrize("form", CONFIGS)
def test_a_configuration_answers(tmp_path: Path, form: str) -> None:
    path = tmp_path / "model" / "reach.yaml"
    path.parent.mkdir()
    path.write_text(CONFIGS[form])
    model = load_model(CHECKPOINTS / "gamma.ckpt", config=path)
    assert_same_means(model, "gamma")
    primary = tmp_path / "single.yaml"
    primary.write_text("defaults:\n- model: reach\n- _self_\nseed: null\n")
    primary_of_package = tmp_path / "packaged.yaml"
    primary_of_package.write_text("defaults:\n- model: nlb_mc_rtt\n")
    model = load_quietly(CHECKPOINTS / "poisson.ckpt", config=primary_of_package)
    assert type(model.recon[0]) is recons.Poisson
    if form != "whole run":
        assert type(load_model(CHECKPOINTS / "gamma.ckpt", config=primary).recon[0]) is recons.Gamma


def test_a_configuration_gives_numbers(tmp_path: Path) -> None:
    path = tmp_path / "zig.yaml"
    path.write_text(
        "n: {loc: 1e-1}\nreconstruction:\n"
        f"- {{_target_: {RECONS}.ZeroInflatedGamma, recon_dim: '${{x.y}}', "
        "gamma_loc: '${n.loc}', scale_init: 1.0, scale_prior: 1.0, scale_penalty: 1e-3}\n"
    )
    model = load_model(CHECKPOINTS / "zig_list.ckpt", config=path)
    assert model.recon[0].scale_penalty == 1e-3
    assert_same_means(model, "zig_list")
    path.write_text(f"reconstruction: {{_target_: {RECONS}.ZeroInflatedGamma, gamma_loc: 0.1}}")
    with pytest.raises(ConfigError, match="lacks its scale_init, scale_prior, scale_penalty"):
        load_model(CHECKPOINTS / "zig_list.ckpt", config=path)


def test_a_configuration_beside_the_checkpoint_answers(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "lightning_checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(CHECKPOINTS / "gamma.ckpt", folder / "last.ckpt")
    (tmp_path / "run" / "config.yaml").write_text(CONFIGS["whole run"])
    assert_same_means(load_model(tmp_path / "run"), "gamma")


def test_answers_that_cannot_be_read(tmp_path: Path) -> None:
    path = CHECKPOINTS / "gamma.ckpt"
    with pytest.raises(UserError, match="there is no configuration"):
        load_model(path, config=tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        load_model(path, config=tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match="cannot be read; write a name"):
        load_model(path, reconstruction="gamma(__import__('os').getpid())")


def student(checkpoint: dict[str, Any], group: str, size: int) -> None:
    state = checkpoint["state_dict"]
    for name in [name for name in state if name.startswith(f"{group}.")]:
        del state[name]
    state[f"{group}.loc"] = torch.full((size,), 0.25)
    state[f"{group}.logscale"] = torch.zeros(size)


def test_a_student_prior_needs_its_degrees_of_freedom(tmp_path: Path) -> None:
    path = variant(tmp_path / "ic.ckpt", "poisson", lambda c: student(c, "ic_prior", 16))
    with pytest.raises(ConfigError, match=r"ic_prior is a Student-t.*ic_prior=.*--config"):
        load_quietly(path)
    model = load_quietly(path, ic_prior=priors.MultivariateStudentT(0.0, 1.0, 5.0, 16))
    assert model.ic_prior.loc.unique().tolist() == [0.25]
    (tmp_path / "m.yaml").write_text(
        "ic_prior: {_target_: lfads_torch.modules.priors.MultivariateStudentT, loc: 0, scale: 1, "
        "df: 7, shape: '${model.ic_dim}'}"
    )
    assert load_quietly(path, config=tmp_path / "m.yaml").ic_prior.df == 7

    def of_inputs(checkpoint: dict[str, Any]) -> None:
        student(checkpoint, "co_prior", 2)
        prior = priors.MultivariateStudentT(0.0, 1.0, 9.0, 2)
        checkpoint["hyper_parameters"]["co_prior"] = prior

    assert load_quietly(variant(tmp_path / "co.ckpt", "poisson", of_inputs)).co_prior.df == 9


class Mine(nn.Module):
    """Transform, or prior, of one's own."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        return batch

    def forward(self, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        return mean.new_zeros(())

    def make_posterior(self, mean: torch.Tensor, std: torch.Tensor) -> Any:
        return priors.gaussian_posterior(mean, std)


def test_what_is_of_ones_own_is_asked_for(tmp_path: Path) -> None:
    def put(name: str, value: Any) -> Path:
        def change(checkpoint: dict[str, Any]) -> None:
            target = checkpoint["hyper_parameters"]
            if name.endswith("stack"):
                stack = copy.copy(target[name])
                stack.__dict__["batch_transforms"] = [value, *stack.__dict__["batch_transforms"]]
                value_here = stack
            else:
                value_here = value
            target[name] = value_here

        return variant(tmp_path / f"{name}.ckpt", "poisson", change)

    with pytest.warns(UserWarning, match=r"train_aug_stack holds .*\.Mine, .* left out"):
        model = load_model(put("train_aug_stack", Mine()))
    assert len(model.train_aug_stack) == 1
    path = put("infer_aug_stack", Mine())
    with pytest.raises(ConfigError, match=r"infer_aug_stack holds .*\.Mine.*infer_aug_stack=.*"):
        load_quietly(path)
    stack = augmentations.AugmentationStack([Mine()], [0])
    assert load_quietly(path, infer_aug_stack=stack).infer_aug_stack is stack
    path = put("co_prior", Mine())
    with pytest.raises(ConfigError, match=r"co_prior is .*\.Mine, which is not of this package"):
        load_quietly(path)
    with pytest.raises(ConfigError, match="reconstruction is not of this package"):
        load_quietly(put("reconstruction", Mine()))


def test_the_best_checkpoint_is_the_one_that_lightning_names(tmp_path: Path) -> None:
    """By its file name beside the checkpoint, wherever the folder lies now."""
    folder = tmp_path / "moved" / "lightning_checkpoints"
    folder.mkdir(parents=True)
    for number, name in enumerate(("2-6.ckpt", "3-9.ckpt", "last.ckpt")):
        shutil.copy(FILES / "run_reach" / "lightning_checkpoints" / "last.ckpt", folder / name)
        os.utime(folder / name, (1000 + number, 1000 + number))
    best = find_checkpoint(tmp_path / "moved", best=True)
    assert best is not None
    assert best.name == "2-6.ckpt"
    (folder / "2-6.ckpt").unlink()
    assert find_checkpoint(folder, best=True) == folder / "3-9.ckpt"
    assert find_checkpoint(folder) == folder / "last.ckpt"


# ---- sampling ----------------------------------------------------------------------------------


def test_sampling_new_trials_from_an_old_checkpoint(tmp_path: Path) -> None:
    data = data_file(tmp_path, "gaussian")
    shutil.copy(CHECKPOINTS / "gaussian.ckpt", tmp_path)
    old = tmp_path / "gaussian.ckpt"
    with pytest.raises(ConfigError, match="Gaussian or Gamma for 26 channels"):
        sample_run(old, data=data, num_samples=1)
    (path,) = sample_run(old, data=data, num_samples=1, reconstruction="gaussian")
    with h5py.File(path) as file:
        assert file["valid_output_params"].shape == (4, 30, 26)
    (tmp_path / "m.yaml").write_text(CONFIGS["bare list"].replace("Gamma", "Gaussian"))
    sample_run(old, data=data, num_samples=1, output=tmp_path / "o.h5", config=tmp_path / "m.yaml")
    with pytest.raises(UserError, match="does not say what its data were"):
        sample_run(FILES / "run_reach")


@pytest.mark.filterwarnings("ignore:.*read as Poisson")
def test_sampling_a_run_folder_whose_data_exist(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(FILES / "run_reach", run)
    data = data_file(tmp_path, "run_reach")
    text = (run / "hparams.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("datafile_pattern"))
    text = text.replace(line, f"datafile_pattern: {data}")
    (run / "hparams.yaml").write_text(text[: text.index("attr_keys")] + text[text.index("cell") :])
    (path,) = sample_run(run, num_samples=1, output=tmp_path / "o.h5")
    with h5py.File(path) as file:
        assert file["valid_factors"].shape == (4, 24, 8)


# ---- training on -------------------------------------------------------------------------------


class Spy(pl.Callback):
    """Notes where training starts."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (optimizer,) = trainer.optimizers
        self.at = (trainer.current_epoch, trainer.global_step)
        self.moments = {
            name: copy.deepcopy(optimizer.state[parameter])
            for name, parameter in pl_module.named_parameters()
            if parameter in optimizer.state
        }
        self.smoothed = float(pl_module.valid_recon_smth.smoothed)
        self.learning_rate = optimizer.param_groups[0]["lr"]
        self.scheduler = [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs]
        self.waited = getattr(trainer.early_stopping_callback, "wait_count", None)
        self.best = str(getattr(trainer.checkpoint_callback, "best_model_path", ""))


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy, callbacks = Spy(), build._callbacks
    monkeypatch.setattr(build, "_callbacks", lambda *args: [*callbacks(*args), spy])
    return spy


MODEL = {
    "encod_data_dim": 14,
    "encod_seq_len": 20,
    "recon_seq_len": 24,
    "ic_enc_dim": 12,
    "ic_dim": 12,
    "ci_enc_dim": 10,
    "con_dim": 10,
    "co_dim": 2,
    "gen_dim": 20,
    "fac_dim": 8,
}


def continued(folder: Path, old: Path, name: str = "run_reach", **options: Any) -> Any:
    """Train an epoch more with the packaged configuration and the data of `means`."""
    folder.mkdir(exist_ok=True)
    settings = {
        "model": MODEL,
        "datamodule.datafile_pattern": str(data_file(folder, name)),
        "callbacks.early_stopping.patience": 500,
        "trainer.enable_progress_bar": False,
        "trainer.max_epochs": 4,
        "posterior_sampling.fn.num_samples": 1,
        **options.pop("overrides", {}),
    }
    return run_model(
        settings, checkpoint_dir=old, config_path="single.yaml", run_dir=folder, **options
    )


def stored_moments(path: Path) -> dict[str, Any]:
    """Moments of AdamW by the names of the parameters, as the file has them."""
    checkpoint = load_pickled(path)
    state = checkpoint["optimizer_states"][0]["state"]
    return {name: state[i] for i, name in enumerate(checkpoint["state_dict"]) if i in state}


def same_moments(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, moments in expected.items():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(actual[name][key], moments[key]), (name, key)


IN_TRAINING = [
    "ignore:.*identical to a training trial",
    "ignore:.*logging interval",
    "ignore:.*treespec",
]


def quiet(test: Any) -> Any:
    for text in IN_TRAINING:
        test = pytest.mark.filterwarnings(text)(test)
    return test


@quiet
@pytest.mark.parametrize("place", ["run_reach", "population"])
def test_training_on_in_a_new_folder(tmp_path: Path, spy: Spy, place: str) -> None:
    old = FILES / "run_reach" / "lightning_checkpoints"
    with pytest.warns(UserWarning, match="goes on from .* after epoch 2 and 6 steps; .* fresh: "):
        result = continued(tmp_path / "new", FILES / place)
    assert spy.at == (3, 6)
    same_moments(spy.moments, stored_moments(old / "last.ckpt"))
    if place == "run_reach":
        assert spy.best == str(old / "2-6.ckpt")
        assert spy.smoothed == pytest.approx(1.0178, abs=1e-4)  # from the log
    assert read_checkpoint(result.last_checkpoint)["epoch"] == 3
    assert (old / "2-6.ckpt").is_file()
    same = load_model(result.last_checkpoint)
    assert same.session_names == ["data"]


@quiet
@pytest.mark.filterwarnings("ignore:goes on from")
def test_training_on_in_the_old_folder(tmp_path: Path, spy: Spy) -> None:
    """The folder becomes one of this package."""
    run = tmp_path / "run"
    shutil.copytree(FILES / "run_reach", run)
    continued(run, None, resume=True)  # type: ignore[arg-type]
    assert spy.at == (3, 6)
    assert spy.best == str(run / "lightning_checkpoints" / "2-6.ckpt")
    rows = (run / "csv_logs" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("cur_epoch")
    epochs = [row.split(",")[column] for row in rows[1:]]
    assert [float(epoch) for epoch in epochs if epoch] == [0, 1, 2, 3]
    again = run_model({"trainer.max_epochs": 5}, run_dir=run, resume=True)
    assert spy.at == (4, spy.at[1])
    assert again.best_checkpoint is not None
    load_model(run)


@quiet
def test_without_training_the_newest_weights_count(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    source = FILES / "run_reach" / "lightning_checkpoints"
    for number, name in enumerate(("last.ckpt", "9-9.ckpt")):
        shutil.copy(source / "last.ckpt", folder / name)
        os.utime(folder / name, (1000 + number, 1000 + number))
    assert newest_checkpoint(folder) == folder / "9-9.ckpt"
    result = continued(tmp_path / "new", folder, do_train=False)
    (path,) = result.outputs
    assert path.is_file()
    assert not (tmp_path / "new" / "lightning_checkpoints").exists()


@quiet
@pytest.mark.filterwarnings("ignore:no controller")
@pytest.mark.parametrize("name", ["autonomous_ar", "null"])
def test_training_on_where_priors_are_idle(tmp_path: Path, spy: Spy, name: str) -> None:
    sizes = {"encod_data_dim": 20, "encod_seq_len": 25, "recon_seq_len": 30, "ic_enc_dim": 16}
    sizes |= {"ci_enc_dim": 16, "con_dim": 16, "ic_dim": 16, "gen_dim": 32}
    if name == "autonomous_ar":
        sizes |= dict.fromkeys(("ci_enc_dim", "con_dim", "co_dim"), 0)
    changes: dict[str, Any] = {"model": MODEL | sizes, "trainer.max_epochs": 5}
    if name == "null":
        changes |= {"model.variational": False, "model.ic_prior": None, "model.co_prior": None}
    with pytest.warns(UserWarning, match="fresh: the smoothed validation loss, the choice of the"):
        continued(tmp_path / "new", CHECKPOINTS / f"{name}.ckpt", name, overrides=changes)
    assert spy.at == (4, 8)
    expected = stored_moments(CHECKPOINTS / f"{name}.ckpt")
    kept = {k: v for k, v in expected.items() if v["exp_avg"].numel()}
    same_moments(spy.moments, kept)


@quiet
@pytest.mark.filterwarnings("ignore:goes on from")
def test_scheduler_and_early_stopping_go_on(tmp_path: Path, spy: Spy) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        state = scheduler.state_dict() | {"last_epoch": 4, "num_bad_epochs": 2, "best": 0.5}
        checkpoint["lr_schedulers"] = [state]
        checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] = 0.002
        for key, callback in checkpoint["callbacks"].items():
            if key.startswith("EarlyStopping"):
                callback["wait_count"] = 7

    old = variant(tmp_path / "old.ckpt", "poisson", change)
    sizes = {"encod_data_dim": 20, "encod_seq_len": 25, "recon_seq_len": 30, "ic_enc_dim": 16}
    sizes |= {"ci_enc_dim": 16, "con_dim": 16, "ic_dim": 16, "gen_dim": 32}
    changes = {"model": MODEL | sizes | {"lr_scheduler": True}, "trainer.max_epochs": 5}
    continued(tmp_path / "new", old, "poisson", overrides=changes)
    assert spy.at == (4, 8)
    assert spy.learning_rate == 0.002
    assert spy.scheduler[0]["num_bad_epochs"] == 2
    assert spy.waited == 7


def test_the_last_step_of_a_scheduler_is_made_up_for(tmp_path: Path) -> None:
    """Its state and its learning rate come from the checkpoint, its last step is made up for."""

    def change(checkpoint: dict[str, Any]) -> None:
        parameter = nn.Parameter(torch.zeros(1))
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.AdamW([parameter]))
        state = scheduler.state_dict() | {"last_epoch": 3, "num_bad_epochs": 2, "best": 0.5}
        checkpoint["lr_schedulers"] = [state]
        checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] = 0.125

    folder = tmp_path / "lightning_checkpoints"
    folder.mkdir()
    path = variant(folder / "last.ckpt", "poisson", change)
    log = tmp_path / "csv_logs" / "metrics.csv"
    log.parent.mkdir()
    log.write_text("epoch,step,valid/recon_smth\n2,5,1.5\n3,7,1.25\n")
    model = load_quietly(path, lr_scheduler=True)
    checkpoint = read_checkpoint(path)
    text = take_over(checkpoint, model, path)
    assert "the optimiser's moments" not in text
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.125
    assert checkpoint["lfads_run"]["metrics"] == {"valid/recon_smth": 1.25}
    assert float(model.valid_recon_smth.smoothed) == 1.25
    constant = load_quietly(path, lr_init=0.25)
    checkpoint = read_checkpoint(path)
    take_over(checkpoint, constant, path)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.25


def test_the_command_asks_for_the_configuration_of_an_old_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(FILES / "run_reach", run)
    with pytest.raises(UserError, match=r"without config\.yaml.*--config configs/single\.yaml"):
        train.run(train_options(str(run)))
    (run / "config.yaml").write_text("seed: 0")
    with pytest.raises(UserError, match="--resume goes on"):
        train.run(train_options(str(run), "--config", "single"))


def train_options(run: str, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return parser.parse_args(["--resume", run, *more])


def test_data_that_the_checkpoint_itself_names(tmp_path: Path) -> None:
    data = data_file(tmp_path, "gaussian")

    def change(checkpoint: dict[str, Any]) -> None:
        named = {"datafile_pattern": str(data), "batch_size": 3, "other": 1}
        checkpoint["datamodule_hyper_parameters"] = named

    path = variant(tmp_path / "x.ckpt", "gaussian", change)
    assert data_settings(path) == {"datafile_pattern": str(data), "batch_size": 3}
    with pytest.raises(ConfigError, match="the data have 26 channels"):
        load_model(path)


# ---- nothing is executed -----------------------------------------------------------------------


class Exploit:
    """Runs a command wherever it is unpickled in the usual way."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


EVIL: dict[str, Callable[[dict[str, Any], Exploit], Any]] = {
    "top": lambda c, evil: c.update(evil=evil),
    "numbers": lambda c, evil: c["hyper_parameters"].update(lr_init=evil, datafile_pattern=evil),
    "weights": lambda c, evil: c["state_dict"].update({"x": evil}),
    "prior": lambda c, evil: c["hyper_parameters"].update(co_prior=evil),
    "stack": lambda c, evil: c["hyper_parameters"].update(train_aug_stack=evil),
    "transform": lambda c, evil: c["hyper_parameters"]["train_aug_stack"].__dict__.update(
        batch_transforms=[evil]
    ),
    "reconstruction": lambda c, evil: c["hyper_parameters"].update(reconstruction=evil),
    "callbacks": lambda c, evil: c["callbacks"].update(evil=evil),
    "optimizer": lambda c, evil: c["optimizer_states"][0].update(evil=evil),
    "loops": lambda c, evil: c["loops"].update(evil=evil),
}


@pytest.mark.parametrize("place", EVIL)
@pytest.mark.filterwarnings("ignore:.*(read as Poisson|left out)")
def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, place: str) -> None:
    marker = tmp_path / "executed"
    evil = Exploit(f"touch {marker}")
    path = variant(tmp_path / "x.ckpt", "poisson", lambda c: EVIL[place](c, evil))
    with suppress(UserError):  # what it stands for is asked for
        load_model(path)
    read_checkpoint(path)
    assert not marker.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.load(path, weights_only=False)
    assert marker.exists()  # the file does execute where it is opened without care


@pytest.mark.parametrize("file", ["hparams.yaml", "csv_logs/hparams.yaml", "config.yaml"])
@pytest.mark.filterwarnings("ignore:.*read as Poisson")
def test_nothing_in_yaml_is_executed(tmp_path: Path, file: str) -> None:
    marker = tmp_path / "executed"
    shutil.copytree(FILES / "run_reach", tmp_path / "run")
    for tag in ("object/apply:os.system", "object/new:os.system"):
        text = f"gen_dim: !!python/{tag} ['touch {marker}']\nname: !!python/name:os.system ''\n"
        text += "module: !!python/module:antigravity ''\n"
        text += f"datafile_pattern: !!python/{tag} ['touch {marker}']\n"
        (tmp_path / "run" / file).write_text(text)
        load_model(tmp_path / "run")
        load_model(CHECKPOINTS / "poisson.ckpt", config=tmp_path / "run" / file)
    assert not marker.exists()


def test_records_hold_names_and_numbers_alone() -> None:
    stored: Mapping[str, Any] = load_pickled(CHECKPOINTS / "poisson.ckpt")["hyper_parameters"]
    stack = stored["train_aug_stack"]
    assert isinstance(stack, Record)
    assert stack.target == "lfads_torch.modules.augmentations.AugmentationStack"
    dropout = stack.attributes["batch_transforms"][0]
    assert dropout is stack.attributes["loss_transforms"][0]
    assert dropout.attributes["cd_rate"] == 0.3
    assert dropout.attributes["cd_input_dist"].is_known


# ---- other commands ----------------------------------------------------------------------------


def test_the_log_of_a_search_goes_over_its_generations(tmp_path: Path) -> None:
    shutil.copytree(FILES / "population", tmp_path / "population")
    record = read_run(tmp_path / "population")
    assert record.place.name == "best_model"
    epochs, values = record.log["valid/recon_smth"]
    assert epochs.tolist() == [0, 1, 2, 3]
    assert values[-1] == pytest.approx(0.9444, abs=1e-4)
    # Another run's log that is older and as long does not count.
    newest = tmp_path / "population" / "best_model" / "csv_logs" / "version_2"
    newest.mkdir()
    (newest / "metrics.csv").write_text("epoch,step,valid/recon_smth\n0,1,2.5\n1,2,2.0\n")
    assert read_csv_log(newest.parents[1])["valid/recon_smth"][1].tolist() == [2.5, 2.0]


def test_a_report_of_an_old_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(FILES / "run_reach", run)
    record = read_run(run)
    assert record.log["valid/recon_smth"][0].tolist() == [0, 1, 2]
    with pytest.warns(UserWarning, match="read as Poisson"):
        assert record.model is not None
