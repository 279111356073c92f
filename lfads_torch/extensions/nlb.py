"""Scores of the Neural Latents Benchmark during training (Pei et al. 2021, NeurIPS Datasets)."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import ArrayLike, NDArray
from pytorch_lightning.callbacks import Callback

from lfads_torch.callbacks.figures import inference
from lfads_torch.errors import ConfigError, DataError
from lfads_torch.metrics import (
    NLB_ALPHAS,
    BitsPerSpikeSums,
    ExpSmoothedMetric,
    psth_r2,
    ridge_r2,
    speed_tp_correlation,
)
from lfads_torch.tuples import SessionBatch

SCORES = ("co_bps", "fp_bps", "behavior_r2", "psth_r2", "tp_corr")
FIXED_ALPHA = 1e-2
"""Ridge penalty where none is searched for."""

FloatArray = NDArray[np.floating[Any]]


class _Split(NamedTuple):
    """One session's trials of a split: inferred rates and, where there is, behaviour."""

    rates: FloatArray
    behavior: FloatArray | None


class NLBEvaluation(Callback):
    """Log ``nlb/<score>`` and its smoothed value ``nlb/<score>_smth`` every so many epochs.

    - ``co_bps``: bits per spike of held-out neurons, within the bins that the encoders read
    - ``fp_bps``: bits per spike of all neurons in the bins beyond
    - ``behavior_r2``: R2 of behaviour (batch key ``behavior``) decoded linearly from rates,
      fitted on training trials, scored on validation trials, averaged over the columns of
      ``{train,valid}_decode_mask`` (sets of trials, each with a decoder of its own)
    - ``psth_r2``: R2 of condition-averaged rates to ``psth``, with ``valid_cond_idx`` (and
      ``valid_jitter``)
    - ``tp_corr``: correlation of neural speed with the produced interval, where behaviour is one
      row per trial and there is ``valid_jitter`` (DMFC_RSG)

    All but the batch key are attribute keys of the data module. Every score is logged only where
    its data are; of several sessions the mean, except for the bits per spike, which are pooled.
    Rates are those of the posterior means.

    Parameters
    ----------
    log_every_n_epochs : int
        Interval in epochs, beginning with the first.
    decoding_cv_sweep : bool
        Choose the decoder's ridge penalty by cross-validation within the training trials, as the
        benchmark does, instead of fixing it at 0.01.
    """

    def __init__(self, log_every_n_epochs: int = 20, decoding_cv_sweep: bool = False) -> None:
        if log_every_n_epochs < 1:
            raise ConfigError(f"log_every_n_epochs must be 1 or more, got {log_every_n_epochs}")
        self.log_every_n_epochs = log_every_n_epochs
        self.alphas = NLB_ALPHAS if decoding_cv_sweep else (FIXED_ALPHA,)
        self._smoothed = {name: ExpSmoothedMetric() for name in SCORES}
        self._warned = False

    def state_dict(self) -> dict[str, float]:
        """Smoothed scores, for a resume."""
        return {name: float(metric.smoothed) for name, metric in self._smoothed.items()}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Restore `state_dict`."""
        for name, value in state_dict.items():
            self._smoothed[name].smoothed = torch.tensor(value)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate when the interval is over."""
        if trainer.sanity_checking or trainer.current_epoch % self.log_every_n_epochs:
            return
        scores = self.evaluate(trainer, pl_module)
        if not scores and not self._warned:
            self._warned = True
            warnings.warn(
                "NLBEvaluation found nothing to score: there are neither held-out neurons, forward "
                "bins, behaviour (batch key 'behavior') nor PSTHs (attribute keys 'psth', "
                "'valid_cond_idx')",
                stacklevel=2,
            )
        for name, value in scores.items():
            self._smoothed[name].update(value)
            smoothed = self._smoothed[name].compute()
            pl_module.log_dict({f"nlb/{name}": value, f"nlb/{name}_smth": float(smoothed)})

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        """Return every score for which there are data, by name without ``nlb/``."""
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "split_loader"):
            raise ConfigError(
                "NLBEvaluation needs a data module with a split_loader, such as BasicDataModule"
            )
        bits = {"co_bps": BitsPerSpikeSums(), "fp_bps": BitsPerSpikeSums()}
        valid = _infer(pl_module, data, "valid", bits)
        per_session: dict[str, list[float]] = {}
        decoded = any(s.behavior is not None and s.behavior.ndim == 3 for s in valid.values())
        train = _infer(pl_module, data, "train") if decoded else {}
        for session, trials in valid.items():
            for name, value in self._session_scores(data, session, trials, train).items():
                per_session.setdefault(name, []).append(value)
        scores = {name: float(sums.compute()) for name, sums in bits.items()}
        scores |= {name: float(np.mean(values)) for name, values in per_session.items()}
        return {name: scores[name] for name in SCORES if math.isfinite(scores.get(name, math.nan))}

    def _session_scores(
        self, data: Any, session: int, valid: _Split, train: dict[int, _Split]
    ) -> dict[str, float]:
        scores: dict[str, float] = {}
        jitter = _attribute(data, "valid_jitter", session)
        if valid.behavior is not None and valid.behavior.ndim == 3 and session in train:
            masks = [_attribute(data, f"{split}_decode_mask", session) for split in _SPLITS]
            scores["behavior_r2"] = decoding_r2(train[session], valid, *masks, alphas=self.alphas)
        elif valid.behavior is not None and valid.behavior.ndim == 2 and jitter is not None:
            n_bins = data.sizes[session].encod_len
            mask = set_go_mask(valid.behavior[:, -1], jitter, n_bins, _bin_ms(data, session))
            scores["tp_corr"] = speed_tp_correlation(valid.rates[:, :n_bins], valid.behavior, mask)
        psth = _attribute(data, "psth", session)
        cond_idx = _attribute(data, "valid_cond_idx", session)
        if psth is not None and cond_idx is not None:
            psth = np.asarray(psth, dtype=np.float64)
            _check_psth(psth, valid.rates)
            members = trials_by_condition(cond_idx, len(psth))
            scores["psth_r2"] = psth_r2(valid.rates, psth, members, jitter)
        return scores


