"""The network of LFADS: read-in, encoders, decoder and read-out, and one pass through them.

The mathematics is in ``docs/model.md``; sources are listed in NOTICE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .errors import ConfigError
from .kernels import get_kernels
from .modules.augmentations import AugmentationStack
from .modules.behavior import BehaviorReadout
from .modules.decoder import Decoder, Decoding
from .modules.encoder import Encoder, Encoding
from .modules.priors import AutoregressiveMultivariateNormal, MultivariateNormal, Null
from .modules.readin_readout import FanInLinear
from .modules.recons import Poisson, recon_for_channels
from .tuples import Batch, SessionBatch, SessionOutput, bins_of, lengths_of, sessions_of

PARTS = (
    "reconstruction",
    "co_prior",
    "ic_prior",
    "train_aug_stack",
    "infer_aug_stack",
    "readin",
    "readout",
)
"""Constructor arguments that are modules, not numbers."""


class Inferred(NamedTuple):
    """What one pass gives: all trials together, and by session with parameters, not means."""

    encoding: Encoding
    decoding: Decoding
    outputs: dict[int, SessionOutput]
    behavior: dict[int, Tensor]  # standardised; empty where the model reads none out


class Network(nn.Module):
    """The modules of LFADS and how they are wired, without anything that training needs.

    The arguments are those of `lfads_torch.model.LFADS`.
    """

    # Duck-typed, so that a user's own parts need no base class.
    ic_prior: Any
    co_prior: Any
    recon: Any
    readin: Any
    readout: Any
    behavior: Any
    dropout_rate: Tensor

    def __init__(
        self,
        *,
        encod_data_dim: int,
        encod_seq_len: int,
        recon_seq_len: int,
        ext_input_dim: int,
        ic_enc_seq_len: int,
        ic_enc_dim: int,
        ci_enc_dim: int,
        ci_lag: int,
        con_dim: int,
        co_dim: int,
        ic_dim: int,
        gen_dim: int,
        fac_dim: int,
        dropout_rate: float,
        variational: bool,
        ic_post_var_min: float,
        cell_clip: float,
        kernel: str,
        reconstruction: Any,
        co_prior: nn.Module | None,
        ic_prior: nn.Module | None,
        train_aug_stack: AugmentationStack | None,
        infer_aug_stack: AugmentationStack | None,
        readin: Any,
        readout: Any,
        causal: bool,
        tbptt_bins: int,
        behavior_dim: int,
        behavior_from: str,
        behavior_detach: bool,
    ) -> None:
        super().__init__()
        self.variational, self.causal = variational, causal
        self.use_con = min(ci_enc_dim, con_dim, co_dim) > 0
        self.register_buffer("dropout_rate", torch.tensor(float(dropout_rate)), persistent=False)
        self.kernels = get_kernels(kernel)

        # Parts draw their first weights in this order; another order would change every seed.
        self.readin = as_list(nn.Identity() if readin is None else readin)
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
            causal=causal,
            tbptt_bins=tbptt_bins,
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
            causal=causal,
            tbptt_bins=tbptt_bins,
        )
        recons = as_list(Poisson() if reconstruction is None else reconstruction)
        if readout is None:
            n_params = int(getattr(recons[0], "n_params", 1)) if len(recons) else 1
            readout = FanInLinear(fac_dim, n_params * encod_data_dim)
        self.readout = as_list(readout)
        self.recon = recons if is_list(reconstruction) else _per_session(recons[0], self.readout)
        start_from: Any = getattr(self.readout, "start_from", None)
        if start_from is not None:
            start_from(self.recon)
        dims = ic_dim if self.encoder.has_ic else 0, co_dim if self.use_con else 0
        self.ic_prior, self.co_prior = _priors(ic_prior, co_prior, *dims, variational)
        self.train_aug_stack = train_aug_stack or AugmentationStack()
        self.infer_aug_stack = infer_aug_stack or AugmentationStack()
        self._check_sessions(encod_data_dim, fac_dim)
        self.behavior = None
        if behavior_dim:
            sizes = {"gen_states": gen_dim, "factors": fac_dim}
            size = sizes.get(behavior_from) or self._rates_dim(fac_dim)
            self.behavior = BehaviorReadout(size, behavior_dim, behavior_from, behavior_detach)
        if causal:
            self._check_causal()
        _check_prior("ic_prior", self.ic_prior, "ic_dim", ic_dim)
        _check_prior("co_prior", self.co_prior, "co_dim", co_dim)

    def encode(self, batch: Mapping[int, SessionBatch]) -> Encoding:
        """Encode the trials of all sessions of a batch, one session after the other."""
        # The recurrent nets compute in the precision of the data under mixed precision, too: errors
        # of bfloat16 would add up from bin to bin, and the kernels take one type.
        data = [
            self.readin[s](_filled(trials)).to(trials.encod_data.dtype)
            for s, trials in batch.items()
        ]
        with _own_precision(data[0]):
            return self.encoder(
                _cat(data),
                self._dropout(),
                self.kernels,
                lengths_of(batch),
                bins_of(batch, self.encoder.recon_seq_len),
            )

    def decode(
        self,
        encoding: Encoding,
        ext_input: Float[Tensor, "B T E"],
        *,
        sample: bool,
        n_samples: int = 1,
        n_bins: int | None = None,
    ) -> Decoding:
        """Decode each trial `n_samples` times; rows are sample by sample, trials within.

        With `sample`, initial conditions and inferred inputs are drawn from their posteriors;
        without, they are the posterior means. Without `n_bins`, all bins of the window are decoded.
        """
        ic = encoding.ic_mean.unsqueeze(0)
        if sample:
            posterior = self.ic_prior.make_posterior(encoding.ic_mean, encoding.ic_std)
            ic = posterior.rsample((n_samples,))
        with _own_precision(ic):
            return self.decoder(
                ic.flatten(0, 1),
                encoding.ci,
                ext_input,
                sample_posteriors=sample,
                dropout_rate=self._dropout(),
                kernels=self.kernels,
                n_bins=n_bins,
            )

    def read_out(self, session: int, factors: Tensor, output_means: bool) -> Tensor:
        """Return parameters (B, T_r, N_r, k), or means (B, T_r, N_r), of the observations."""
        recon = self.recon[session]
        params = recon.reshape_output_params(self.readout[session](factors).to(factors.dtype))
        return recon.compute_means(params) if output_means else params

    def read_behavior(
        self,
        session: int,
        decoded: Decoding | SessionOutput,
        params: Float[Tensor, "B T N k"],
        gen_mask: Float[Tensor, "B T G"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return standardised behaviour of what was decoded, and read out as parameters.

        `gen_mask` is the dropout by which the factors see the generator's states.
        """
        gen_states = decoded.gen_states if gen_mask is None else decoded.gen_states * gen_mask
        z = self.behavior.features(gen_states, decoded.factors, params, self.recon[session])
        return self.behavior(z).to(z.dtype)

    def infer(self, batch: Mapping[int, SessionBatch], *, sample: bool) -> Inferred:
        """Encode and decode all trials of a batch, and read them out session by session."""
        encoding = self.encode(batch)
        ext_input = _cat([trials.ext_input for trials in batch.values()])
        n_bins = bins_of(batch, self.encoder.recon_seq_len)
        decoding = self.decode(encoding, ext_input, sample=sample, n_bins=n_bins)
        columns = {"ic_mean": encoding.ic_mean, "ic_std": encoding.ic_std, **decoding._asdict()}
        sizes = [trials.encod_data.shape[0] for trials in batch.values()]
        split = {name: tensor.split(sizes) for name, tensor in columns.items()}
        masks = [None] * len(sizes)
        if decoding.gen_mask is not None:
            masks = decoding.gen_mask.split(sizes)
        outputs: dict[int, SessionOutput] = {}
        behavior: dict[int, Tensor] = {}
        for i, s in enumerate(batch):
            fields = {name: pieces[i] for name, pieces in split.items()}
            params = self.read_out(s, fields["factors"], output_means=False)
            outputs[s] = SessionOutput(output_params=params, **fields)
            if self.behavior is not None:
                behavior[s] = self.read_behavior(s, outputs[s], params, masks[i])
                outputs[s] = outputs[s]._replace(behavior=self.behavior.in_units(behavior[s]))
        return Inferred(encoding, decoding, outputs, behavior)

    def forward(
        self, batch: Batch, sample_posteriors: bool = False, output_means: bool = True
    ) -> dict[int, SessionOutput]:
        """Infer everything for a batch."""
        outputs = self.infer(sessions_of(batch), sample=sample_posteriors).outputs
        if not output_means:
            return outputs
        return {
            s: output._replace(output_params=self.recon[s].compute_means(output.output_params))
            for s, output in outputs.items()
        }

    def parts(self) -> dict[str, nn.Module]:
        """Return the replaceable modules by their constructor arguments."""
        return {
            name: getattr(self, "recon" if name == "reconstruction" else name) for name in PARTS
        }

    def _dropout(self) -> Tensor | None:
        return self.dropout_rate if self.training else None

    def _check_causal(self) -> None:
        """Refuse parts that read ahead, and a model that reads nothing."""
        if not (self.use_con or self.encoder.has_ic):
            raise ConfigError(
                "causal: true without a controller (co_dim, con_dim or ci_enc_dim is 0) and with "
                "ic_enc_seq_len 0 reads no data; set ic_enc_seq_len to the bins that the initial "
                "condition may read, or give the controller units"
            )
        for name, parts in (
            ("readin", self.readin),
            ("readout", self.readout),
            ("infer_aug_stack", self.infer_aug_stack.batch_transforms),
        ):
            for part in parts:
                bins, kind = lookahead(part), type(getattr(part, "part", part)).__name__
                if bins > 0:
                    ahead = "an unknown number of" if bins == math.inf else f"{bins:g}"
                    raise ConfigError(
                        f"{name}: {kind} reads {ahead} bins ahead, which causal: true forbids; "
                        "replace it, or give your own, if it maps each bin alone, the attribute "
                        "lookahead = 0"
                    )

    def _rates_dim(self, fac_dim: int) -> int:
        """Return the channels of the only session, whose rates behaviour is read from."""
        if len(self.readout) > 1:
            raise ConfigError(
                "behavior_from is 'rates', but channels of several sessions are not the same "
                "neurons; legal are 'gen_states' and 'factors'"
            )
        n_out = getattr(self.readout[0], "out_features", None)
        if n_out is None:  # a read-out of your own that does not say its size
            n_out = self.readout[0](torch.zeros(1, 1, fac_dim)).shape[-1]
        return int(n_out) // int(getattr(self.recon[0], "n_params", 1))

    def _check_sessions(self, encod_data_dim: int, fac_dim: int) -> None:
        """Refuse read-ins, read-outs and observation models that do not fit one another.

        A user's own modules that do not say their sizes pass.
        """
        n_readin, n_readout, n_recon = len(self.readin), len(self.readout), len(self.recon)
        if not n_readin == n_readout == n_recon:
            raise ConfigError(
                f"readin, readout and reconstruction are for {n_readin}, {n_readout} and {n_recon} "
                "sessions; they must agree"
            )
        for s, (readin, readout, recon) in enumerate(
            zip(self.readin, self.readout, self.recon, strict=True)
        ):
            n_out, n_params = getattr(readout, "out_features", None), getattr(recon, "n_params", 1)
            for what, size, argument, expected in (
                (f"readin {s} gives", "out_features", "encod_data_dim", encod_data_dim),
                (f"readout {s} takes", "in_features", "fac_dim", fac_dim),
            ):
                actual = getattr(readin if size == "out_features" else readout, size, None)
                if actual is not None and actual != expected:
                    raise ConfigError(
                        f"{what} {actual} features, but {argument} is {expected}; they must agree"
                    )
            if n_out is not None and n_out % n_params:
                raise ConfigError(
                    f"readout {s} gives {n_out} features, no multiple of the {n_params} "
                    f"parameters per channel of {type(recon).__name__} (recon_params of the "
                    "readout)"
                )


