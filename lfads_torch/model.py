"""LFADS: the parts, how they are wired, and one pass through them.

The mathematics is in ``docs/model.md``; sources are listed in NOTICE.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigError
from .kernels import get_kernels
from .model_checks import check_arguments, check_data, check_parts
from .modules.augmentations import AugmentationStack
from .modules.decoder import Decoder, Decoding
from .modules.encoder import Encoder, Encoding
from .modules.priors import AutoregressiveMultivariateNormal, MultivariateNormal, Null
from .modules.readin_readout import FanInLinear
from .modules.recons import Poisson, recon_for_channels
from .objective import Objective
from .tuples import Batch, SessionBatch, SessionOutput, lengths_of, sessions_of

PARTS = (
    "reconstruction",
    "co_prior",
    "ic_prior",
    "train_aug_stack",
    "infer_aug_stack",
    "readin",
    "readout",
)
"""Constructor arguments that are parts, not numbers."""


class LFADS(Objective):
    """Latent factor analysis via dynamical systems.

    Use `LFADS.from_data` to have sizes read from the data. Every part can be replaced by one's own.

    Parameters
    ----------
    encod_data_dim, encod_seq_len, recon_seq_len : int
        Channels and bins that the encoders read (channels after read-in), bins reconstructed
        (default: `encod_seq_len`).
    ext_input_dim : int
        Channels of external input to the generator.
    ic_enc_seq_len : int
        Bins at the start that only the IC encoder reads; 0: both encoders read all bins.
    ic_enc_dim, ci_enc_dim, con_dim, gen_dim : int
        Units of the recurrent nets. There is a controller only when `ci_enc_dim`, `con_dim` and
        `co_dim` are all > 0.
    ci_lag : int
        Bins by which the controller sees the encoder late (forward) and early (backward).
    co_dim, ic_dim, fac_dim : int
        Dimensions of inferred inputs, initial conditions and factors.
    dropout_rate : float
    reconstruction : Module or ModuleList
        Observation model, one for all sessions or one per session; default `Poisson`.
    variational : bool
        Whether initial conditions and inferred inputs are sampled. Without, priors must be `Null`.
    co_prior, ic_prior : Module
        Priors of inferred inputs and initial conditions; defaults
        `AutoregressiveMultivariateNormal(tau=10, nvar=0.1)` and
        `MultivariateNormal(mean=0, variance=0.1)`.
    ic_post_var_min : float
        Floor of the initial condition's posterior variance.
    cell_clip : float
        Bound of the recurrent states.
    train_aug_stack, infer_aug_stack : AugmentationStack
        Applied in training; in validation and sampling.
    readin, readout : Module or ModuleList
        One per session; defaults: identity, `FanInLinear`.
    loss_scale : float
    recon_reduce_mean : bool
        Average the loss over bins and channels instead of summing.
    weigh_sessions : {"session", "trial"}
        What weighs the same in the objective: every session, or every training trial of the data
        (a session then weighs by its number of trials).
    lr_scheduler : bool
        Lower the learning rate on plateaus of `valid/recon_smth`: times `lr_decay` after
        `lr_patience` epochs, down to `lr_stop`.
    lr_init, lr_stop, lr_decay, lr_patience, lr_adam_beta1, lr_adam_beta2, lr_adam_epsilon : float
        Learning rate and AdamW.
    weight_decay : float
        AdamW's, times the L2 ramp.
    l2_start_epoch, l2_increase_epoch, kl_start_epoch, kl_increase_epoch : int
        Ramps: first epoch and epochs until full weight.
    l2_ic_enc_scale, l2_ci_enc_scale, l2_gen_scale, l2_con_scale : float
        Penalties of the recurrent weights.
    kl_ic_scale, kl_co_scale : float
        Weights of the KL terms.
    kernel : str
        Implementation of the recurrent nets, see `lfads_torch.kernels`.

    Raises
    ------
    ConfigError
        For arguments that are out of range or contradict one another.
    """

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
        reconstruction: nn.Module | None = None,
        variational: bool = True,
        co_prior: nn.Module | None = None,
        ic_prior: nn.Module | None = None,
        ic_post_var_min: float = 1e-4,
        cell_clip: float = 5.0,
        train_aug_stack: AugmentationStack | None = None,
        infer_aug_stack: AugmentationStack | None = None,
        readin: nn.Module | None = None,
        readout: nn.Module | None = None,
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
    ) -> None:
        super().__init__()
        if recon_seq_len is None:
            recon_seq_len = encod_seq_len
        self.save_hyperparameters(ignore=list(PARTS))
        check_arguments(self.hparams)
        assert encod_data_dim is not None and recon_seq_len is not None
        self.use_con = min(ci_enc_dim, con_dim, co_dim) > 0
        try:
            self.kernels = get_kernels(kernel)
        except ValueError as error:
            raise ConfigError(str(error)) from error

        self.readin = _as_list(readin or nn.Identity())
        self.encoder = Encoder(
            encod_data_dim=encod_data_dim,
            recon_seq_len=recon_seq_len,
            ic_enc_seq_len=ic_enc_seq_len,
            ic_enc_dim=ic_enc_dim,
            ic_dim=ic_dim,
            ci_enc_dim=ci_enc_dim,
            ci_lag=ci_lag,
            ic_post_var_min=ic_post_var_min,
            cell_clip=cell_clip,
            use_con=self.use_con,
        )
        self.decoder = Decoder(
            recon_seq_len=recon_seq_len,
            ic_dim=ic_dim,
            ci_enc_dim=ci_enc_dim,
            con_dim=con_dim,
            co_dim=co_dim,
            ext_input_dim=ext_input_dim,
            gen_dim=gen_dim,
            fac_dim=fac_dim,
            cell_clip=cell_clip,
            use_con=self.use_con,
        )
        reconstruction = reconstruction or Poisson()
        first_recon = reconstruction[0] if isinstance(reconstruction, nn.ModuleList) else None
        n_params = int(getattr(first_recon or reconstruction, "n_params", 1))
        self.readout = _as_list(readout or FanInLinear(fac_dim, n_params * encod_data_dim))
        self.recon = _recon_per_session(reconstruction, self.readout)
        start_from: Any = getattr(self.readout, "start_from", None)
        if start_from is not None:
            start_from(self.recon)
        self.ic_prior, self.co_prior = self._priors(ic_prior, co_prior)
        self.train_aug_stack = train_aug_stack or AugmentationStack()
        self.infer_aug_stack = infer_aug_stack or AugmentationStack()
        check_parts(self)
        self.prepare_training()

    def _priors(
        self, ic_prior: nn.Module | None, co_prior: nn.Module | None
    ) -> tuple[nn.Module, nn.Module]:
        hp = self.hparams
        if not hp.variational:
            for name, prior in (("ic_prior", ic_prior), ("co_prior", co_prior)):
                if not isinstance(prior, (Null, type(None))):
                    raise ConfigError(
                        f"{name} is {type(prior).__name__}, but variational is false: there is "
                        "no posterior to hold against it. Use Null, or set variational: true"
                    )
            return Null(), Null()
        if ic_prior is None:
            ic_prior = MultivariateNormal(mean=0.0, variance=0.1, shape=hp.ic_dim)
        if not self.use_con:
            co_prior = Null()
        elif co_prior is None:
            co_prior = AutoregressiveMultivariateNormal(tau=10.0, nvar=0.1, shape=hp.co_dim)
        return ic_prior, co_prior

    @classmethod
    def from_data(cls, data: Any, **arguments: Any) -> LFADS:
        """Build a model whose sizes are read from the data.

        Parameters
        ----------
        data : BasicDataModule, or str or Path
            The data module, or the path or glob pattern of the session files.
        **arguments
            Arguments of the constructor; those that are None and that the data tell are filled in.

        Raises
        ------
        UserError
            Where arguments contradict the data.
        """
        unknown = set(arguments) - set(inspect.signature(cls).parameters)
        if unknown:
            legal = ", ".join(inspect.signature(cls).parameters)
            raise ConfigError(f"unknown argument {sorted(unknown)[0]!r}; legal are {legal}")
        data = _as_datamodule(data)
        sizes = data.sizes
        given = {key: value for key, value in arguments.items() if value is not None}
        fac_dim = given.get("fac_dim", inspect.signature(cls).parameters["fac_dim"].default)
        recon = given.get("reconstruction", Poisson())
        if not isinstance(recon, nn.ModuleList):
            recon = nn.ModuleList(recon_for_channels(recon, s.recon_dim) for s in sizes)
        single = len(sizes) == 1
        defaults: dict[str, Any] = {
            "encod_data_dim": sizes[0].encod_dim if single else fac_dim,
            "encod_seq_len": sizes[0].encod_len,
            "recon_seq_len": sizes[0].recon_len,
            "ext_input_dim": sizes[0].ext_dim,
        }
        values = {**defaults, **given, "reconstruction": recon}
        if "readin" not in given and not single:
            dim = values["encod_data_dim"]
            values["readin"] = nn.ModuleList(FanInLinear(s.encod_dim, dim) for s in sizes)
        if "readout" not in given:
            values["readout"] = nn.ModuleList(
                FanInLinear(fac_dim, r.n_params * s.recon_dim)
                for r, s in zip(recon, sizes, strict=False)
            )
        model = cls(**values)
        model.check_data(data)
        return model

    def check_data(self, data: Any) -> None:
        """Hold the sizes and numbers of a data module against the model.

        Raises
        ------
        ConfigError, DataError
            Naming the argument or the file, key and channel, what was found and what is legal.
        """
        check_data(self, data)
        self.session_trials = {i: size.n_train for i, size in enumerate(data.sizes)}
        if not self.session_names:
            self.session_names = list(data.session_names)

    # The model ------------------------------------------------------------------------------------

    def encode(self, batch: Mapping[int, SessionBatch]) -> Encoding:
        """Encode the trials of all sessions of a batch, one session after the other."""
        data = [self.readin[s](_filled(own)) for s, own in batch.items()]
        return self.encoder(_cat(data), self._dropout(), self.kernels, lengths_of(batch))

    def decode(
        self,
        encoding: Encoding,
        ext_input: Tensor,
        *,
        sample: bool,
        n_samples: int = 1,
    ) -> Decoding:
        """Decode each trial `n_samples` times; rows are sample by sample, trials within.

        Parameters
        ----------
        encoding : Encoding
            Of B trials.
        ext_input : Tensor, shape (B, T, ext_input_dim)
        sample : bool
            Draw initial conditions and inferred inputs instead of taking posterior means.
        n_samples : int
        """
        ic = encoding.ic_mean.unsqueeze(0)
        if sample:
            posterior = self.ic_prior.make_posterior(encoding.ic_mean, encoding.ic_std)
            ic = posterior.rsample((n_samples,))
        return self.decoder(
            ic.flatten(0, 1),
            encoding.ci,
            ext_input,
            sample=sample,
            dropout_rate=self._dropout(),
            kernels=self.kernels,
        )

    def read_out(self, session: int, factors: Tensor, output_means: bool) -> Tensor:
        """Parameters (B, T_r, N_r, k), or means (B, T_r, N_r), of a session's observations."""
        recon = self.recon[session]
        params = recon.reshape_output_params(self.readout[session](factors))
        return recon.compute_means(params) if output_means else params

    def forward(
        self, batch: Batch, sample_posteriors: bool = False, output_means: bool = True
    ) -> dict[int, SessionOutput]:
        """Infer everything for a batch.

        Parameters
        ----------
        batch : dict of int to SessionBatch, or SessionBatch
            Trials by session; any session may be absent. A single batch is session 0.
        sample_posteriors : bool
            Draw from the posteriors instead of taking their means.
        output_means : bool
            Give the means of the observations instead of their parameters.
        """
        batch = sessions_of(batch)
        encoding, decoding = self.infer(batch, sample_posteriors)
        return self.outputs(batch, encoding, decoding, output_means)

    def infer(self, batch: Mapping[int, SessionBatch], sample: bool) -> tuple[Encoding, Decoding]:
        """Encode and decode the trials of all sessions of a batch."""
        encoding = self.encode(batch)
        return encoding, self.decode(
            encoding, _cat([b.ext_input for b in batch.values()]), sample=sample
        )

    def outputs(
        self,
        batch: Mapping[int, SessionBatch],
        encoding: Encoding,
        decoding: Decoding,
        output_means: bool,
    ) -> dict[int, SessionOutput]:
        """Split what was inferred by session and read it out; past a trial's end too."""
        sizes = [b.encod_data.shape[0] for b in batch.values()]
        columns = {
            "ic_mean": encoding.ic_mean,
            "ic_std": encoding.ic_std,
            **decoding._asdict(),
        }
        split = {name: tensor.split(sizes) for name, tensor in columns.items()}
        outputs = {}
        for i, s in enumerate(batch):
            own = {name: parts[i] for name, parts in split.items()}
            params = self.read_out(s, own["factors"], output_means)
            outputs[s] = SessionOutput(output_params=params, **own)
        return outputs

    def _dropout(self) -> Tensor | None:
        return self.get_buffer("dropout_rate") if self.training else None

    def parts(self) -> dict[str, nn.Module]:
        """The replaceable parts by their constructor arguments."""
        return {
            name: getattr(self, "recon" if name == "reconstruction" else name) for name in PARTS
        }


def _cat(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _filled(batch: SessionBatch) -> Tensor:
    """What the encoders see of a batch: 0 where something is missing."""
    return batch.encod_data if batch.lengths is None else batch.encod_data.nan_to_num(nan=0.0)


def _as_list(module: nn.Module) -> nn.ModuleList:
    return module if isinstance(module, nn.ModuleList) else nn.ModuleList([module])


def _recon_per_session(recon: nn.Module, readouts: nn.ModuleList) -> nn.ModuleList:
    if isinstance(recon, nn.ModuleList) or len(readouts) == 1:
        return _as_list(recon)
    n_params = int(getattr(recon, "n_params", 1))
    return nn.ModuleList(
        recon_for_channels(recon, getattr(readout, "out_features", 0) // n_params)
        for readout in readouts
    )


def _as_datamodule(data: Any) -> Any:
    if not hasattr(data, "setup"):
        from .datamodules import BasicDataModule

        data = BasicDataModule(str(data))
    data.setup("fit")
    return data