_SPLITS = ("train", "valid")


def decoding_r2(
    train: _Split,
    valid: _Split,
    train_mask: ArrayLike | None = None,
    valid_mask: ArrayLike | None = None,
    *,
    alphas: tuple[float, ...] = NLB_ALPHAS,
) -> float:
    """Mean R2 of behaviour decoded linearly from rates, over sets of trials.

    Parameters
    ----------
    train, valid : (rates of shape (trials, bins, neurons), behavior of shape (trials, bins, d))
        Behaviour may have fewer bins than the rates; NaN samples are left out.
    train_mask, valid_mask : array of bool, shape (trials, sets), optional
        Trials of each set; one set with all trials by default.
    alphas : tuple of float
        Ridge penalties to choose from.
    """
    pairs = []
    for trials, mask in ((train, train_mask), (valid, valid_mask)):
        chosen = np.ones((len(trials.rates), 1)) if mask is None else np.asarray(mask)
        pairs.append((trials, chosen.astype(bool).reshape(len(trials.rates), -1)))
    (train, in_train), (valid, in_valid) = pairs
    if train.behavior is None or valid.behavior is None:
        raise DataError("decoding needs behaviour in both train and valid")
    n_bins = train.behavior.shape[1]
    scores = []
    for members, held_out in zip(in_train.T, in_valid.T, strict=True):
        r2 = ridge_r2(
            train.rates[members, :n_bins],
            train.behavior[members],
            valid.rates[held_out, :n_bins],
            valid.behavior[held_out],
            alphas=alphas,
        )
        scores.append(float(r2.mean()))
    return float(np.mean(scores))


def set_go_mask(
    produced_ms: ArrayLike, jitter: ArrayLike, n_bins: int, bin_ms: float = 5.0
) -> NDArray[np.bool_]:
    """Bins between Set and Go, for windows that end `jitter` bins after Go.

    Parameters
    ----------
    produced_ms : array, shape (trials,)
        Produced interval t_p from Set to Go in ms; NaN gives no bins.
    jitter : integer array, shape (trials,)
        Bins by which the window was shifted to later times.
    n_bins : int
        Bins of the window.
    bin_ms : float
        Bin width; the benchmark's is 5 ms.

    Returns
    -------
    array of bool, shape (trials, n_bins)
    """
    go = n_bins - np.asarray(jitter, dtype=np.float64)
    start = go - np.asarray(produced_ms, dtype=np.float64) / bin_ms
    bins = np.arange(n_bins)
    return (bins >= np.round(start)[:, None]) & (bins < go[:, None])


