"""LFADS as a whole: sizes read from data, what contradicts them, every kind of model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lfads_torch.errors import ConfigError, DataError, UserError
from lfads_torch.model import LFADS
from lfads_torch.modules import priors, recons
from lfads_torch.modules.augmentations import (
    AugmentationStack,
    CoordinatedDropout,
    SelectiveBackpropThruTime,
)
from lfads_torch.modules.readin_readout import FanInLinear, MultisessionReadin, MultisessionReadout
from lfads_torch.objective import penalty
from lfads_torch.tuples import SessionBatch, SessionOutput
from tests.small import DIMS, arrays, batch_of, counts, datamodule, lfads, write

# Files of a few trials, given by their path, make batches that are larger than the data.
pytestmark = pytest.mark.filterwarnings("ignore::lfads_torch.data.DataWarning")

SIZES = {"encod_data_dim": 3, "encod_seq_len": 6}


def small(**arguments: Any) -> LFADS:
    return LFADS(**{**SIZES, **DIMS, **arguments})


def step(model: LFADS, batch: Any) -> Tensor:
    """One optimiser step's loss; fails where the loss or a gradient is not finite."""
    model.train()
    loss = model.training_step(batch, 0)
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
    optimizer = model.configure_optimizers()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    return loss.detach()


def first_batch(data: Any) -> Any:
    return next(iter(data.train_dataloader()))


# ---- sizes from data ---------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["module", "pattern", "path"])
def test_sizes_of_a_single_session(tmp_path: Path, given: str) -> None:
    pattern = write(tmp_path, arrays(bins=(6, 8), channels=(3, 5), ext=2))
    data: Any = {
        "module": lambda: datamodule(pattern),
        "pattern": lambda: pattern,
        "path": lambda: tmp_path / "day0.h5",
    }[given]()
    model = lfads(data, gen_dim=7, ic_enc_dim=None)
    hp = model.hparams
    found = (hp.encod_data_dim, hp.encod_seq_len, hp.recon_seq_len, hp.ext_input_dim)
    assert found == (3, 6, 8, 2)
    assert (hp.gen_dim, hp.fac_dim, hp.ic_enc_dim) == (7, DIMS["fac_dim"], 64)
    assert isinstance(model.readin[0], nn.Identity)
    assert model.readout[0].weight.shape == (5, DIMS["fac_dim"])
    assert model.session_names == ["day0"]
    step(model, first_batch(datamodule(pattern)))


def test_sizes_of_several_sessions(tmp_path: Path) -> None:
    pattern = write(tmp_path, arrays(channels=(3, 3)), arrays(channels=(4, 6)))
    zig = recons.ZeroInflatedGamma(1, -0.5, 20.0, 10.0, 0.1)
    data = datamodule(pattern)
    model = lfads(data, reconstruction=zig)
    assert [tuple(m.weight.shape) for m in model.readin] == [(4, 3), (4, 4)]
    assert [tuple(m.weight.shape) for m in model.readout] == [(9, 4), (18, 4)]
    assert [tuple(r.scale.shape) for r in model.recon] == [(2, 3), (2, 6)]
    assert model.session_names == ["day0", "day1"]
    assert lfads(data, encod_data_dim=9).readin[1].weight.shape == (9, 4)


def test_one_observation_model_is_copied_for_every_session() -> None:
    layers = nn.ModuleList([FanInLinear(4, 6), FanInLinear(4, 10)])
    readin = nn.ModuleList([FanInLinear(3, 3), FanInLinear(5, 3)])
    model = small(readin=readin, readout=layers, reconstruction=recons.Gaussian())
    assert len(model.recon) == 2
    zig = recons.ZeroInflatedGamma(1, 0.1, 20.0, 10.0, 0.1)
    layers = nn.ModuleList([FanInLinear(4, 9), FanInLinear(4, 15)])
    model = small(readin=readin, readout=layers, reconstruction=zig)
    assert [recon.scale.shape[1] for recon in model.recon] == [3, 5]


