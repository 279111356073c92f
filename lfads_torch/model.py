"""LFADS under Lightning: arguments, steps, ramps, optimiser, checkpoint, and checks of the data.

The network is in `lfads_torch.network`, its objective in `lfads_torch.objective`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from .arguments import NUMBERS, TUNABLES
from .compat.training import take_over
from .errors import ConfigError
from .metrics import SMOOTHING, ExpSmoothedMetric
from .metrics.epoch import BITS, EpochScores
from .model_checks import (
    check_arguments,
    check_batch,
    check_behavior,
    check_sizes,
    check_support,
    values_for,
)
from .modules.augmentations import AugmentationStack
from .modules.spec import to_spec
from .network import PARTS, Network
from .objective import Weights, augment, count_batch, evaluate, total
from .optimiser import READOUT, build_optimisers, clip, keep_arguments
from .progress import html_table
from .provenance import provenance
from .tuples import Batch, BatchResult, SessionBatch, SessionOutput, last_bins, sessions_of


# `Network` comes before Lightning's class, so that its `forward` counts. One call constructs both,
# because `Network` passes the call on to the next class.
class LFADS(Network, pl.LightningModule):
    """Latent factor analysis via dynamical systems.

    Use `LFADS.from_data` to have sizes read from the data. You can replace every module that is an
    argument by your own.

    Parameters
    ----------
    encod_data_dim : int
        Channels that the encoders read, after read-in.
    encod_seq_len : int
        Bins that the encoders read.
    recon_seq_len : int, optional
        Bins that are reconstructed; default: `encod_seq_len`.
    ext_input_dim : int
        Channels of external input to the generator.
    ic_enc_seq_len : int
        Bins at the start that only the IC encoder reads; 0: both encoders read all bins.
    ic_enc_dim, ci_enc_dim, con_dim, gen_dim : int
        Units of the IC encoder and the CI encoder (per direction), the controller and the
        generator. There is a controller only when `ci_enc_dim`, `con_dim` and `co_dim` are all
        > 0.
    ci_lag : int
        Bins by which the controller sees the encoder late (forward) and early (backward).
    co_dim, ic_dim, fac_dim : int
        Dimensions of inferred inputs, initial conditions and factors.
    dropout_rate : float
        Probability that dropout zeroes an entry, 0 to below 1.
    reconstruction : Module, or list of Modules, optional
        Observation model, one for all sessions or one per session; default: `Poisson`. A list may
        be a `ModuleList`, a list, a tuple or a ListConfig, here and below.
    variational : bool
        Whether initial conditions and inferred inputs are sampled. Without, priors must be `Null`.
    co_prior : Module, optional
        Prior of inferred inputs; default: `AutoregressiveMultivariateNormal(tau=10, nvar=0.1)`.
    ic_prior : Module, optional
        Prior of initial conditions; default: `MultivariateNormal(mean=0, variance=0.1)`.
    ic_post_var_min : float
        Floor of the variance of the initial condition's posterior.
    cell_clip : float
        Bound of the recurrent states; infinite: none.
    train_aug_stack : AugmentationStack, optional
        Augmentations in training; default: none.
    infer_aug_stack : AugmentationStack, optional
        Augmentations in validation and sampling; default: none.
    readin : Module, or list of Modules, optional
        Map from channels to the encoders' input, one per session; default: identity.
    readout : Module, or list of Modules, optional
        Map from factors to the observation's parameters, one per session; default: `FanInLinear`.
    loss_scale : float
        Factor of the whole objective.
    recon_reduce_mean : bool
        Average the loss over bins and channels instead of summing.
    weigh_sessions : {"session", "trial"}
        What weighs the same in the objective: every session, or every training trial of the data
        (a session then weighs by its number of trials).
    lr_scheduler : bool
        Lower the learning rate on plateaus of `valid/recon_smth`: times `lr_decay` after
        `lr_patience` epochs, down to `lr_stop`.
    lr_init : float
        Learning rate of AdamW at the start.
    lr_stop : float
        Lowest learning rate.
    lr_decay : float
        Factor of the learning rate at a plateau, 0 to 1.
    lr_patience : int
        Epochs without improvement that make a plateau.
    lr_adam_beta1, lr_adam_beta2 : float
        Decay of AdamW's first and second moment per step.
    lr_adam_epsilon : float
        AdamW's addend to the root of the second moment.
    weight_decay : float
        Weight decay of AdamW, times the L2 ramp.
    l2_start_epoch, kl_start_epoch : int
        Epoch at which the ramp of the L2 and the KL terms starts.
    l2_increase_epoch, kl_increase_epoch : int
        Epochs until that ramp reaches 1.
    l2_ic_enc_scale, l2_ci_enc_scale, l2_gen_scale, l2_con_scale : float
        Weight of the squared recurrent weights of IC encoder, CI encoder, generator and controller.
    kl_ic_scale, kl_co_scale : float
        Weight of the KL of initial conditions and of inferred inputs.
    kernel : str
        Implementation of the recurrent nets, see `lfads_torch.kernels`.
    causal : bool
        Read no later bin, so that a stream can go on bin by bin: the CI encoder runs forward only,
        and the initial condition comes from the first `ic_enc_seq_len` bins, or is learned and the
        same for all trials where that is 0.
    tbptt_bins : int
        Of a causal model: bins after which states go on without their gradient, so that windows can
        be much longer; 0: none.
    behavior_dim : int
        Dimensions of behaviour that a linear readout, the same for all sessions, learns to predict
        with the model; 0: none. `from_data` reads it from the data where it is None.
    behavior_from : {"gen_states", "factors", "rates"}
        What is read out; of one session also log rates (means where the link is no logarithm).
    behavior_scale : float
        Weight of the mean squared error of standardised behaviour.
    behavior_start_epoch, behavior_increase_epoch : int
        Epoch at which the ramp of that term starts, and epochs until it reaches 1.
    behavior_lr : float, optional
        Learning rate of the readout; default: `lr_init`.
    behavior_detach : bool
        Train the readout alone: no gradient goes from it into the model.

    Raises
    ------
    ConfigError
        For arguments that are out of range or contradict one another.
    """

    hparams: Any
    lr_init: Tensor
    weight_decay: Tensor
    l2_ramp: Tensor
    kl_ramp: Tensor
    behavior_ramp: Tensor

    def __init__(
        self,
        encod_data_dim: int | None = None,
        encod_seq_len: int | None = None,
        recon_seq_len: int | None = None,
        ext_input_dim: int = 0,
        ic_enc_seq_len: int = 0,
        ic_enc_dim: int = 64,
        ci_enc_dim: int = 64,
        ci_lag: int = 1,
        con_dim: int = 64,
        co_dim: int = 4,
        ic_dim: int = 64,
        gen_dim: int = 100,
        fac_dim: int = 40,
        dropout_rate: float = 0.05,
        reconstruction: Any = None,
        variational: bool = True,
        co_prior: nn.Module | None = None,
        ic_prior: nn.Module | None = None,
        ic_post_var_min: float = 1e-4,
        cell_clip: float = 5.0,
        train_aug_stack: AugmentationStack | None = None,
        infer_aug_stack: AugmentationStack | None = None,
        readin: Any = None,
        readout: Any = None,
        loss_scale: float = 1e4,
        recon_reduce_mean: bool = True,
        lr_scheduler: bool = False,
        lr_init: float = 4e-3,
        lr_stop: float = 1e-5,
        lr_decay: float = 0.95,
        lr_patience: int = 6,
        lr_adam_beta1: float = 0.9,
        lr_adam_beta2: float = 0.999,
        lr_adam_epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        l2_start_epoch: int = 0,
        l2_increase_epoch: int = 80,
        l2_ic_enc_scale: float = 0.0,
        l2_ci_enc_scale: float = 0.0,
        l2_gen_scale: float = 0.1,
        l2_con_scale: float = 0.1,
        kl_start_epoch: int = 0,
        kl_increase_epoch: int = 80,
        kl_ic_scale: float = 1e-6,
        kl_co_scale: float = 1e-6,
        kernel: str = "auto",
        weigh_sessions: str = "session",
        causal: bool = False,
        tbptt_bins: int = 0,
        behavior_dim: int | None = 0,
        behavior_from: str = "gen_states",
        behavior_scale: float = 0.1,
        behavior_start_epoch: int = 0,
        behavior_increase_epoch: int = 80,
        behavior_lr: float | None = None,
        behavior_detach: bool = False,
    ) -> None:
        given = dict(locals())
        if recon_seq_len is None:
            recon_seq_len = given["recon_seq_len"] = encod_seq_len
        check_arguments(given)
        network = inspect.signature(Network).parameters
        super().__init__(**{name: given[name] for name in network})
        self.save_hyperparameters(ignore=list(PARTS))
        # Under these names, too, for callbacks that read them. The loggers and the checkpoint do
        # not see them: those hold numbers only.
        self.hparams.update({name: getattr(self, name) for name in _PARTS_IN_HPARAMS})
        # Buffers outside the state dict: checkpoints keep their keys, and a population stacks them.
        for name in TUNABLES:
            self.register_buffer(name, torch.tensor(float(given[name])), persistent=False)
        self._numbers_set = {name: self.hparams[name] for name in TUNABLES}
        self._epoch = 0
        for name in _RAMPS:
            start, increase = given[f"{name}_start_epoch"], given[f"{name}_increase_epoch"]
            ramp = torch.tensor(LFADS._compute_ramp(self, start, increase))
            self.register_buffer(f"{name}_ramp", ramp, persistent=False)
        self.session_names: list[str] = []
        self.session_trials: dict[int, int] = {}
        self._incomplete: set[int] = set()
        self._behavior_key: int | None = None  # where the extras of a batch hold behaviour
        self.scores = {split: EpochScores() for split in ("train", "valid", "test")}
        self.valid_recon_smth = ExpSmoothedMetric(SMOOTHING)
        self.valid_bits_smth = ExpSmoothedMetric(SMOOTHING)  # one for each of `BITS`

    @classmethod
    def from_data(cls, data: Any, **arguments: Any) -> LFADS:
        """Build a model whose sizes are read from the data.

        Parameters
        ----------
        data : BasicDataModule, or str or Path
            The data module, or the path or glob pattern of the session files.
        **arguments
            Arguments of the constructor. Sizes that are missing or None are read from the data.

        Raises
        ------
        UserError
            Where arguments contradict the data.
        """
        legal = inspect.signature(cls).parameters
        unknown = sorted(set(arguments) - set(legal))
        if unknown:
            raise ConfigError(f"unknown argument {unknown[0]!r}; legal are {', '.join(legal)}")
        data = _as_datamodule(data)
        model = cls(**values_for(data, arguments))
        model.check_data(data)
        return model

    # ---- tunable numbers, ramps and weights ------------------------------------------------------

    def _repr_html_(self) -> str:
        hp = self.hparams
        return html_table(
            "LFADS",
            {
                "sessions": len(self.readin),
                "bins read, reconstructed": f"{hp['encod_seq_len']}, {hp['recon_seq_len']}",
                "generator, factors": f"{hp['gen_dim']}, {hp['fac_dim']}",
                "initial conditions, inferred inputs": f"{hp['ic_dim']}, {hp['co_dim']}",
                "reconstruction": type(self.recon[0]).__name__,
                "parameters": f"{sum(p.numel() for p in self.parameters()):,}",
                "device": self.device,
            },
        )

    def tunables(self) -> dict[str, Tensor]:
        """Return every number that a search may change, by its path below ``model.``."""
        names = [n for n in TUNABLES if n != "behavior_scale" or self.behavior is not None]
        tensors = {name: getattr(self, name) for name in names}
        for i, transform in enumerate(self.train_aug_stack.transforms):
            if isinstance(transform, nn.Module):
                for name, buffer in transform.named_buffers():
                    tensors[f"train_aug_stack.transforms.{i}.{name}"] = buffer
        return tensors

    @property
    def weights(self) -> Weights:
        """How the objective weighs its terms, with the ramps of the current epoch."""
        hp = self.hparams
        scales = {name.removesuffix("_scale"): getattr(self, name) for name in _SCALES}
        trials = self.session_trials if hp.weigh_sessions == "trial" else None
        return Weights(
            loss=hp.loss_scale,
            l2_ramp=self.l2_ramp,
            kl_ramp=self.kl_ramp,
            mean=hp.recon_reduce_mean,
            trials=trials,
            behavior_ramp=self.behavior_ramp,
            **scales,
        )

    def set_ramps(self, epoch: int) -> None:
        """Set the ramps of an epoch."""
        hp, self._epoch = self.hparams, epoch
        for name in _RAMPS:
            start, increase = hp[f"{name}_start_epoch"], hp[f"{name}_increase_epoch"]
            getattr(self, f"{name}_ramp").fill_(self._compute_ramp(start, increase))

    def _compute_ramp(self, start: float, increase: float) -> float:
        """Return a ramp at the present epoch, 0 to 1; your own model may override it."""
        return min(1.0, max(0.0, (self._epoch + 1 - start) / (increase + 1)))

    def _take_changed_numbers(self) -> None:
        """Take what a callback has written into `hparams` since they were last looked at."""
        # Only what changed: a search changes the tensors and leaves `hparams` as they were.
        for name, before in self._numbers_set.items():
            if (value := self.hparams[name]) != before:
                getattr(self, name).fill_(NUMBERS[name].check(name, value))
                self._numbers_set[name] = value

    @property
    def ramped_weight_decay(self) -> float:
        """AdamW's weight decay in the epoch whose ramps are set."""
        return self.weight_decay.item() * self.l2_ramp.item()

    # ---- steps -----------------------------------------------------------------------------------

    def aug_stack(self, split: str) -> AugmentationStack:
        """Return the augmentations of a split."""
        return self.train_aug_stack if split == "train" else self.infer_aug_stack

    def evaluated(self, batch: Mapping[int, SessionBatch], split: str) -> BatchResult:
        """Augment a batch and compute its objective and scores; nothing is kept of it."""
        stack = self.aug_stack(split)
        return evaluate(self, self.weights, augment(stack, batch), stack, split)

    def _shared_step(self, batch: Batch, batch_idx: int, split: str) -> Tensor:
        sessions = self._sessions(batch)
        if split == "train":
            check_batch(self.behavior, sessions)
        result = self.evaluated(sessions, split)
        count_batch(self.scores[split], result)
        return result.terms.total

    def _sessions(self, batch: Batch) -> dict[int, SessionBatch]:
        """Return the sessions of a batch, with lengths where trials end early, and behaviour."""
        # Lightning's double precision rebuilds a batch from its five fields, without any other.
        sessions, key = sessions_of(batch), self._behavior_key
        for session, trials in sessions.items():
            if session in self._incomplete and trials.lengths is None:
                sessions[session] = trials._replace(lengths=last_bins(trials.recon_data))
            given: Any = None if isinstance(batch, SessionBatch) else batch[session]
            if key is not None and trials.behavior is None and len(given or ()) == 2:
                sessions[session] = sessions[session]._replace(behavior=given[1][key])
        return sessions

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the objective of a batch, with the training augmentations."""
        return self._shared_step(batch, batch_idx, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the objective of a batch, with the inference augmentations."""
        return self._shared_step(batch, batch_idx, "valid")

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the objective of a batch, as in validation."""
        return self._shared_step(batch, batch_idx, "test")

    def predict_step(
        self, batch: Batch, batch_idx: int, sample_posteriors: bool = True
    ) -> dict[int, SessionOutput]:
        """Infer one posterior sample, or the posterior means, for a dataloader's batch.

        Bins past a trial's end are NaN.

        Parameters
        ----------
        batch : dict of int to (SessionBatch, tuple), or of int to SessionBatch
            Trials by session, with or without the extras of a dataloader.
        batch_idx : int
            Number of the batch; not used.
        sample_posteriors : bool
            Draw from the posteriors, where the model is variational.
        """
        stack, n_bins = self.infer_aug_stack, self.hparams.recon_seq_len
        sessions = self._sessions(batch)
        augmented = {s: stack.process_batch(trials) for s, trials in sessions.items()}
        outputs = self(augmented, sample_posteriors=sample_posteriors and self.variational)
        stack.reset()
        return {s: output.ended(augmented[s].lengths, n_bins) for s, output in outputs.items()}

    # ---- the optimiser ---------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Return AdamW and, where `lr_scheduler` is set, `ReduceLROnPlateau`."""
        trainer = self._trainer
        return build_optimisers(
            self,
            is_mixed=trainer is not None and str(trainer.precision).endswith("mixed"),
            every=(trainer and trainer.check_val_every_n_epoch) or 1,
        )

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients, those of a readout of behaviour by themselves."""
        if self.behavior is None:
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )
        elif gradient_clip_val:
            clip(optimizer.param_groups, gradient_clip_val, gradient_clip_algorithm or "norm")

    # ---- epochs ----------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that the data fit the model before anything is trained."""
        data = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "sessions"):
            self.check_data(data)

    def on_train_epoch_start(self) -> None:
        """Set the ramps of this epoch."""
        self.scores["train"].reset()
        self._take_changed_numbers()
        self.set_ramps(self.current_epoch)
        for group in self.trainer.optimizers[0].param_groups:
            if not group.get(READOUT):
                group["weight_decay"] = self.ramped_weight_decay

    def on_validation_epoch_start(self) -> None:
        """Reset the scores."""
        self.scores["valid"].reset()

    def on_test_epoch_start(self) -> None:
        """Reset the scores."""
        self.scores["test"].reset()

    def summary(self, scores: EpochScores) -> dict[str, Tensor]:
        """Return every number of an epoch by its name in the log, without the split."""
        weights = self.weights
        numbers = scores.compute(weights.trials)
        numbers["wt_kl"] = numbers["wt_kl/ic"] + numbers["wt_kl/co"]
        terms = numbers["recon"], numbers["wt_l2"], numbers["wt_kl"], numbers.get("behavior_mse")
        numbers["loss"] = total(weights, *terms)
        numbers["wt_l2/ramp"], numbers["wt_kl/ramp"] = weights.l2_ramp, weights.kl_ramp
        return numbers

    def _log_scores(self, split: str) -> dict[str, Tensor]:
        numbers = self.summary(self.scores[split])
        named = {f"{split}/{k}": v.float() for k, v in numbers.items()}
        self._log_epoch(named)
        return numbers

    def _log_epoch(self, numbers: Mapping[str, Any]) -> None:
        """Log numbers of an epoch with its last batch.

        Not when the epoch ends: callbacks that read `callback_metrics` there come before.
        """
        how: Any = {"on_step": False, "on_epoch": True, "add_dataloader_idx": False}
        self.log_dict({k: torch.as_tensor(v) for k, v in numbers.items()}, batch_size=1, **how)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the epoch's exact means with its last batch, and every tunable number."""
        if not self.trainer.is_last_batch:
            return
        self._log_scores("train")
        numbers: dict[str, Any] = {"cur_epoch": float(self.current_epoch)}
        numbers |= {f"hp/{name}": value for name, value in self.tunables().items()}
        for transform in self.train_aug_stack.batch_transforms:
            if hasattr(transform, "cd_rate"):
                numbers["hp/cd_rate"] = transform.cd_rate
        self._log_epoch(numbers)

    def on_validation_batch_end(self, *args: Any) -> None:
        """Log the scores, and smoothed the reconstruction loss and bits per spike."""
        alone = self.trainer.state.fn == "validate"
        loop = self.trainer.validate_loop if alone else self.trainer.fit_loop.epoch_loop.val_loop
        if not loop.batch_progress.is_last_batch:
            return
        scores = self._log_scores("valid")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.valid_recon_smth.smooth(scores["recon"])
            bits = [scores[name].float().to(self.device) for name in BITS]
            self.valid_bits_smth.smooth(torch.stack(bits))
        smoothed = {"valid/recon_smth": self.valid_recon_smth.smoothed}
        # A score that has no meaning for the data is missing, so that nothing can wait for it.
        smoothed |= {
            f"valid/{name}_smth": value
            for name, value in zip(BITS, self.valid_bits_smth.smoothed.expand(3), strict=True)
            if self.scores["valid"].bits[name]
        }
        self._log_epoch({**smoothed, "hp_metric": scores["recon"].float()})

    def on_test_batch_end(self, *args: Any) -> None:
        """Log the scores."""
        if self.trainer.test_loop.batch_progress.is_last_batch:
            self._log_scores("test")

    # ---- checkpoints -----------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Tensor]:
        """Return what training needs to go on, in addition to parameters and optimiser."""
        return {
            "recon_smth": self.valid_recon_smth.smoothed.clone(),
            "bits_smth": self.valid_bits_smth.smoothed.clone(),
        }

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `extra_state` gave."""
        self.valid_recon_smth.smoothed = state["recon_smth"].to(self.device)
        if "bits_smth" in state:  # checkpoints so far have none
            self.valid_bits_smth.smoothed = state["bits_smth"].to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the model by plain numbers and names, in addition to the state of training."""
        stored = checkpoint.get("hyper_parameters", self.hparams)
        checkpoint["hyper_parameters"] = {
            # To load NumPy's numbers would take arbitrary unpickling, so they become plain ones.
            name: value.item() if hasattr(value, "item") else value
            for name, value in stored.items()
            if name not in PARTS
        }
        checkpoint["lfads"] = {
            "session_names": list(self.session_names),
            "parts": {name: to_spec(part) for name, part in self.parts().items()},
            "frozen": [name for name, p in self.named_parameters() if not p.requires_grad],
            "extra": self.extra_state(),
            "provenance": provenance(self.device, getattr(self._trainer, "datamodule", None)),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of training; refuse a checkpoint of other sessions."""
        state = checkpoint.get("lfads")
        if state is None:
            path = self._trainer.ckpt_path if self._trainer is not None else None
            # Of this module and not of its caller: what Lightning says is silenced.
            warnings.warn(take_over(checkpoint, self, Path(path) if path else None), stacklevel=1)
            return
        theirs = state["session_names"]
        if self.session_names and theirs and self.session_names != theirs:
            raise ConfigError(
                f"the checkpoint was trained on the sessions {', '.join(theirs)}, the data are "
                f"{', '.join(self.session_names)}; go on with the same files"
            )
        self.load_extra_state(state["extra"])
        keep_arguments(self, checkpoint)

    # ---- the data --------------------------------------------------------------------------------

    def check_data(self, data: Any) -> None:
        """Check that the data fit the model: sessions, channels, bins, values.

        Parameters
        ----------
        data : BasicDataModule
            After its `setup`.

        Raises
        ------
        ConfigError, DataError
            Naming the argument or the file, key and channel, its value and the legal ones.
        """
        names = data.session_names
        if len(names) != len(self.readin):
            raise ConfigError(
                f"the model has {len(self.readin)} session(s), the data {len(names)} "
                f"({', '.join(names)}); give readin, readout and reconstruction one entry per "
                "session file, or change datafile_pattern"
            )
        for s, (session, size) in enumerate(zip(data.sessions, data.sizes, strict=True)):
            self.check_session(s, session, size)
        self.session_trials = {i: size.n_train for i, size in enumerate(data.sizes)}
        self._incomplete = {i for i, s in enumerate(data.sessions) if s.lengths is not None}
        self._behavior_key = check_behavior(self.behavior, data)
        if not self.session_names:
            self.session_names = list(names)

    def check_session(self, number: int, session: Any, size: Any) -> None:
        """Check the sizes and values of one `SessionData` that is session `number` of the model."""
        check_sizes(self, number, session.path, size)
        check_support(self.recon[number], session)


_RAMPS = ("l2", "kl", "behavior")
_PARTS_IN_HPARAMS = ("train_aug_stack", "infer_aug_stack", "co_prior")
_SCALES = [name for name in NUMBERS if name.endswith("_scale") and name != "loss_scale"]


def _as_datamodule(data: Any) -> Any:
    if not hasattr(data, "setup"):
        from .datamodules import BasicDataModule

        data = BasicDataModule(str(data))
    data.setup("fit")
    return data
