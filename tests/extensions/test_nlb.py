import math
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV

from lfads_torch import LFADS, BasicDataModule
from lfads_torch.data import write_session
from lfads_torch.errors import ConfigError, DataError
from lfads_torch.extensions.nlb import NLBEvaluation
from lfads_torch.metrics import bits_per_spike, psth_r2

N_READ, N_UNITS, T_READ, T_ALL = 4, 6, 8, 10


class Known(pl.LightningModule):
    """Infers rates that are known beforehand: the data's first channel decides the trial."""

    def __init__(self, rates, counts=True):
        super().__init__()
        self.rates = {s: torch.as_tensor(r) for s, r in rates.items()}
        self.recon = {s: SimpleNamespace(for_counts=counts) for s in rates}
        self.seen = []

    def predict_step(self, batch, batch_idx, sample_posteriors):
        assert not sample_posteriors
        outputs = {}
        for session, (own, _) in batch.items():
            trial = own.recon_data[:, 0, 0].long()
            self.seen.append((session, trial.tolist()))
            outputs[session] = SimpleNamespace(output_params=self.rates[session][trial])
        return outputs


def arrays(rng, n_train=30, n_valid=12, behavior=True):
    """A session whose trials are numbered by their first channel's first bin, train first."""
    out = {}
    for split, start, n in (("train", 0, n_train), ("valid", n_train, n_valid)):
        data = rng.poisson(0.7, size=(n, T_ALL, N_UNITS)).astype(float)
        data[:, 0, 0] = np.arange(start, start + n)
        out[f"{split}_recon_data"] = data
        out[f"{split}_encod_data"] = data[:, :T_READ, :N_READ]
        if behavior:
            out[f"{split}_behavior"] = rng.normal(size=(n, T_READ, 2))
            out[f"{split}_decode_mask"] = np.arange(n)[:, None] % 2 == [[0, 1]]
    return out


def evaluate(folder, sessions, rates, attr_keys=(), batch_keys=(), **kwargs):
    for s, values in enumerate(sessions):
        write_session(folder / f"s{s}.h5", values)
    data = BasicDataModule(
        folder / "s*.h5", batch_keys=batch_keys, attr_keys=attr_keys, batch_size=10
    )
    model = Known(rates)
    trainer = SimpleNamespace(datamodule=data)
    data.setup()
    return NLBEvaluation(**kwargs).evaluate(trainer, model), model


@pytest.fixture
def session():
    rng = np.random.default_rng(0)
    values = arrays(rng)
    rates = rng.gamma(2.0, 0.4, size=(42, T_ALL, N_UNITS))
    return values, rates


def test_bits_per_spike_of_held_out_neurons_and_forward_bins(session, tmp_path):
    values, rates = session
    scores, model = evaluate(tmp_path, [values], {0: rates})
    assert set(scores) == {"co_bps", "fp_bps"}
    counts, log_rates = (torch.tensor(x) for x in (values["valid_recon_data"], np.log(rates[30:])))
    held_out = np.s_[:, :T_READ, N_READ:]
    forward = np.s_[:, T_READ:]
    for name, part in (("co_bps", held_out), ("fp_bps", forward)):
        expected = bits_per_spike(log_rates[part], counts[part]).item()
        assert scores[name] == pytest.approx(expected, rel=1e-6)
    seen = [trial for _, trials in model.seen for trial in trials]
    assert seen == list(range(30, 42)), "each validation trial once, train not at all"


def test_sessions_are_pooled_with_their_own_mean_rates(tmp_path):
    rng = np.random.default_rng(1)
    sessions = [arrays(rng, behavior=False) for _ in range(2)]
    # Each channel's mean rate over the scored part: no better than the null model.
    rates = {}
    for s, values in enumerate(sessions):
        counts = values["valid_recon_data"]
        mean = np.tile(counts[:, :T_READ].mean((0, 1)), (42, T_ALL, 1))
        rates[s] = mean
    scores, _ = evaluate(tmp_path, sessions, rates)
    assert scores["co_bps"] == pytest.approx(0, abs=1e-6)
    assert scores["fp_bps"] < 0


