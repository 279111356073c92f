"""LFADS as it is usually written, to measure the package against.

Cell by cell: a Python loop over bins, the input products inside it, inputs and states concatenated,
autograd through every operation, masks from `torch.distributions.Bernoulli`, `torch.nn.Dropout`,
the whole Poisson likelihood with its log-factorial at every step, data sample by sample through
`torch.utils.data.DataLoader`, and one full pass, encoders included, per posterior sample.

It is plain, not slowed down: it keeps no scores, and takes sequences apart by one `unbind`, where
indexing every bin would make the backward pass quadratic in bins.

The equations are those of ``docs/model.md``, the parameters' names those of checkpoints.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from textbook_nets import AutoregressivePrior, Decoder, Encoder, NormalPrior
from torch import Tensor, nn
from torch.distributions import Bernoulli
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lfads_torch.model import LFADS
from lfads_torch.modules import recons
from lfads_torch.modules.augmentations import CoordinatedDropout
from lfads_torch.tuples import SessionBatch, SessionOutput

Batch = Mapping[int, SessionBatch]


class TextbookLFADS(nn.Module):
    """LFADS with the parameters of a package's model.

    Parameters
    ----------
    model : LFADS
        Its hyper-parameters, read-ins, read-outs, observation models, rates of coordinated dropout
        and parameters are copied. Its priors must be the default ones.
    """

    def __init__(self, model: LFADS) -> None:
        super().__init__()
        hps: Any = model.hparams
        self.hps = hps
        self.use_con = min(hps.ci_enc_dim, hps.con_dim, hps.co_dim) > 0
        self.readin, self.readout, self.recon = (
            copy.deepcopy(part) for part in (model.readin, model.readout, model.recon)
        )
        self.encoder = Encoder(hps, self.use_con)
        self.decoder = Decoder(hps, self.use_con)
        self.ic_prior = NormalPrior(hps.ic_dim)
        self.co_prior = AutoregressivePrior(hps.co_dim) if self.use_con else None
        dropouts = [
            t for t in model.train_aug_stack.transforms if isinstance(t, CoordinatedDropout)
        ]
        self.cd_rate, self.cd_pass_rate = 0.0, 0.0
        if dropouts:
            self.cd_rate = dropouts[0].init_args["cd_rate"]
            self.cd_pass_rate = dropouts[0].cd_pass_rate
        self.load_state_dict(model.state_dict())

    def forward(
        self, batch: Batch, sample: bool = False, output_means: bool = True
    ) -> dict[int, SessionOutput]:
        """Infer everything, sampled or with posterior means; as `LFADS.forward`."""
        x = torch.cat([self.readin[s](b.encod_data) for s, b in batch.items()])
        ext_input = torch.cat([b.ext_input for b in batch.values()])
        ic_mean, ic_std, ci = self.encoder(x)
        ic = ic_mean + ic_std * torch.randn_like(ic_std) if sample else ic_mean
        gen_init, gen, con, co_mean, co_std, gen_inputs, factors = self.decoder(
            ic, ci, ext_input, sample
        )
        sizes = [b.encod_data.shape[0] for b in batch.values()]
        fields = (factors, ic_mean, ic_std, co_mean, co_std, gen, gen_init, gen_inputs, con)
        outputs = {}
        for s, parts in zip(
            batch, zip(*(f.split(sizes) for f in fields), strict=True), strict=True
        ):
            recon: Any = self.recon[s]
            params = recon.reshape_output_params(self.readout[s](parts[0]))
            means = recon.compute_means(params) if output_means else params
            outputs[s] = SessionOutput(means, *parts)
        return outputs

    def element_loss(self, session: int, data: Tensor, params: Tensor) -> Tensor:
        """Loss per trial, bin and channel."""
        recon: Any = self.recon[session]
        if type(recon) is recons.Poisson:
            return F.poisson_nll_loss(params[..., 0], data, full=True, reduction="none")
        return recon.compute_loss(data, params)

    def l2_penalty(self) -> Tensor:
        """Weighted squares of the recurrent weights, per penalised entry."""
        hps, cell = self.hps, self.decoder.rnn.cell
        ic_enc = self.encoder.ic_enc
        weights = [
            (hps.l2_ic_enc_scale, ic_enc.fwd_gru.cell.weight_hh),
            (hps.l2_ic_enc_scale, ic_enc.bwd_gru.cell.weight_hh),
            (hps.l2_gen_scale, cell.gen_cell.weight_hh),
        ]
        if self.use_con:
            ci_enc = self.encoder.ci_enc
            weights += [
                (hps.l2_ci_enc_scale, ci_enc.fwd_gru.cell.weight_hh),
                (hps.l2_ci_enc_scale, ci_enc.bwd_gru.cell.weight_hh),
                (hps.l2_con_scale, cell.con_cell.weight_hh),
            ]
        used = [(scale, weight) for scale, weight in weights if scale > 0]
        total = sum(scale * 0.5 * (weight**2).sum() for scale, weight in used)
        penalty = total / max(1, sum(weight.numel() for _, weight in used))
        recons_: Any = self.recon
        return penalty + sum(recon.compute_l2() for recon in recons_)

    def loss_terms(
        self,
        batch: Batch,
        outputs: Mapping[int, SessionOutput],
        learn: Mapping[int, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Terms of the objective in epoch 0; `learn` masks the gradients of the reconstruction."""
        hps, losses = self.hps, []
        for s, session in batch.items():
            loss = self.element_loss(s, session.recon_data, outputs[s].output_params)
            if learn is not None:
                loss = torch.where(learn[s], loss, loss.detach())
            losses.append(loss.mean() if hps.recon_reduce_mean else loss.sum(dim=(1, 2)).mean())
        recon, l2 = torch.stack(losses).mean(), self.l2_penalty()
        ic_mean, ic_std, co_means, co_stds = (
            torch.cat([getattr(output, field) for output in outputs.values()])
            for field in ("ic_mean", "ic_std", "co_means", "co_stds")
        )
        kl_ic = self.ic_prior(ic_mean, ic_std)
        kl = hps.kl_ic_scale * kl_ic
        if self.co_prior is not None:
            kl = kl + hps.kl_co_scale * self.co_prior(co_means, co_stds)
        l2_ramp = _first_ramp(hps.l2_start_epoch, hps.l2_increase_epoch)
        kl_ramp = _first_ramp(hps.kl_start_epoch, hps.kl_increase_epoch)
        total = hps.loss_scale * (recon + l2_ramp * l2 + kl_ramp * kl)
        return {"recon": recon, "l2": l2, "ic_kl": kl_ic, "total": total}

    def coordinated_dropout(self, batch: SessionBatch) -> tuple[SessionBatch, Tensor]:
        """Hide entries from the encoders; the mask says where the loss's gradient flows."""
        data, segment = batch.encod_data, self.hps.ic_enc_seq_len
        keep = Bernoulli(1 - self.cd_rate).sample(data.shape)
        passed = Bernoulli(self.cd_pass_rate).sample(data.shape)
        learn = (keep == 0) | (passed == 1)
        scaled = keep / (1 - self.cd_rate)
        learn[:, :segment], scaled[:, :segment] = True, 1.0
        more_bins, more_channels = (
            batch.recon_data.shape[axis] - data.shape[axis] for axis in (1, 2)
        )
        learn = F.pad(learn, (0, more_channels, 0, more_bins), value=True)
        return batch._replace(encod_data=data * scaled), learn

    def training_step(self, batch: Batch) -> Tensor:
        """Compute the objective of a batch, in training."""
        learn = None
        if self.cd_rate > 0:
            dropped = {s: self.coordinated_dropout(session) for s, session in batch.items()}
            batch = {s: session for s, (session, _) in dropped.items()}
            learn = {s: mask for s, (_, mask) in dropped.items()}
        outputs = self(batch, sample=self.hps.variational, output_means=False)
        return self.loss_terms(batch, outputs, learn)["total"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW as torch makes it."""
        hps = self.hps
        return torch.optim.AdamW(
            [p for p in self.parameters() if p.requires_grad],
            lr=hps.lr_init,
            betas=(hps.lr_adam_beta1, hps.lr_adam_beta2),
            eps=hps.lr_adam_epsilon,
            weight_decay=hps.weight_decay,
        )


def _first_ramp(start: int, increase: int) -> float:
    return min(max((1 - start) / (increase + 1), 0.0), 1.0)


def sample_loader(batch: SessionBatch, batch_size: int, shuffle: bool) -> DataLoader[Any]:
    """Trials drawn one by one and collated; every step is the tensors of a `SessionBatch`."""
    data = TensorDataset(
        batch.encod_data, batch.recon_data, batch.ext_input, batch.truth, batch.sv_mask
    )
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle, drop_last=shuffle)


@torch.no_grad()
def posterior_means(
    model: TextbookLFADS, loader: DataLoader[Any], n_samples: int = 50
) -> SessionOutput:
    """Average over posterior samples of one session, each by a pass of its own."""
    model.eval()
    parts = []
    for tensors in loader:
        batch = {0: SessionBatch(*tensors)}
        sums = model(batch, sample=True)[0]
        for _ in range(n_samples - 1):
            more = model(batch, sample=True)[0]._asdict()
            sums = SessionOutput(**{name: x + more[name] for name, x in sums._asdict().items()})
        parts.append([x / n_samples for x in sums._asdict().values()])
    return SessionOutput(*(torch.cat(field) for field in zip(*parts, strict=True)))
