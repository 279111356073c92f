"""A readout of behaviour that trains with the model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from lfads_torch import LFADSEstimator
from lfads_torch.checkpoint import load_model
from lfads_torch.cli import main
from lfads_torch.data import DataWarning, write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.datamodules import BasicDataModule
from lfads_torch.errors import UserError
from lfads_torch.model import LFADS
from lfads_torch.objective import behavior_error
from lfads_torch.post_run.analysis import run_posterior_sampling, sample_posterior
from lfads_torch.post_run.evaluation import evaluate_run
from lfads_torch.post_run.outputs import load_outputs
from lfads_torch.runs.compose import read_config
from lfads_torch.search.population import Population
from lfads_torch.tuples import SessionBatch, sessions_of
from tests.search.reference_training import assert_as_alone
from tests.small import arrays, datamodule, lfads, trainer, write

FAST: dict[str, Any] = {"behavior_increase_epoch": 0, "kl_increase_epoch": 0}


def with_behavior(n_dims: int = 2, n_bins: int = 6, seed: int = 0, **options: Any) -> Any:
    """Arrays of a session with behaviour, of which some entries are missing."""
    found, rng = arrays(seed=seed, **options), np.random.default_rng(seed)
    for split in ("train", "valid"):
        y = rng.normal(3.0, 2.0, (len(found[f"{split}_encod_data"]), n_bins, n_dims))
        y[0, 1] = np.nan
        found[f"{split}_behavior"] = y.astype(np.float32)
    return found


def read(tmp_path: Path, *sessions: Any, **options: Any) -> BasicDataModule:
    return datamodule(write(tmp_path, *sessions), batch_keys=["behavior"], **options)


def fit(model: LFADS, data: Any, folder: Path, **options: Any) -> LFADS:
    torch.manual_seed(5)
    trainer(folder, **{"max_epochs": 2, "gradient_clip_val": 200, **options}).fit(model, data)
    return model


def seeded(data: Any, **arguments: Any) -> LFADS:
    torch.manual_seed(1)
    return lfads(data, **arguments)


# ---- the mathematics -----------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["gen_states", "factors", "rates"])
def test_the_loss_is_the_masked_mean_of_squares_of_a_plain_loop(
    tmp_path: Path, source: str
) -> None:
    data = read(tmp_path, with_behavior(n_bins=4, bins=(4, 6)))
    model = lfads(data, behavior_dim=None, behavior_from=source, **FAST).eval()
    batch = sessions_of(next(iter(data.split_loader("train", batch_size=99))))
    result = model.evaluated(batch, "valid")
    torch.manual_seed(0)
    inferred = model.infer(batch, sample=False)
    output, params = inferred.outputs[0], inferred.outputs[0].output_params
    z = {"gen_states": output.gen_states, "factors": output.factors, "rates": params[..., 0]}
    y = batch[0].behavior
    assert y is not None and model.behavior is not None
    flat = y.reshape(-1, 2).double()
    mean, std = flat.nanmean(0), torch.tensor(np.nanstd(flat.numpy(), axis=0))
    weight, bias, squares = model.behavior.weight, model.behavior.bias, []
    for trial in range(len(y)):
        for t in range(4):
            for d in range(2):
                if not y[trial, t, d].isnan():
                    by_hand = weight[d] @ z[source][trial, t] + bias[d]
                    squares.append((by_hand - (y[trial, t, d] - mean[d]) / std[d]) ** 2)
    assert len(squares) == 7 * 4 * 2 - 2
    expected = torch.stack(squares).mean().item()
    assert behavior_error(model, batch, inferred).item() == pytest.approx(expected, rel=1e-5)
    without = result.terms._replace(behavior=torch.tensor(0.0))
    total = model.hparams.loss_scale * (
        without.recon
        + model.l2_ramp * without.l2
        + model.kl_ramp * (without.kl_ic + without.kl_co)
        + 0.1 * result.terms.behavior
    )
    torch.testing.assert_close(result.terms.total, total)


def test_what_is_read_out_is_in_the_units_of_the_file(tmp_path: Path) -> None:
    data = read(tmp_path, with_behavior())
    model = lfads(data, behavior_dim=None).eval()
    batch = sessions_of(next(iter(data.split_loader("valid"))))
    output = model(batch)[0]
    readout = model.behavior
    y = data.sessions[0].pooled["behavior"][:7].reshape(-1, 2)
    np.testing.assert_allclose(readout.mean, np.nanmean(y, axis=0), rtol=1e-6)
    np.testing.assert_allclose(readout.std, np.nanstd(y, axis=0), rtol=1e-6)
    standard = output.gen_states @ readout.weight.T + readout.bias
    torch.testing.assert_close(output.behavior, standard * readout.std + readout.mean)


def test_padding_of_ragged_trials_and_bins_past_the_behaviour_do_not_count(tmp_path: Path) -> None:
    whole, padded = with_behavior(), with_behavior()
    for session in (whole, padded):
        for split in ("train", "valid"):
            session[f"{split}_lengths"] = np.full(len(session[f"{split}_behavior"]), 6)
            session[f"{split}_lengths"][2] = 3
            session[f"{split}_behavior"][2, 3:] = np.nan
    padded["train_behavior"][2, 3:] = 1e6
    results = []
    for name, session in (("a", whole), ("b", padded)):
        (tmp_path / name).mkdir()
        data = read(tmp_path / name, session)
        model = seeded(data, behavior_dim=None)
        batch = sessions_of(next(iter(data.split_loader("train", batch_size=99))))
        torch.manual_seed(0)
        results.append(
            (model.behavior.mean.clone(), model.evaluated(batch, "train").terms.behavior)
        )
        out = model.predict_step(batch, 0)[0].behavior
        assert out is not None and out[2, 3:].isnan().all() and out[2, :3].isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_one_readout_serves_all_sessions_and_the_moments_are_those_of_all(tmp_path: Path) -> None:
    sessions = [with_behavior(), with_behavior(seed=1, channels=(4, 4), n_train=9)]
    data = read(tmp_path, *sessions)
    model = lfads(data, behavior_dim=None)
    both = np.concatenate([s["train_behavior"].reshape(-1, 2) for s in sessions])
    np.testing.assert_allclose(model.behavior.mean, np.nanmean(both, axis=0), rtol=1e-6)
    np.testing.assert_allclose(model.behavior.std, np.nanstd(both, axis=0), rtol=1e-6)
    assert model.behavior.weight.shape == (2, 5)
    fit(model, data, tmp_path)
    model.behavior.weight.data.zero_()
    with pytest.raises(UserError, match="channels of several sessions"):
        lfads(data, behavior_dim=None, behavior_from="rates")


def test_streamed_data_give_the_same_moments_and_losses_as_those_in_memory(tmp_path: Path) -> None:
    pattern = write(tmp_path, with_behavior(), with_behavior(seed=1))
    trained = []
    for gb in (None, 0.0):
        data = datamodule(pattern, batch_keys=["behavior"], max_memory_gb=gb)
        assert data.streamed == [gb == 0.0] * 2
        trained.append(fit(seeded(data, behavior_dim=None, **FAST), data, tmp_path))
    one, other = (dict(model.state_dict()) for model in trained)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert trained[0].behavior.is_standardised


# ---- what it leaves alone ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "off", [{"behavior_scale": 0.0}, {"behavior_scale": 5.0, "behavior_detach": True}]
)
@pytest.mark.parametrize(("source", "clip"), [("gen_states", 1e-2), ("factors", 200)])
def test_a_readout_without_weight_or_gradient_changes_no_bit(
    tmp_path: Path, off: Any, source: str, clip: float
) -> None:
    data = read(tmp_path, with_behavior(), batch_size=4)
    arguments = {"dropout_rate": 0.3, "behavior_increase_epoch": 0}
    states = []
    for more in ({}, {"behavior_dim": None, "behavior_from": source, **off}):
        model = seeded(data, **arguments, **more)
        states.append(fit(model, data, tmp_path, gradient_clip_val=clip).state_dict())
    without, with_it = states
    assert set(with_it) - set(without) == {
        f"behavior.{n}" for n in ("weight", "bias", "mean", "std")
    }
    assert all(torch.equal(without[name], with_it[name]) for name in without)


def test_a_detached_readout_learns(tmp_path: Path) -> None:
    data = read(tmp_path, with_behavior())
    model = seeded(data, behavior_dim=None, behavior_detach=True, **FAST)
    before = model.behavior.weight.detach().clone()
    assert not torch.equal(fit(model, data, tmp_path).behavior.weight, before)


def test_the_rate_of_the_readout_is_its_own_and_nothing_decays_it(tmp_path: Path) -> None:
    data = read(tmp_path, with_behavior())
    model = lfads(data, behavior_dim=None, behavior_lr=0.5, weight_decay=0.1)
    groups = model.configure_optimizers().param_groups
    assert [group["lr"] for group in groups] == pytest.approx([4e-3, 0.5])
    assert [group["weight_decay"] for group in groups] == pytest.approx([0.1, 0.0])
    assert len(groups[1]["params"]) == 2
    plain = lfads(data, behavior_dim=None)
    assert len({group["lr"] for group in plain.configure_optimizers().param_groups}) == 1
    assert len(lfads(data).configure_optimizers().param_groups) == 1


# ---- what is logged, and what is refused ---------------------------------------------------------


def test_scores_are_logged_and_are_those_of_scikit_learn(tmp_path: Path) -> None:
    sessions = with_behavior(n_valid=9, n_dims=3)
    sessions["valid_behavior"] *= np.array([1, 10, 0.1], np.float32)
    data = read(tmp_path, sessions, batch_size=4)
    model = lfads(data, behavior_dim=None, variational=False, **FAST)
    made = trainer(tmp_path, max_epochs=1)
    made.fit(model, data)
    metrics = made.callback_metrics
    assert metrics["hp/behavior_scale"] == pytest.approx(0.1)
    assert metrics["train/behavior_mse"] > 0
    read_out, targets = [], []
    model.eval()
    for batch in data.val_dataloader():
        trials = sessions_of(batch)
        read_out.append(model(trials)[0].behavior.detach().reshape(-1, 3))
        targets.append(trials[0].behavior.reshape(-1, 3))
    y, p = torch.cat(targets), torch.cat(read_out)
    known = ~y.isnan().any(1)
    expected = r2_score(y[known].numpy(), p[known].numpy(), multioutput="variance_weighted")
    assert metrics["valid/behavior_r2"] == pytest.approx(expected, abs=1e-5)
    mse = (((p - y) / model.behavior.std)[known] ** 2).mean()
    assert metrics["valid/behavior_mse"] == pytest.approx(float(mse), rel=1e-5)


def test_nothing_is_logged_or_tunable_without_a_readout(tmp_path: Path) -> None:
    data = read(tmp_path, with_behavior())
    model = lfads(data)
    made = trainer(tmp_path)
    made.fit(model, data)
    assert not [name for name in made.callback_metrics if "behavior" in name]
    assert "behavior_scale" not in model.tunables()
    assert not [name for name in model.state_dict() if "behavior" in name]


def test_double_precision_trains_the_readout(tmp_path: Path) -> None:
    data = read(tmp_path, with_behavior())
    model = lfads(data, behavior_dim=None, **FAST)
    made = trainer(tmp_path, precision="64-true")
    made.fit(model, data)
    assert made.callback_metrics["train/behavior_mse"] > 0


def test_a_constant_dimension_is_named_and_left_out(tmp_path: Path) -> None:
    session = with_behavior(n_dims=3)
    for split in ("train", "valid"):
        session[f"{split}_behavior"][..., 1] = 1.1
    data = read(tmp_path, session)
    data.sessions[0].attrs["behavior"] = "x, grip, y"
    with pytest.warns(DataWarning, match="1 of 3 dimensions: grip"):
        model = lfads(data, behavior_dim=None, **FAST)
    fit(model, data, tmp_path)
    assert torch.equal(model.behavior.std == 0, torch.tensor([False, True, False]))
    output = model.eval()(next(iter(data.val_dataloader())))[0].behavior
    assert (output[..., 1] == np.float32(1.1)).all() and output.isfinite().all()


def refused(
    tmp_path: Path, match: str, *sessions: Any, keys: Any = ("behavior",), **more: Any
) -> None:
    with pytest.raises(UserError, match=match), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = datamodule(write(tmp_path, *sessions), batch_keys=list(keys))
        lfads(data, **{"behavior_dim": None, **more})


def test_what_cannot_be_read_out_is_refused(tmp_path: Path) -> None:
    session = with_behavior()
    refused(tmp_path, r"batch_keys=\[behavior\]", session, keys=())
    refused(tmp_path, "'train_behavior' is not in the file", arrays())
    refused(tmp_path, "behavior_dim is 3; set behavior_dim", session, behavior_dim=3)
    refused(tmp_path, "behavior_from", session, behavior_from="spikes")
    refused(tmp_path, "behavior_scale", session, behavior_scale=-1)
    refused(tmp_path, "behavior_lr", session, behavior_lr=0)
    refused(tmp_path, "behavior_detach", session, behavior_detach="no")
    refused(tmp_path, "8 x 2 per trial; .*most the 6 bins", with_behavior(n_bins=8))
    flat = with_behavior()
    for split in ("train", "valid"):
        flat[f"{split}_behavior"] = flat[f"{split}_behavior"][:, 0]
    refused(tmp_path, "has 2 per trial; .*bins x dimensions", flat)
    constant = with_behavior()
    constant["train_behavior"][:] = 2.0
    refused(tmp_path, "no dimension of it varies", constant)
    infinite = with_behavior()
    infinite["train_behavior"][3, 2, 1] = np.inf
    refused(tmp_path, r"1 infinite values in dimensions 1", infinite)
    pair = r"day1\.h5: 'train_behavior' has 3 dimensions, that of .*day0\.h5 has 2"
    refused(tmp_path, pair, session, with_behavior(n_dims=3, seed=1))
    with pytest.raises(UserError, match="from_data"):
        LFADS(encod_data_dim=3, encod_seq_len=6, behavior_dim=None)


def test_a_batch_without_behaviour_trains_no_readout(tmp_path: Path) -> None:
    data = read(tmp_path, with_behavior())
    model = lfads(data, behavior_dim=None)
    batch = sessions_of(next(iter(data.train_dataloader())))
    bare = {s: SessionBatch(*trials) for s, trials in batch.items()}
    with pytest.raises(UserError, match="the batch has none"):
        model.training_step(bare, 0)


def test_a_frozen_readout_needs_no_behaviour(tmp_path: Path) -> None:
    model = lfads(read(tmp_path, with_behavior()), behavior_dim=None)
    model.behavior.requires_grad_(False)
    before = {name: x.clone() for name, x in model.behavior.state_dict().items()}
    (tmp_path / "new").mkdir()
    fit(model, datamodule(write(tmp_path / "new", arrays())), tmp_path)
    assert all(torch.equal(before[name], x) for name, x in model.behavior.state_dict().items())


def test_a_checkpoint_keeps_readout_and_units(tmp_path: Path) -> None:
    data = read(tmp_path, with_behavior())
    model = fit(lfads(data, behavior_dim=None, behavior_from="factors", **FAST), data, tmp_path)
    made = trainer(tmp_path)
    made.strategy.connect(model)
    state: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(state)
    torch.save(state, tmp_path / "model.ckpt")
    loaded = load_model(tmp_path / "model.ckpt")
    assert loaded.behavior.source == "factors"
    batch = next(iter(data.val_dataloader()))
    torch.testing.assert_close(loaded(batch)[0].behavior, model.eval()(batch)[0].behavior)
    other = with_behavior()
    other["train_behavior"] += 100
    (tmp_path / "other").mkdir()
    loaded.check_data(read(tmp_path / "other", other))
    assert torch.equal(
        loaded.behavior.mean, model.behavior.mean
    )  # the units that it was trained in


# ---- populations ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*batch of .* trials is more than")
def test_members_that_differ_in_the_readout_equal_models_trained_alone(tmp_path: Path) -> None:
    data = read(tmp_path, with_behavior(n_train=12), with_behavior(seed=1), batch_size=8)
    models = []
    for k in range(2):
        torch.manual_seed(k)
        numbers = {"behavior_scale": 0.1 * 10**k, "behavior_increase_epoch": 2 * k}
        numbers |= {"behavior_lr": [None, 0.1][k], "lr_scheduler": k > 0, "lr_patience": 0}
        models.append(lfads(data, behavior_dim=None, dropout_rate=0.2, **numbers))
    trained = assert_as_alone(tmp_path, models, data, 3)
    assert "behavior_scale" in trained.names
    trained.set_values({"behavior_scale": [1.0, 2.0]})
    trained.exchange([1, 1])
    assert trained.values["behavior_scale"].tolist() == [2.0] * 2


def test_a_member_goes_on_as_a_run(tmp_path: Path) -> None:
    data = read(tmp_path, with_behavior())
    arguments = {"behavior_dim": None, "behavior_lr": 0.02, "lr_scheduler": True}
    population = Population([lfads(data, **arguments)], data, [3], gradient_clip_val=200)
    population.train_epoch()
    checkpoint = population.checkpoint(0)
    (state,) = checkpoint["optimizer_states"]
    model = lfads(data, **arguments)
    model.on_load_checkpoint(checkpoint)
    optimizer = model.configure_optimizers()["optimizer"]
    optimizer.load_state_dict(state)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([4e-3, 0.02])
    steps = {int(values["step"]) for values in optimizer.state.values()}
    assert steps == {population.steps_per_epoch}
    # A rate that is given anew holds for the readout.
    other = lfads(data, **{**arguments, "behavior_lr": 0.5})
    other.on_load_checkpoint(checkpoint)
    assert [group["lr"] for group in state["param_groups"]] == pytest.approx([4e-3, 0.5])


def test_plain_and_compiled_loops_give_the_same_gradients(tmp_path: Path) -> None:
    data = read(tmp_path, with_behavior())
    gradients = []
    for kernel in ("reference", "auto"):
        options = {"dropout_rate": 0.2, "loss_scale": 1.0, "behavior_scale": 1.0, **FAST}
        model = seeded(data, behavior_dim=None, kernel=kernel, **options)
        torch.manual_seed(3)
        model.training_step(next(iter(data.split_loader("train"))), 0).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, one in gradients[0].items():
        torch.testing.assert_close(one, gradients[1][name], rtol=1e-4, atol=1e-6)


# ---- after a run ---------------------------------------------------------------------------------


def test_outputs_hold_what_was_read_out_beside_what_was_observed(tmp_path: Path) -> None:
    session = with_behavior(n_test=2)
    data = read(tmp_path, session)
    for source in ("gen_states", "rates"):
        model = lfads(data, behavior_dim=None, behavior_from=source)
        paths = run_posterior_sampling(model, data, f"{source}_output.h5", 3, folder=tmp_path)
        outputs = load_outputs(paths[0])
        trials = outputs.valid
        assert {"behavior", "behavior_prediction"} <= set(trials.names)
        np.testing.assert_array_equal(trials.behavior, session["valid_behavior"])
        read_out = model.behavior
        z = torch.from_numpy(trials.gen_states)
        if source == "gen_states":
            expected = z @ read_out.weight.T + read_out.bias
            expected = (expected * read_out.std + read_out.mean).detach()
            np.testing.assert_allclose(trials.behavior_prediction, expected, rtol=1e-4, atol=1e-5)
        assert outputs.test.behavior_prediction.shape == (2, 6, 2)
        assert sample_posterior(model, data, 2).behavior.shape == (5, 6, 2)
    run_posterior_sampling(lfads(data), data, "plain.h5", 2, folder=tmp_path)
    plain = load_outputs(tmp_path / "plain_day0.h5").train
    assert "behavior" in plain and "behavior_prediction" not in plain


def test_evaluate_scores_the_readout_beside_the_fitted_decoder(tmp_path: Path) -> None:
    session = with_behavior(n_train=20, n_valid=12)
    data = read(tmp_path, session)
    model = lfads(data, behavior_dim=None)
    [path] = run_posterior_sampling(model, data, "lfads_output.h5", 2, folder=tmp_path)
    scores = evaluate_run(path, baselines=[], n_draws=10).sessions[0].scores
    assert set(scores["lfads_readout"]) == {"behavior_r2"}
    assert "behavior_r2" in scores["lfads_factors"]
    trials = load_outputs(path).valid
    y, p = (trials[f"behavior{end}"].reshape(-1, 2) for end in ("", "_prediction"))
    known = np.isfinite(y).all(1)
    expected = r2_score(y[known], p[known])
    assert scores["lfads_readout"]["behavior_r2"].value == pytest.approx(expected, abs=1e-6)


def test_the_estimator_predicts_behaviour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.poisson(0.5, (20, 8, 5)), rng.normal(5, 2, (20, 8, 2))
    sizes = {"gen_dim": 6, "fac_dim": 3, "ic_dim": 3, "co_dim": 0, "max_epochs": 1}
    estimator = LFADSEstimator(**sizes, num_samples=2).fit(X, behavior=y)
    decoded = estimator.predict_behavior(X)
    assert decoded.shape == y.shape and abs(decoded.mean() - 5) < 1
    loaded = LFADSEstimator.load(estimator.save(tmp_path / "estimator.ckpt"))
    np.testing.assert_array_equal(loaded.predict_behavior(X), decoded)
    with pytest.raises(UserError, match="20 trials x 7 bins, X 20 x 8"):
        LFADSEstimator(**sizes).fit(X, behavior=y[:, 1:])
    with pytest.raises(UserError, match="of the sessions a, X of session"):
        LFADSEstimator(**sizes).fit(X, behavior={"a": y})
    loaded.model_.behavior = None
    with pytest.raises(UserError, match=r"fit\(X, behavior=...\)"):
        loaded.predict_behavior(X)


def test_one_line_of_the_command_switches_it_on(tmp_path: Path) -> None:
    data = lorenz(n_conditions=6, n_trials=4, n_units=8, n_bins=10)
    for split in ("train", "valid"):
        data[f"{split}_behavior"] = data[f"{split}_latents"][..., :2]
    write_session(tmp_path / "file.h5", data)
    small = ["model.gen_dim=6", "model.fac_dim=3", "trainer.max_epochs=1"]
    small += ["callbacks.raster_plot=null", "callbacks.trajectory_plot=null"]
    run = tmp_path / "run"
    arguments = [str(tmp_path / "file.h5"), *small, "--run-dir", str(run)]
    assert main(["train", *arguments, "model.behavior_dim=null"]) == 0
    outputs = load_outputs(run)
    assert outputs.valid.behavior_prediction.shape == outputs.valid.behavior.shape
    config = read_config(run)
    assert config["datamodule"]["batch_keys"] == ["behavior"]
    assert main(["train", "--resume", str(run), "trainer.max_epochs=2"]) == 0
    del data["train_behavior"], data["valid_behavior"]
    write_session(tmp_path / "file.h5", data)
    assert main(["train", *arguments, "--overwrite", "model.behavior_dim=null"]) == 2


def test_behaviour_of_a_lorenz_system_is_decoded(tmp_path: Path) -> None:
    """Two random combinations of the latents: R2 of at least .9 on validation trials."""
    data = lorenz(n_conditions=40, n_trials=10, n_units=20, n_bins=16, mean_rate=3.0)
    mixed = np.random.default_rng(0).normal(size=(3, 2))
    for split in ("train", "valid"):
        data[f"{split}_behavior"] = (data[f"{split}_latents"] @ mixed).astype(np.float32)
    module = read(tmp_path, data, batch_size=64)
    sizes = {"ic_enc_dim": 24, "ci_enc_dim": 0, "con_dim": 0, "co_dim": 0}
    sizes |= {"ic_dim": 16, "gen_dim": 32, "fac_dim": 8, "lr_init": 0.02, "dropout_rate": 0.0}
    ramps = {"l2_increase_epoch": 5, "kl_increase_epoch": 5, "behavior_increase_epoch": 0}
    torch.manual_seed(0)
    model = LFADS.from_data(module, behavior_dim=None, **sizes, **ramps)
    made = trainer(tmp_path, max_epochs=10, gradient_clip_val=200)
    made.fit(model, module)
    assert made.callback_metrics["valid/behavior_r2"] >= 0.9