@pytest.mark.parametrize("sweep", [False, True])
def test_behaviour_is_decoded_per_mask(session, tmp_path, sweep):
    values, rates = session
    weight = np.random.default_rng(2).normal(size=(N_UNITS, 2))
    for split, part in (("train", rates[:30]), ("valid", rates[30:])):
        values[f"{split}_behavior"][::2] += (part @ weight)[::2, :T_READ]
    scores, _ = evaluate(
        tmp_path,
        [values],
        {0: rates},
        batch_keys=["behavior"],
        attr_keys=["train_decode_mask", "valid_decode_mask"],
        decoding_cv_sweep=sweep,
    )
    expected = []
    for mask in range(2):
        chosen = [values[f"{split}_decode_mask"][:, mask] for split in ("train", "valid")]
        x = [
            r[m, :T_READ].reshape(-1, N_UNITS)
            for r, m in zip((rates[:30], rates[30:]), chosen, strict=True)
        ]
        y = [
            values[f"{split}_behavior"][m].reshape(-1, 2)
            for split, m in zip(("train", "valid"), chosen, strict=True)
        ]
        decoder = Ridge(alpha=1e-2)
        if sweep:
            decoder = GridSearchCV(Ridge(), {"alpha": np.logspace(-4, 0, 9)})
        expected.append(decoder.fit(x[0], y[0]).score(x[1], y[1]))
    assert scores["behavior_r2"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert expected[0] > 0.3 > expected[1], "one mask can be decoded, the other cannot"


def test_psth_with_condition_numbers(session, tmp_path):
    values, rates = session
    numbers = np.arange(12) % 3
    values["valid_cond_idx"] = numbers
    members = [np.flatnonzero(numbers == c) for c in range(3)]
    psth = np.stack([rates[30:, :T_READ][m].mean(0) for m in members])
    values["psth"] = psth + np.random.default_rng(3).normal(size=psth.shape) * 0.1
    scores, _ = evaluate(tmp_path, [values], {0: rates}, attr_keys=["psth", "valid_cond_idx"])
    expected = psth_r2(rates[30:], values["psth"], members)
    assert 0.5 < expected < 1
    assert scores["psth_r2"] == pytest.approx(expected, rel=1e-4)


def test_psth_of_other_neurons_is_refused(session, tmp_path):
    values, rates = session
    values |= {"psth": np.ones((3, T_READ, 2)), "valid_cond_idx": np.arange(12) % 3}
    with pytest.raises(DataError, match=r"psth has shape \(3, 8, 2\).*6 neurons"):
        evaluate(tmp_path, [values], {0: rates}, attr_keys=["psth", "valid_cond_idx"])


def test_speed_against_produced_interval(tmp_path):
    rng = np.random.default_rng(4)
    values = arrays(rng, behavior=False)
    # Rates rise by `speed` per bin between Set and Go and jump wildly outside.
    produced = rng.permutation(np.repeat([10.0, 15.0, 20.0, 25.0], 3))
    jitter = np.arange(12) % 3
    speed = 1.0 / produced
    rates = np.zeros((42, T_ALL, N_UNITS))
    for trial in range(12):
        go = T_READ - jitter[trial]
        start = go - int(produced[trial] / 5)
        rates[30 + trial] = rng.normal(size=(T_ALL, N_UNITS)) * 50
        rates[30 + trial, start:go] = speed[trial] * np.arange(go - start)[:, None]
    rates = np.abs(rates)
    behavior = np.column_stack([np.arange(12) % 2, np.zeros((12, 3)), produced])
    values |= {
        "train_behavior": np.zeros((30, 5)),
        "valid_behavior": behavior,
        "valid_jitter": jitter,
    }
    scores, _ = evaluate(
        tmp_path, [values], {0: rates}, attr_keys=["valid_jitter"], batch_keys=["behavior"]
    )
    groups = [behavior[:, 0] == k for k in (0, 1)]
    expected = np.mean([np.corrcoef(speed[g], produced[g])[0, 1] for g in groups])
    assert expected < -0.8
    assert scores["tp_corr"] == pytest.approx(expected, rel=1e-4)


def test_logged_at_the_interval_with_smoothed_values(tmp_path):
    values = arrays(np.random.default_rng(5))
    write_session(tmp_path / "data.h5", values)
    data = BasicDataModule(tmp_path / "data.h5", batch_keys=["behavior"], batch_size=16)
    model = LFADS.from_data(data, gen_dim=6, con_dim=0, ic_enc_dim=4, ic_dim=4, fac_dim=3)
    logged = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            logged.append({k: float(v) for k, v in trainer.callback_metrics.items() if "nlb" in k})

    nlb = NLBEvaluation(log_every_n_epochs=2)
    trainer = pl.Trainer(
        max_epochs=4,
        callbacks=[nlb, Watch()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=data)
    names = {"co_bps", "fp_bps", "behavior_r2"}
    assert set(logged[0]) == {f"nlb/{n}{s}" for n in names for s in ("", "_smth")}
    assert logged[1] == logged[0]
    assert logged[2]["nlb/co_bps"] != logged[0]["nlb/co_bps"]
    for name in names:
        first, second = logged[0][f"nlb/{name}"], logged[2][f"nlb/{name}"]
        assert logged[0][f"nlb/{name}_smth"] == pytest.approx(first)
        assert logged[2][f"nlb/{name}_smth"] == pytest.approx(0.3 * first + 0.7 * second)
    other = NLBEvaluation()
    other.load_state_dict(nlb.state_dict())
    assert other.state_dict().keys() == nlb.state_dict().keys()
    assert other.state_dict()["co_bps"] == nlb.state_dict()["co_bps"]
    assert math.isnan(other.state_dict()["tp_corr"])


def test_nothing_to_score_is_said_once(tmp_path):
    values = arrays(np.random.default_rng(6), behavior=False)
    for split in ("train", "valid"):
        values[f"{split}_encod_data"] = values[f"{split}_recon_data"]
    write_session(tmp_path / "data.h5", values)
    data = BasicDataModule(tmp_path / "data.h5", batch_size=16)
    model = Known({0: np.ones((42, T_ALL, N_UNITS))})
    trainer = SimpleNamespace(datamodule=data, sanity_checking=False, current_epoch=0)
    nlb = NLBEvaluation(log_every_n_epochs=1)
    with pytest.warns(UserWarning, match="nothing to score") as caught:
        for _ in range(3):
            nlb.on_validation_epoch_end(trainer, model)
    assert sum("nothing to score" in str(w.message) for w in caught) == 1


def test_arguments():
    with pytest.raises(ConfigError, match="log_every_n_epochs must be 1 or more"):
        NLBEvaluation(log_every_n_epochs=0)
    with pytest.raises(ConfigError, match="data module with a split_loader"):
        NLBEvaluation().evaluate(SimpleNamespace(datamodule=None), None)