def trials_by_condition(cond_idx: Any, n_conditions: int) -> list[NDArray[np.int64]]:
    """Lists of trials from lists of trials, or from one condition number per trial.

    Parameters
    ----------
    cond_idx : ragged array or 2-D array of trial numbers, or 1-D array of condition numbers
    n_conditions : int
        Conditions in the PSTHs.

    Raises
    ------
    DataError
        If conditions and PSTHs do not match.
    """
    entries = list(cond_idx)
    if all(np.ndim(entry) == 0 for entry in entries):
        numbers = np.asarray(entries, dtype=np.int64)
        if not np.isin(numbers, np.arange(n_conditions)).all():
            raise DataError(
                f"valid_cond_idx has condition numbers {numbers.min()} to {numbers.max()}, but "
                f"psth has {n_conditions} conditions, numbered from 0"
            )
        return [np.flatnonzero(numbers == condition) for condition in range(n_conditions)]
    if len(entries) != n_conditions:
        raise DataError(
            f"valid_cond_idx lists trials of {len(entries)} conditions, psth has {n_conditions}"
        )
    return [np.asarray(entry, dtype=np.int64).ravel() for entry in entries]


def _check_psth(psth: FloatArray, rates: FloatArray) -> None:
    if psth.ndim != 3 or psth.shape[2] != rates.shape[2]:
        raise DataError(
            f"psth has shape {psth.shape}; legal is (conditions, bins, {rates.shape[2]} neurons), "
            "with the neurons of recon_data"
        )


def _attribute(data: Any, key: str, session: int) -> Any:
    """The session's own array: the data module holds a list of them where there are several."""
    value = getattr(data, key, None)
    return value if value is None or data.n_sessions == 1 else value[session]


def _bin_ms(data: Any, session: int) -> float:
    return float(data.sessions[session].attrs.get("bin_ms", 5.0))


def _infer(
    pl_module: pl.LightningModule,
    data: Any,
    split: str,
    bits: dict[str, BitsPerSpikeSums] | None = None,
) -> dict[int, _Split]:
    """Infer the rates of all trials of a split by session, in the file's order."""
    keys = list(data.batch_keys)
    where = keys.index("behavior") if "behavior" in keys else None
    recons: Any = pl_module.recon
    rates: dict[int, list[FloatArray]] = {}
    behavior: dict[int, list[FloatArray]] = {}
    with inference(pl_module):
        for step in data.split_loader(split):
            outputs = pl_module.predict_step(step, 0, sample_posteriors=False)
            for session, (batch, extras) in step.items():
                means = outputs[session].output_params
                if bits is not None and getattr(recons[session], "for_counts", True):
                    _add_bits(bits, session, batch, means)
                rates.setdefault(session, []).append(means.float().cpu().numpy())
                if where is not None:
                    behavior.setdefault(session, []).append(extras[where].double().cpu().numpy())
    return {
        session: _Split(
            np.concatenate(parts),
            np.concatenate(behavior[session]) if session in behavior else None,
        )
        for session, parts in rates.items()
    }


def _add_bits(
    bits: dict[str, BitsPerSpikeSums], session: int, batch: SessionBatch, means: torch.Tensor
) -> None:
    _, n_bins, n_read = batch.encod_data.shape
    # As the benchmark has it, a rate of exactly zero counts as 1e-9.
    log_rates = means.double().clamp(min=1e-9).log()
    counts = batch.recon_data.double()
    parts = {
        "co_bps": (slice(n_bins), slice(n_read, None)),
        "fp_bps": (slice(n_bins, None), slice(None)),
    }
    for name, (bins, channels) in parts.items():
        if counts[:, bins, channels].numel():
            bits[name].update(log_rates[:, bins, channels], counts[:, bins, channels], key=session)
