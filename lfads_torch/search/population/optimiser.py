"""Clipping, AdamW and the plateau schedule, each member with its own numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ...optimiser import readout_rate
from .tensors import MemberTensors


class Optimiser:
    """Does what `LFADS.configure_optimizers` and Lightning's clipping do, for rows of a matrix.

    A clipping value of 0 sets no limit.
    """

    def __init__(self, tensors: MemberTensors, gradient_clip_val: float) -> None:
        self._tensors = tensors
        self._clip = gradient_clip_val
        self._decays: list[float] = []

    def begin_epoch(self, epoch: int) -> None:
        """Set the ramps, and with them the weight decay."""
        for model in self._tensors.models:
            model.set_ramps(epoch)
        self._decays = [model.ramped_weight_decay for model in self._tensors.models]

    @torch.no_grad()
    def step(self, rows: slice, gradients: Sequence[Tensor | None]) -> None:
        """Take one step with the gradients (c, ...) of the leaves of some members.

        A parameter without gradient stays as it is, as it does in torch's optimisers.
        """
        state = self._tensors
        weights = state.weights[rows]
        columns = [
            column.new_zeros(()).expand_as(column) if gradient is None else gradient
            for column, gradient in zip(state.split(weights).values(), gradients, strict=True)
        ]
        matrix = torch.cat([column.reshape(len(weights), -1) for column in columns], dim=1)
        groups = [[not x for x in state.is_readout], state.is_readout]
        for chosen in groups if self._clip > 0 else ():
            for span in state.spans(chosen):  # one: the readout's parameters are the last
                part = matrix[:, span]
                # 1e-6 as in `torch.nn.utils.clip_grad_norm_`, which Lightning calls.
                norms = torch.linalg.vector_norm(part, dim=1, keepdim=True)
                part.mul_((self._clip / (norms + 1e-6)).clamp_(max=1.0))
        given = [gradient is not None for gradient in gradients]
        spans = [state.spans([a and b for a, b in zip(given, g, strict=True)]) for g in groups]
        for i, k in enumerate(range(rows.start, rows.stop)):
            before = state.steps[k].clone()
            for is_readout, chosen in enumerate(spans):
                self._step_member(k, matrix[i], chosen, before, is_readout=bool(is_readout))

    def _step_member(
        self, k: int, gradient: Tensor, spans: Sequence[slice], step: Tensor, *, is_readout: bool
    ) -> None:
        """Take a step of some parameters of a member, which has taken `step` steps."""
        state, model = self._tensors, self._tensors.models[k]
        hp, lr = model.hparams, float(state.lr[k])
        rows = (state.weights[k], gradient, state.exp_avg[k], state.exp_avg_sq[k])
        params, grads, means, squares = ([row[span] for span in spans] for row in rows)
        # Each span counts the step, on a copy.
        counts = [step.clone() for _ in spans]
        # One call for each, since `adamw` takes rates and betas as numbers. It is the kernel of a
        # run's optimiser, so that a member gets the same bits from the same gradients.
        adamw(
            params,
            grads,
            means,
            squares,
            max_exp_avg_sqs=[],
            state_steps=counts,
            fused=True,
            amsgrad=False,
            beta1=hp.lr_adam_beta1,
            beta2=hp.lr_adam_beta2,
            lr=readout_rate(model, lr) if is_readout else lr,
            weight_decay=0.0 if is_readout else self._decays[k],
            eps=hp.lr_adam_epsilon,
            maximize=False,
        )
        if counts:
            state.steps[k] = counts[0]

    def end_epoch(self) -> None:
        """Lower learning rates where the smoothed validation loss is on a plateau.

        As `torch.optim.lr_scheduler.ReduceLROnPlateau`, whose threshold is 0 here.
        """
        state = self._tensors
        for k, model in enumerate(state.models):
            hp = model.hparams
            if not hp.lr_scheduler:
                continue
            value = state.smoothed[k].double()
            if value < state.plateau_best[k]:
                state.plateau_best[k], state.plateau_bad[k] = value, 0
            else:
                state.plateau_bad[k] += 1
            if state.plateau_bad[k] > hp.lr_patience:
                old = float(state.lr[k])
                new = max(old * hp.lr_decay, hp.lr_stop)
                if old - new > 1e-8:
                    state.lr[k] = new
                state.plateau_bad[k] = 0
