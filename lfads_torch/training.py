"""Training of LFADS under Lightning: steps, exact epoch scores, ramps, optimiser, checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .errors import ConfigError
from .metrics import ExpSmoothedMetric
from .metrics.epoch import EpochScores
from .modules.augmentations import OBSERVED, AugmentationStack, LogFn, with_observed
from .modules.decoder import Decoding
from .modules.encoder import Encoding
from .modules.spec import to_spec
from .tuples import (
    Batch,
    BatchResult,
    LossTerms,
    Scored,
    SessionBatch,
    SessionOutput,
    sessions_of,
)

TUNABLES = (
    "dropout_rate",
    "lr_init",
    "weight_decay",
    "l2_ic_enc_scale",
    "l2_ci_enc_scale",
    "l2_gen_scale",
    "l2_con_scale",
    "kl_ic_scale",
    "kl_co_scale",
)
"""Numbers kept as tensors, so that a search can change them and each member have its own."""


class TrainingModule(pl.LightningModule):
    """What training needs of a model beside its equations.

    A subclass has the parts that `PARTS` of `lfads_torch.model` names, a method `infer`, a method
    `outputs`, and `loss_terms` with `objective`.
    """

    hparams: Any
    train_aug_stack: AugmentationStack
    infer_aug_stack: AugmentationStack
    recon: Any  # ModuleList of observation models; duck-typed, so that one's own need no base class
    dropout_rate: Tensor
    lr_init: Tensor
    weight_decay: Tensor
    l2_ic_enc_scale: Tensor
    l2_ci_enc_scale: Tensor
    l2_gen_scale: Tensor
    l2_con_scale: Tensor
    kl_ic_scale: Tensor
    kl_co_scale: Tensor
    l2_ramp: Tensor
    kl_ramp: Tensor

    def prepare_training(self) -> None:
        """Register the tunable numbers, ramps and scores; called once by the constructor."""
        for name in TUNABLES:
            self.register_buffer(name, torch.tensor(float(self.hparams[name])), persistent=False)
        for name in ("l2_ramp", "kl_ramp"):
            self.register_buffer(name, torch.zeros(()), persistent=False)
        self.set_ramps(self.current_epoch)
        self.session_names: list[str] = []
        self.session_trials: dict[int, int] = {}
        self.scores = {split: EpochScores() for split in ("train", "valid", "test")}
        self.recon_smth = ExpSmoothedMetric()

    @abstractmethod
    def infer(self, batch: Mapping[int, SessionBatch], sample: bool) -> tuple[Encoding, Decoding]:
        """Encode and decode all trials of a batch."""

    @abstractmethod
    def outputs(
        self,
        batch: Mapping[int, SessionBatch],
        encoding: Encoding,
        decoding: Decoding,
        output_means: bool,
    ) -> dict[int, SessionOutput]:
        """Split what was inferred by session and read it out."""

    @abstractmethod
    def loss_terms(
        self,
        batch: Mapping[int, SessionBatch],
        encoding: Encoding,
        decoding: Decoding,
        outputs: Mapping[int, SessionOutput],
        stack: AugmentationStack,
        log_fn: LogFn,
        split: str,
    ) -> LossTerms:
        """Compute the objective, term by term."""

    @abstractmethod
    def objective(self, recon: Tensor, l2: Tensor, kl: Tensor) -> Tensor:
        """Put the terms together."""

    @abstractmethod
    def check_data(self, data: Any) -> None:
        """Hold a data module against the model."""

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """The replaceable parts by their constructor arguments."""

    def tunables(self) -> dict[str, Tensor]:
        """Every number that a search may change, by its path below ``model.``."""
        found = {name: getattr(self, name) for name in TUNABLES}
        for i, transform in enumerate(self.train_aug_stack.transforms):
            if isinstance(transform, nn.Module):
                for name, buffer in transform.named_buffers():
                    found[f"train_aug_stack.transforms.{i}.{name}"] = buffer
        return found

    def augmented(self, batch: Mapping[int, SessionBatch], split: str) -> dict[int, SessionBatch]:
        """Apply the split's augmentations to a batch."""
        stack = self._stack(split)
        return {s: stack.process_batch(own) for s, own in batch.items()}

    def evaluated(self, batch: Mapping[int, SessionBatch], split: str) -> BatchResult:
        """Objective and what is scored of an augmented batch; nothing is kept of it."""
        batch = {s: with_observed(own) for s, own in batch.items()}
        encoding, decoding = self.infer(batch, self.hparams.variational)
        outputs = self.outputs(batch, encoding, decoding, output_means=False)
        logged: dict[str, list[Tensor]] = {}

        def log_fn(name: str, value: Any, **_: Any) -> None:
            value = torch.as_tensor(value).detach()
            logged.setdefault(name.removeprefix(f"{split}/"), []).append(value)

        stack = self._stack(split)
        terms = self.loss_terms(batch, encoding, decoding, outputs, stack, log_fn, split)
        scored = {}
        with torch.no_grad():
            for s, own in batch.items():
                params = outputs[s].output_params.detach()
                n_trials, n_bins, n_read = own.encod_data.shape
                found: dict[str, Tensor] = {}
                if getattr(self.recon[s], "for_counts", False):
                    found |= {"counts": own.recon_data, "log_rates": params[..., 0]}
                observed = (own.masks or {}).get(OBSERVED)
                if own.truth.numel():
                    truth = own.truth
                    if observed is not None:
                        truth = torch.where(observed, truth, torch.nan)
                    found |= {"truth": truth, "means": self.recon[s].compute_means(params)}
                if observed is not None and self.hparams.recon_reduce_mean:
                    found["weight"] = torch.count_nonzero(observed)
                recon = terms.session_recon[s].detach()
                scored[s] = Scored(recon, n_trials, (n_bins, n_read), **found)
        return BatchResult(terms, logged, scored)

    def _stack(self, split: str) -> AugmentationStack:
        return self.train_aug_stack if split == "train" else self.infer_aug_stack

    def _shared_step(self, batch: Batch, split: str) -> Tensor:
        result = self.evaluated(self.augmented(sessions_of(batch), split), split)
        count_batch(self.scores[split], result)
        return result.terms.total

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the objective of a batch, with the training augmentations."""
        return self._shared_step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the objective of a batch, with the inference augmentations."""
        return self._shared_step(batch, "valid")

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """As in validation."""
        return self._shared_step(batch, "test")

    def predict_step(
        self, batch: Batch, batch_idx: int, sample_posteriors: bool = True
    ) -> dict[int, SessionOutput]:
        """Infer one posterior sample (or the posterior means) for a dataloader's batch.

        Bins past a trial's end are NaN.
        """
        own = {s: self.infer_aug_stack.process_batch(b) for s, b in sessions_of(batch).items()}
        found = self(own, sample_posteriors=sample_posteriors and self.hparams.variational)
        return {s: output.ended(own[s].lengths) for s, output in found.items()}

    def configure_optimizers(self) -> Any:
        """AdamW and, where `lr_scheduler` is set, `ReduceLROnPlateau`."""
        hp = self.hparams
        trained = [p for p in self.parameters() if p.requires_grad and p.numel()]
        optimizer = torch.optim.AdamW(
            trained,
            lr=self.lr_init.item(),
            betas=(hp.lr_adam_beta1, hp.lr_adam_beta2),
            eps=hp.lr_adam_epsilon,
            weight_decay=self.weight_decay.item(),
            fused=all(p.device.type in ("cpu", "cuda") for p in trained),
        )
        if not hp.lr_scheduler:
            return optimizer
        scheduler = ReduceLROnPlateau(
            optimizer,
            factor=hp.lr_decay,
            patience=hp.lr_patience,
            threshold=0.0,
            min_lr=hp.lr_stop,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "valid/recon_smth"},
        }

    def setup(self, stage: str) -> None:
        """Hold the data against the model before anything is trained."""
        data = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "sessions"):
            self.check_data(data)

    def set_ramps(self, epoch: int) -> None:
        """Set the ramps of an epoch."""
        hp = self.hparams
        for ramp, start, increase in (
            (self.l2_ramp, hp.l2_start_epoch, hp.l2_increase_epoch),
            (self.kl_ramp, hp.kl_start_epoch, hp.kl_increase_epoch),
        ):
            ramp.fill_(min(1.0, max(0.0, (epoch + 1 - start) / (increase + 1))))

    @property
    def ramped_weight_decay(self) -> float:
        """AdamW's weight decay in the epoch whose ramps are set."""
        return self.weight_decay.item() * self.l2_ramp.item()

    def on_train_epoch_start(self) -> None:
        """Set the ramps of this epoch."""
        self.scores["train"].reset()
        self.set_ramps(self.current_epoch)
        for group in self.trainer.optimizers[0].param_groups:
            group["weight_decay"] = self.ramped_weight_decay

    def on_validation_epoch_start(self) -> None:
        """Start the scores anew."""
        self.scores["valid"].reset()

    def on_test_epoch_start(self) -> None:
        """Start the scores anew."""
        self.scores["test"].reset()

    def summary(self, scores: EpochScores) -> dict[str, Tensor]:
        """Every number of an epoch by its name in the log, without the split."""
        by_trial = self.hparams.weigh_sessions == "trial"
        found = scores.compute(self.session_trials if by_trial else None)
        kl = found["wt_kl/ic"] + found["wt_kl/co"]
        found["wt_kl"] = kl
        found["loss"] = self.objective(found["recon"], found["wt_l2"], kl)
        found["wt_l2/ramp"], found["wt_kl/ramp"] = self.l2_ramp, self.kl_ramp
        return found

    def _log_scores(self, split: str) -> dict[str, Tensor]:
        found = self.summary(self.scores[split])
        self.log_dict({f"{split}/{k}": v.float() for k, v in found.items()})
        return found

    def on_train_epoch_end(self) -> None:
        """Log the epoch's exact means."""
        self._log_scores("train")
        self.log("cur_epoch", float(self.current_epoch))
        for name, value in self.tunables().items():
            self.log(f"hp/{name}", value)

    def on_validation_epoch_end(self) -> None:
        """Log the scores and smooth the reconstruction loss."""
        scores = self._log_scores("valid")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.recon_smth.update(scores["recon"])
        smoothed = self.recon_smth.smoothed
        self.log_dict({"valid/recon_smth": smoothed, "hp_metric": smoothed})

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("test")

    def extra_state(self) -> dict[str, Tensor]:
        """State beside the parameters that training needs to go on."""
        return {"recon_smth": self.recon_smth.smoothed.clone()}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `extra_state` gave."""
        self.recon_smth.smoothed = state["recon_smth"].to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the model by plain numbers and names, beside the state of training."""
        stored = checkpoint.get("hyper_parameters", self.hparams)
        checkpoint["hyper_parameters"] = {
            # Numbers of NumPy are no plain ones: to load them would take arbitrary unpickling.
            name: value.item() if hasattr(value, "item") else value
            for name, value in stored.items()
        }
        checkpoint["lfads"] = {
            "session_names": list(self.session_names),
            "parts": {name: to_spec(part) for name, part in self.parts().items()},
            "frozen": [name for name, p in self.named_parameters() if not p.requires_grad],
            "extra": self.extra_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of training; refuse a checkpoint of other sessions."""
        own = checkpoint.get("lfads")
        if own is None:
            return
        theirs = own["session_names"]
        if self.session_names and theirs and self.session_names != theirs:
            raise ConfigError(
                f"the checkpoint was trained on the sessions {', '.join(theirs)}, the data are "
                f"{', '.join(self.session_names)}; go on with the same files"
            )
        self.load_extra_state(own["extra"])


@torch.no_grad()
def count_batch(scores: EpochScores, result: BatchResult) -> None:
    """Add a batch to the scores of an epoch."""
    n_total = sum(own.n_trials for own in result.scored.values())
    for name, values in result.logged.items():
        for value in values:
            scores.terms.add(name, value, n_total)
    terms = result.terms
    scores.add_terms({"wt_l2": terms.l2, "wt_kl/ic": terms.kl_ic, "wt_kl/co": terms.kl_co}, n_total)
    for s, own in result.scored.items():
        scores.add_session(s, own.recon, own.n_trials if own.weight is None else own.weight)
        if own.log_rates is not None and own.counts is not None:
            n_bins, n_read = own.window
            scores.add_log_rates(s, own.log_rates, own.counts, n_read, n_bins)
        if own.means is not None and own.truth is not None:
            scores.r2.update(own.means, own.truth, key=s)
