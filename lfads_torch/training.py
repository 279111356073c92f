"""Training of LFADS under Lightning: steps, exact epoch scores, ramps, optimiser, checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .errors import ConfigError
from .metrics import ExpSmoothedMetric
from .metrics.epoch import EpochScores
from .modules.augmentations import AugmentationStack, LogFn
from .modules.decoder import Decoding
from .modules.encoder import Encoding
from .modules.spec import to_spec
from .tuples import Batch, SessionBatch, SessionOutput, sessions_of

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


class LossTerms(NamedTuple):
    """Named terms of the objective, scalars; `session_recon` by session, `recon` their mean."""

    total: Tensor
    recon: Tensor
    l2: Tensor
    kl_ic: Tensor
    kl_co: Tensor
    session_recon: dict[int, Tensor]


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
        self._set_ramps()
        self.session_names: list[str] = []
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

    def _shared_step(self, batch: Batch, split: str) -> Tensor:
        stack = self.train_aug_stack if split == "train" else self.infer_aug_stack
        scores = self.scores[split]
        own = {s: stack.process_batch(b) for s, b in sessions_of(batch).items()}
        encoding, decoding = self.infer(own, self.hparams.variational)
        outputs = self.outputs(own, encoding, decoding, output_means=False)
        n_trials = {s: b.encod_data.shape[0] for s, b in own.items()}
        n_total = sum(n_trials.values())

        def log_fn(name: str, value: Tensor, **_: Any) -> None:
            scores.terms.add(name.removeprefix(f"{split}/"), value, n_total)

        terms = self.loss_terms(own, encoding, decoding, outputs, stack, log_fn, split)
        scores.add_terms(
            {"wt_l2": terms.l2, "wt_kl/ic": terms.kl_ic, "wt_kl/co": terms.kl_co}, n_total
        )
        with torch.no_grad():
            for s, session_batch in own.items():
                scores.add_session(s, terms.session_recon[s], n_trials[s])
                truth, counts = session_batch.truth, session_batch.recon_data
                params = outputs[s].output_params
                if getattr(self.recon[s], "for_counts", False):
                    _, n_bins, n_read = session_batch.encod_data.shape
                    scores.add_log_rates(s, params[..., 0], counts, n_read, n_bins)
                if truth.numel():
                    scores.r2.update(self.recon[s].compute_means(params), truth, key=s)
        return terms.total

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
        """Infer one posterior sample (or the posterior means) for a dataloader's batch."""
        own = {s: self.infer_aug_stack.process_batch(b) for s, b in sessions_of(batch).items()}
        return self(own, sample_posteriors=sample_posteriors and self.hparams.variational)

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

    def _set_ramps(self) -> None:
        hp = self.hparams
        for ramp, start, increase in (
            (self.l2_ramp, hp.l2_start_epoch, hp.l2_increase_epoch),
            (self.kl_ramp, hp.kl_start_epoch, hp.kl_increase_epoch),
        ):
            ramp.fill_(min(1.0, max(0.0, (self.current_epoch + 1 - start) / (increase + 1))))

    def on_train_epoch_start(self) -> None:
        """Set the ramps of this epoch."""
        self.scores["train"].reset()
        self._set_ramps()
        decay = self.weight_decay.item() * self.l2_ramp.item()
        for group in self.trainer.optimizers[0].param_groups:
            group["weight_decay"] = decay

    def on_validation_epoch_start(self) -> None:
        """Start the scores anew."""
        self.scores["valid"].reset()

    def on_test_epoch_start(self) -> None:
        """Start the scores anew."""
        self.scores["test"].reset()

    def _log_scores(self, split: str) -> dict[str, Tensor]:
        scores = self.scores[split].compute()
        kl = scores["wt_kl/ic"] + scores["wt_kl/co"]
        scores["wt_kl"] = kl
        scores["loss"] = self.objective(scores["recon"], scores["wt_l2"], kl)
        scores["wt_l2/ramp"], scores["wt_kl/ramp"] = self.l2_ramp, self.kl_ramp
        self.log_dict({f"{split}/{k}": v.float() for k, v in scores.items()})
        return scores

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