def test_maps_from_principal_component_regression(tmp_path: Path) -> None:
    sessions = [arrays(channels=(n, n), seed=n) for n in (3, 5)]
    for session in sessions:
        n = session["train_encod_data"].shape[2]
        session["readin_weight"] = np.random.default_rng(n).normal(size=(n, 4))
        session["readout_bias"] = session["train_encod_data"].mean(axis=(0, 1))
    pattern = write(tmp_path, *sessions)
    data = datamodule(pattern)
    model = lfads(data, readin=MultisessionReadin(pattern), readout=MultisessionReadout(pattern))
    frozen = model.readin[0].weight.clone()
    step(model, first_batch(data))
    assert torch.equal(model.readin[0].weight, frozen)


def test_unknown_arguments_of_from_data(tmp_path: Path) -> None:
    pattern = write(tmp_path, arrays())
    with pytest.raises(ConfigError, match=r"unknown argument 'gen_dims'; legal are .*gen_dim"):
        lfads(pattern, gen_dims=3)
    with pytest.raises(UserError, match="No data file"):
        LFADS.from_data(tmp_path / "night.h5")


# ---- the constructor ---------------------------------------------------------------------------


def test_defaults_make_a_model() -> None:
    model = LFADS(encod_data_dim=2, encod_seq_len=3)
    assert model.hparams.recon_seq_len == 3
    assert isinstance(model.recon[0], recons.Poisson)
    assert isinstance(model.ic_prior, priors.MultivariateNormal)
    assert isinstance(model.co_prior, priors.AutoregressiveMultivariateNormal)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"encod_data_dim": None}, "encod_data_dim is not given"),
        ({"encod_seq_len": None}, "encod_seq_len is not given"),
        ({"gen_dim": 0}, "gen_dim is 0; legal are whole numbers >= 1"),
        ({"gen_dim": 2.5}, r"gen_dim is 2\.5"),
        ({"gen_dim": None}, "gen_dim is None"),
        ({"fac_dim": "40"}, "fac_dim is '40'"),
        ({"ci_lag": -1}, "ci_lag is -1; legal are whole numbers >= 0"),
        ({"recon_seq_len": 5}, "recon_seq_len is 5, below encod_seq_len 6"),
        ({"ic_enc_seq_len": 6}, "ic_enc_seq_len is 6, but only 6 bins"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0; legal are numbers >= 0 and < 1"),
        ({"lr_adam_beta2": 1.0}, "lr_adam_beta2 is 1.0; legal are numbers >= 0 and < 1"),
        ({"lr_init": 0.0}, r"lr_init is 0\.0; legal are numbers > 0"),
        ({"lr_init": math.nan}, "lr_init is nan"),
        ({"loss_scale": math.inf}, "loss_scale is inf"),
        ({"cell_clip": -5}, "cell_clip is -5"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1; legal are numbers >= 0"),
        ({"kl_co_scale": -1e-6}, "kl_co_scale is -1e-06"),
        ({"l2_gen_scale": -1.0}, "l2_gen_scale"),
        ({"lr_decay": 1.0, "lr_scheduler": True}, "lr_decay is 1.0; legal are numbers > 0 and < 1"),
        ({"kl_increase_epoch": -1}, "kl_increase_epoch is -1"),
        ({"kernel": "fast"}, "kernel is 'fast'; legal: auto, explicit, native, reference"),
        ({"variational": False, "ic_prior": priors.MultivariateNormal(0, 1, 3)}, "variational"),
        (
            {"variational": False, "co_prior": priors.MultivariateStudentT(0, 1, 5, 2)},
            "co_prior is MultivariateStudentT, but variational is false.*Use Null",
        ),
        ({"ic_prior": priors.MultivariateNormal(0, 1, 5)}, "ic_prior is for 5 .*ic_dim is 3"),
        (
            {"co_prior": priors.AutoregressiveMultivariateNormal(1, 1, 1)},
            "co_prior is for 1 .*co_dim is 2",
        ),
        ({"readin": FanInLinear(9, 4)}, "readin 0 gives 4 features, but encod_data_dim is 3"),
        ({"readout": FanInLinear(5, 3)}, "readout 0 takes 5 features, but fac_dim is 4"),
        (
            {"readout": FanInLinear(4, 3), "reconstruction": recons.Gaussian()},
            "readout 0 gives 3 features, no multiple of the 2 parameters",
        ),
        (
            {"readin": nn.ModuleList([FanInLinear(3, 3), FanInLinear(3, 3)])},
            "for 2, 1 and 1 sessions",
        ),
    ],
)
def test_arguments_that_no_model_can_have(arguments: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        small(**arguments)


@pytest.mark.parametrize("off", ["ci_enc_dim", "con_dim", "co_dim"])
def test_half_a_controller_is_none_and_says_so(off: str) -> None:
    with pytest.warns(UserWarning, match="no controller"):
        model = small(**{off: 0})
    assert not model.use_con
    assert isinstance(model.co_prior, priors.Null)
    assert model.decoder.con_h0.shape == (1, model.hparams.con_dim)
    out = model({0: batch_of(counts(2, 6, 3))})[0]
    # As reported where there is no controller: width as asked for, mean 0 and deviation 1.
    co_dim = model.hparams.co_dim
    assert torch.equal(out.co_means, torch.zeros(2, 6, co_dim))
    assert torch.equal(out.co_stds, torch.ones(2, 6, co_dim))
    assert torch.equal(out.con_states, torch.zeros(2, 6, model.hparams.con_dim))
    assert out.gen_inputs.shape == (2, 6, 0)


# ---- data against the model --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"encod_data_dim": 4}, ["day0.h5", "encod_data: the file has 3", "is for 4"]),
        ({"encod_seq_len": 5}, ["bins of encod_data: the file has 6", "encod_seq_len is for 5"]),
        ({"recon_seq_len": 9}, ["bins of recon_data: the file has 8", "recon_seq_len is for 9"]),
        ({"ext_input_dim": 1}, ["ext_input: the file has 0", "ext_input_dim is for 1"]),
        ({"readin": FanInLinear(5, 3)}, ["readin 0", "the file has 3", "is for 5"]),
        ({"readout": FanInLinear(4, 3)}, ["readout 0", "recon_data: the file has 5", "for 3"]),
        (
            {
                "readin": nn.ModuleList([FanInLinear(3, 3), FanInLinear(3, 3)]),
                "readout": nn.ModuleList([FanInLinear(4, 5), FanInLinear(4, 5)]),
                "reconstruction": nn.ModuleList([recons.Poisson(), recons.Poisson()]),
            },
            ["2 session(s), the data 1 (day0)"],
        ),
    ],
)
def test_sizes_that_the_data_contradict(
    tmp_path: Path, arguments: dict[str, Any], parts: list[str]
) -> None:
    pattern = write(tmp_path, arrays(bins=(6, 8), channels=(3, 5)))
    with pytest.raises(ConfigError) as caught:
        lfads(pattern, **arguments)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("split", "value", "parts"),
    [
        ("train", -1.0, ["train_recon_data: 1 values in channel 2", "whole numbers >= 0"]),
        ("valid", 0.5, ["valid_recon_data", "channel 2"]),
    ],
)
def test_numbers_that_the_reconstruction_refuses(
    tmp_path: Path, split: str, value: float, parts: list[str]
) -> None:
    session = arrays()
    session[f"{split}_recon_data"][1, 2, 2] = value
    session[f"{split}_encod_data"] = session[f"{split}_recon_data"]
    with pytest.raises(DataError) as caught:
        lfads(write(tmp_path, session))
    for part in ["day0.h5", *parts]:
        assert part in str(caught.value)