def lookahead(part: Any) -> float:
    """Return by how many bins a map or augmentation reads ahead, infinite where it does not say.

    Your own part says it by an attribute `lookahead`.
    """
    if (bins := getattr(part, "lookahead", None)) is not None:
        return float(bins)
    if isinstance(part, nn.Sequential | nn.ModuleList):
        return sum(map(lookahead, part))
    binwise = nn.Identity, nn.Linear, nn.LayerNorm, nn.Dropout, nn.ReLU, nn.Tanh, nn.Softplus
    return 0.0 if isinstance(part, binwise) else math.inf


def _priors(
    ic_prior: nn.Module | None,
    co_prior: nn.Module | None,
    ic_dim: int,
    co_dim: int,
    variational: bool,
) -> tuple[nn.Module, nn.Module]:
    """Fill in default priors; a dimension of 0 stands for a latent that is not inferred."""
    if not variational:
        for name, prior in (("ic_prior", ic_prior), ("co_prior", co_prior)):
            if not isinstance(prior, (Null, type(None))):
                raise ConfigError(
                    f"{name} is {type(prior).__name__}, but variational is false: no posterior is "
                    "compared with it. Use Null, or set variational: true"
                )
        return Null(), Null()
    if ic_dim == 0:
        ic_prior = Null()
    if co_dim == 0:
        co_prior = Null()
    return (
        ic_prior or MultivariateNormal(mean=0.0, variance=0.1, shape=ic_dim),
        co_prior or AutoregressiveMultivariateNormal(tau=10.0, nvar=0.1, shape=co_dim),
    )


