"""Scores of the Neural Latents Benchmark during training (Pei et al. 2021, NeurIPS Datasets)."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback

from ..callbacks.figures import inference
from ..errors import ConfigError
from ..metrics import (
    NLB_ALPHAS,
    SMOOTHING,
    BitsPerSpikeSums,
    ExpSmoothedMetric,
)
from ..metrics.nlb import NLB_BIN_MS, NLB_SCORES, RatesAndBehavior, nlb_scores
from ..tuples import SessionBatch

FIXED_ALPHA = 1e-2
"""Ridge penalty where none is searched for."""

FloatArray = NDArray[np.floating[Any]]


class NLBEvaluation(Callback):
    """Log ``nlb/<score>`` and its smoothed value ``nlb/<score>_smth`` at an interval.

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
    """

    def __init__(self, log_every_n_epochs: int = 20, decoding_cv_sweep: bool = False) -> None:
        if log_every_n_epochs < 1:
            raise ConfigError(f"log_every_n_epochs must be 1 or more, got {log_every_n_epochs}")
        self.log_every_n_epochs = log_every_n_epochs
        self.alphas = NLB_ALPHAS if decoding_cv_sweep else (FIXED_ALPHA,)
        self._smoothed = {name: ExpSmoothedMetric(SMOOTHING) for name in NLB_SCORES}
        self._warned = False

    def state_dict(self) -> dict[str, float]:
        """Return smoothed scores, for a resume."""
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
                "NLBEvaluation has nothing to score: the data lack held-out neurons, forward "
                "bins, behaviour (batch key 'behavior') and PSTHs (attribute keys 'psth', "
                "'valid_cond_idx')",
                stacklevel=2,
            )
        for name, value in scores.items():
            smoothed = self._smoothed[name].smooth(value)
            pl_module.log_dict({f"nlb/{name}": value, f"nlb/{name}_smth": float(smoothed)})

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        """Return every score for which data exist, by name without ``nlb/``."""
        # A second inference: validation has inferred these trials from posterior samples, but the
        # scores are of posterior means, and their decoder needs training trials without dropout.
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
        return {
            name: scores[name] for name in NLB_SCORES if math.isfinite(scores.get(name, math.nan))
        }

    def _session_scores(
        self, data: Any, session: int, valid: RatesAndBehavior, train: dict[int, RatesAndBehavior]
    ) -> dict[str, float]:
        def own(key: str) -> Any:
            return _attribute(data, key, session)

        sizes = data.sizes[session]
        return nlb_scores(
            valid,
            n_read=(sizes.encod_len, sizes.encod_dim),
            train=train.get(session),
            masks=(own("train_decode_mask"), own("valid_decode_mask")),
            psth=own("psth"),
            cond_idx=own("valid_cond_idx"),
            jitter=own("valid_jitter"),
            bin_ms=data.sessions[session].bin_ms or NLB_BIN_MS,
            alphas=self.alphas,
        )


def _attribute(data: Any, key: str, session: int) -> Any:
    """Return the session's own array of an attribute key, where there is one."""
    return data.sessions[session].arrays.get(key)


def _infer(
    pl_module: pl.LightningModule,
    data: Any,
    split: str,
    bits: dict[str, BitsPerSpikeSums] | None = None,
) -> dict[int, RatesAndBehavior]:
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
        session: RatesAndBehavior(
            np.concatenate(parts),
            np.concatenate(behavior[session]) if session in behavior else None,
        )
        for session, parts in rates.items()
    }


def _add_bits(
    bits: dict[str, BitsPerSpikeSums], session: int, batch: SessionBatch, means: torch.Tensor
) -> None:
    _, n_bins, n_read = batch.encod_data.shape
    # The benchmark counts a rate of exactly zero as 1e-9.
    log_rates = means.double().clamp(min=1e-9).log()
    counts = batch.recon_data.double()
    parts = {
        "co_bps": (slice(n_bins), slice(n_read, None)),
        "fp_bps": (slice(n_bins, None), slice(None)),
    }
    for name, (bins, channels) in parts.items():
        if counts[:, bins, channels].numel():
            bits[name].update(log_rates[:, bins, channels], counts[:, bins, channels], key=session)