def sbtt() -> AugmentationStack:
    return AugmentationStack([SelectiveBackpropThruTime()], [0], [0])


@pytest.mark.parametrize("stack", [AugmentationStack, sbtt])
def test_missing_bins_need_no_augmentation_and_may_have_it(tmp_path: Path, stack: Any) -> None:
    session = arrays()
    for split in ("train", "valid"):
        session[f"{split}_recon_data"][:, 4:, 1] = math.nan
        session[f"{split}_encod_data"] = session[f"{split}_recon_data"]
    data = datamodule(write(tmp_path, session))
    model = lfads(data, train_aug_stack=stack(), infer_aug_stack=stack())
    step(model, first_batch(data))


def test_missing_values_in_what_is_only_read(tmp_path: Path) -> None:
    session = arrays()
    session["train_encod_data"] = session["train_encod_data"].copy()
    session["train_encod_data"][0, 0, 0] = math.nan
    data = datamodule(write(tmp_path, session))
    step(lfads(data), first_batch(data))


def test_a_test_split_to_be_inferred_only_is_not_held_against_the_reconstruction(
    tmp_path: Path,
) -> None:
    session = arrays(n_test=4, channels=(3, 5))
    del session["test_recon_data"]
    lfads(write(tmp_path, session))


# ---- every kind of model trains a step ---------------------------------------------------------

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "autonomous": ({}, {"ci_enc_dim": 0, "con_dim": 0, "co_dim": 0}),
    "autonomous with external input": (
        {"ext": 2},
        {"ci_enc_dim": 0, "con_dim": 0, "co_dim": 0},
    ),
    "not variational": ({}, {"variational": False}),
    "IC segment": ({}, {"ic_enc_seq_len": 2}),
    "lag beyond the trial": ({}, {"ci_lag": 9}),
    "external input": ({"ext": 2}, {}),
    "held-out channels": ({"channels": (3, 5)}, {}),
    "forward prediction": ({"bins": (6, 9)}, {}),
    "all of these": (
        {"bins": (6, 9), "channels": (3, 5), "ext": 1, "truth": True},
        {"ic_enc_seq_len": 2, "recon_reduce_mean": False},
    ),
    "Student-t": ({}, {"co_prior": priors.MultivariateStudentT(0.0, 1.0, 5.0, 2)}),
    "no prior": ({}, {"ic_prior": priors.Null(), "co_prior": priors.Null()}),
    "reference kernel": ({}, {"kernel": "reference"}),
    **{
        kind: ({}, {"reconstruction": getattr(recons, kind)()})
        for kind in ("PoissonBPS", "MSE", "Gaussian")
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cd_rate", [0.0, 0.4])
def test_a_step_of_every_kind(tmp_path: Path, kind: str, cd_rate: float) -> None:
    in_file, arguments = KINDS[kind]
    data = datamodule(write(tmp_path, arrays(**in_file)))
    segment = arguments.get("ic_enc_seq_len", 0)
    stack = AugmentationStack([CoordinatedDropout(cd_rate, ic_enc_seq_len=segment)], [0], [0])
    model = lfads(data, train_aug_stack=stack, **arguments)
    batch = first_batch(data)
    step(model, batch)

    size, hp = data.sizes[0], model.hparams
    model.eval()
    out = model(batch)[0]
    n = len(batch[0][0].encod_data)
    n_con = hp.co_dim if model.use_con else 0
    shapes = {
        "output_params": (n, size.recon_len, size.recon_dim),
        "factors": (n, size.recon_len, hp.fac_dim),
        "ic_mean": (n, hp.ic_dim),
        "ic_std": (n, hp.ic_dim),
        "co_means": (n, size.recon_len, hp.co_dim),
        "co_stds": (n, size.recon_len, hp.co_dim),
        "gen_states": (n, size.recon_len, hp.gen_dim),
        "gen_init": (n, hp.gen_dim),
        "gen_inputs": (n, size.recon_len, n_con + size.ext_dim),
        "con_states": (n, size.recon_len, hp.con_dim),
    }
    assert out.behavior is None
    assert {name: tuple(x.shape) for name, x in out._asdict().items()} == shapes
    assert all(x.isfinite().all() for x in out._asdict().values())
    params = model(batch, output_means=False)[0].output_params
    assert params.shape == (n, size.recon_len, size.recon_dim, model.recon[0].n_params)
    torch.testing.assert_close(model.recon[0].compute_means(params), out.output_params)


def test_positive_data(tmp_path: Path) -> None:
    session = {key: value + 0.5 for key, value in arrays().items()}
    data = datamodule(write(tmp_path, session))
    zig = recons.ZeroInflatedGamma(3, 0.25, 20.0, 10.0, 0.1)
    for recon in (recons.Gamma(), zig):
        step(lfads(data, reconstruction=recon), first_batch(data))


# ---- batches -----------------------------------------------------------------------------------


def test_any_session_may_be_absent(tmp_path: Path) -> None:
    sessions = [arrays(channels=(n, n), seed=n) for n in (2, 3, 4)]
    data = datamodule(write(tmp_path, *sessions))
    model = lfads(data).eval()
    batch = first_batch(data)
    everything = model(batch)
    for absent in range(3):
        rest = {s: b for s, b in batch.items() if s != absent}
        for session, out in model(rest).items():
            for name, value in out._asdict().items():
                torch.testing.assert_close(value, getattr(everything[session], name))
        step(lfads(data), rest)


def test_sessions_are_read_out_in_their_own_number_whatever_their_order(tmp_path: Path) -> None:
    data = datamodule(write(tmp_path, *[arrays(channels=(n, n)) for n in (2, 3)]))
    model = lfads(data).eval()
    batch = first_batch(data)
    turned = model({1: batch[1], 0: batch[0]})
    for session, out in model(batch).items():
        torch.testing.assert_close(turned[session].output_params, out.output_params)


def test_a_single_batch_is_session_zero() -> None:
    model = small().eval()
    batch = batch_of(counts(4, 6, 3))
    alone, named, with_extras = model(batch), model({0: batch}), model({0: (batch, ())})
    for out in (named, with_extras):
        assert list(out) == [0]
        assert torch.equal(out[0].output_params, alone[0].output_params)
    assert isinstance(alone[0], SessionOutput)


def test_trials_do_not_know_of_one_another() -> None:
    model = small().eval()
    data = counts(5, 6, 3)
    together = model(batch_of(data))[0]
    for trial in range(5):
        alone = model(batch_of(data[trial : trial + 1]))[0]
        torch.testing.assert_close(alone.factors[0], together.factors[trial])


def test_sampling_draws_and_means_do_not() -> None:
    model = small().eval()
    batch = batch_of(counts(4, 6, 3))
    first, second = (model(batch, sample_posteriors=True)[0] for _ in range(2))
    assert not torch.equal(first.gen_init, second.gen_init)
    assert not torch.equal(first.gen_inputs, second.gen_inputs)
    assert torch.equal(first.ic_mean, second.ic_mean)
    still = [model(batch)[0] for _ in range(2)]
    assert torch.equal(still[0].factors, still[1].factors)
    torch.testing.assert_close(still[0].gen_inputs, still[0].co_means)


def test_predict_step(tmp_path: Path) -> None:
    pattern = write(tmp_path, arrays())
    batch = first_batch(datamodule(pattern))
    model = lfads(pattern).eval()
    means = model.predict_step(batch, 0, sample_posteriors=False)[0]
    torch.testing.assert_close(means.factors, model(batch)[0].factors)
    assert not torch.equal(model.predict_step(batch, 0)[0].gen_init, means.gen_init)
    certain = lfads(pattern, variational=False).eval()
    assert torch.equal(certain.predict_step(batch, 0)[0].factors, certain(batch)[0].factors)


def test_encoders_do_not_see_past_their_window() -> None:
    """Held-out channels and forward bins of the data change no rate."""
    readout = FanInLinear(4, 5)
    model = small(recon_seq_len=8, readout=readout).eval()
    recon = counts(3, 8, 5)
    changed = recon.clone()
    changed[:, 6:] += 1
    changed[:, :, 3:] += 1
    outs = [model(batch_of(x[:, :6, :3], x))[0].output_params for x in (recon, changed)]
    assert torch.equal(*outs)


def test_ic_segment_is_read_by_the_ic_encoder_alone() -> None:
    model = small(ic_enc_seq_len=2).eval()
    data = counts(3, 6, 3)
    early, late = data.clone(), data.clone()
    early[:, :2] += 1
    late[:, 2:] += 1
    base, early_out, late_out = (model(batch_of(x))[0] for x in (data, early, late))
    assert torch.equal(base.ic_mean, late_out.ic_mean)
    assert not torch.equal(base.ic_mean, early_out.ic_mean)
    encodings = [model.encode({0: batch_of(x)}).ci for x in (data, early)]
    assert encodings[0] is not None
    assert encodings[1] is not None
    assert torch.equal(encodings[0], encodings[1])
    assert (encodings[0][:, :2] == 0).all()


def test_missing_bins_have_no_say_in_loss_or_gradient() -> None:
    """Whatever stands under a missing bin."""
    data = counts(4, 6, 3)
    data[1, 2:4] = math.nan
    data[3, :, 1] = math.nan

    class Nonsense(nn.Module):
        def process_batch(self, batch: SessionBatch) -> SessionBatch:
            return batch._replace(recon_data=batch.recon_data.nan_to_num(nan=7.0))

    losses, grads = [], []
    for then in ([], [Nonsense()]):
        torch.manual_seed(0)
        stack = AugmentationStack(
            [SelectiveBackpropThruTime(), *then], list(range(1 + len(then))), [0]
        )
        model = small(train_aug_stack=stack)
        torch.manual_seed(1)
        loss = model.training_step(batch_of(data), 0)
        loss.backward()
        losses.append(loss.detach())
        grads.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert losses[0].isfinite()
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(grads[0], grads[1])


def test_sbtt_without_missing_bins_is_the_plain_model() -> None:
    batch = batch_of(counts(4, 6, 3))
    losses = []
    for stack in (AugmentationStack(), sbtt()):
        torch.manual_seed(0)
        model = small(train_aug_stack=stack)
        torch.manual_seed(1)
        losses.append(model.training_step(batch, 0))
    torch.testing.assert_close(losses[0], losses[1])


def test_coordinated_dropout_changes_gradients_and_not_the_loss() -> None:
    """With the mask drawn but the encoder shown everything, only the gradient differs."""

    class ShowAll:
        def process_batch(self, batch: SessionBatch) -> SessionBatch:
            return batch._replace(encod_data=batch.recon_data)

    values, grads = [], []
    for loss_order in ([], [0]):
        torch.manual_seed(0)
        stack = AugmentationStack([CoordinatedDropout(0.5), ShowAll()], [0, 1], loss_order)
        model = small(train_aug_stack=stack, kl_ic_scale=0, kl_co_scale=0)
        torch.manual_seed(1)
        loss = model.training_step(batch_of(counts(4, 6, 3)), 0)
        loss.backward()
        values.append(loss.detach())
        grads.append(model.readout[0].weight.grad)
    torch.testing.assert_close(values[0], values[1])
    assert not torch.allclose(grads[0], grads[1])


# ---- the objective -----------------------------------------------------------------------------


def test_l2_counts_only_what_has_a_weight() -> None:
    cell = {"l2_ic_enc_scale": 0.0, "l2_ci_enc_scale": 0.0, "l2_con_scale": 0.0}
    model = small(**cell, l2_gen_scale=2.0)
    w = model.decoder.rnn.cell.gen_cell.weight_hh
    torch.testing.assert_close(penalty(model, model.weights), 2.0 * 0.5 * (w**2).sum() / w.numel())
    model = small(**{**cell, "l2_ci_enc_scale": 3.0}, l2_gen_scale=2.0)
    cells = [c.weight_hh for c in model.encoder.ci_enc.cells]
    w = model.decoder.rnn.cell.gen_cell.weight_hh
    squares = 2.0 * (w**2).sum() + 3.0 * sum((c**2).sum() for c in cells)
    n_entries = w.numel() + sum(c.numel() for c in cells)
    torch.testing.assert_close(penalty(model, model.weights), 0.5 * squares / n_entries)
    model = small(**cell, l2_gen_scale=0.0)
    assert penalty(model, model.weights) == 0


def test_initialisation_as_published() -> None:
    torch.manual_seed(0)
    model = LFADS(encod_data_dim=60, encod_seq_len=5, ic_enc_dim=80, gen_dim=200, ext_input_dim=0)
    enc, gen = model.encoder.ic_enc.fwd_gru.cell, model.decoder.rnn.cell.gen_cell
    for weight, fan in (
        (enc.weight_ih, 140),
        (enc.weight_hh, 140),
        (gen.weight_ih, 4),
        (gen.weight_hh, 200),
        (model.encoder.ic_linear.weight, 160),
        (model.decoder.ic_to_g0.weight, 64),
    ):
        assert weight.std().item() == pytest.approx(fan**-0.5, rel=0.05)
    for name, parameter in model.named_parameters():
        if name.endswith("bias_ih"):
            n = len(parameter) // 3
            assert (parameter[: 2 * n] == 1).all()
            assert (parameter[2 * n :] == 0).all()
        elif name.endswith(("bias", "bias_hh", "h0")):
            assert (parameter == 0).all(), name
        assert parameter.requires_grad != name.endswith(("bias_hh", "ic_prior.logvar")), name