def _check_prior(name: str, prior: Any, argument: str, size: int) -> None:
    shape = getattr(prior, "init_args", {}).get("shape", size)
    if shape != size:
        raise ConfigError(
            f"{name} is for {shape} dimensions (its shape), but {argument} is {size}; "
            "they must agree"
        )


def _own_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Leave mixed precision, where it is on."""
    device = tensor.device.type
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _cat(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _filled(batch: SessionBatch) -> Tensor:
    """Return the encoders' data, with 0 where something is missing."""
    return batch.encod_data if batch.lengths is None else batch.encod_data.nan_to_num(nan=0.0)


def is_list(parts: Any) -> bool:
    """Return whether an argument is one part per session: a ModuleList, list, tuple, ListConfig."""
    return isinstance(parts, nn.ModuleList | Sequence)


def as_list(parts: Any) -> nn.ModuleList:
    """Return one part, or one per session, as a list of modules."""
    if isinstance(parts, nn.ModuleList):
        return parts
    return nn.ModuleList(
        part if isinstance(part, nn.Module) else PlainPart(part)
        for part in (parts if is_list(parts) else [parts])
    )


class PlainPart(nn.Module):
    """Hold a part of your own that is no module, so that a list of modules can take it."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part = part

    def __getattr__(self, name: str) -> Any:
        # `part` itself is missing while copy and pickle rebuild the object.
        if name == "part":
            raise AttributeError(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.part, name)

    def forward(self, *args: Any) -> Any:
        """Call the part."""
        return self.part(*args)


def _per_session(recon: nn.Module, readouts: nn.ModuleList) -> nn.ModuleList:
    if len(readouts) == 1:
        return nn.ModuleList([recon])
    n_params = int(getattr(recon, "n_params", 1))
    return nn.ModuleList(
        recon_for_channels(recon, getattr(readout, "out_features", 0) // n_params)
        for readout in readouts
    )
