"""The whole model on one window: what a stream of any model runs, and an export traces."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..model import LFADS
from ..modules import augmentations
from ..tuples import SessionBatch


class WindowOutput(NamedTuple):
    """Posterior means of all bins of a window."""

    rates: Float[Tensor, "B T Nr"]
    factors: Float[Tensor, "B T F"]
    gen_states: Float[Tensor, "B T G"]
    inputs: Float[Tensor, "B T U"]
    behavior: Float[Tensor, "B T D"]  # in the units of the data; D = 0 where none is read out


class Window(nn.Module):
    """The forward pass of one session at posterior means; missing entries are NaN.

    A trace needs the model's kernel "reference".
    """

    def __init__(self, model: LFADS, session: int = 0) -> None:
        super().__init__()
        self.model, self.session = model, session

    def forward(
        self, x: Float[Tensor, "B T N"], ext: Float[Tensor, "B Tx E"] | None = None
    ) -> WindowOutput:
        """Take the bins that the encoders read; external inputs that are not given are 0."""
        # Lengths stay None: a missing bin at the window's end is no end of the trial. Sizes come
        # from `shape`, since `len` would be a fixed number in a trace.
        x = torch.where(x.isnan(), 0.0, x)
        none = x.new_zeros(x.shape[0], 0, 0)
        if ext is None:
            ext = x.new_zeros(x.shape[0], 0, self.model.hparams["ext_input_dim"])
        batch = SessionBatch(x, x, ext, none, none.bool())
        for transform in self.model.infer_aug_stack.batch_transforms:
            # The packaged ones serve training and scoring alone: they hide or move entries.
            if type(transform).__module__ != augmentations.__name__:
                batch = augmentations.as_batch(transform.process_batch(batch), batch)
        output = self.model({self.session: batch})[self.session]
        behavior = output.behavior
        if behavior is None:
            behavior = output.factors[..., :0]
        return WindowOutput(
            output.output_params, output.factors, output.gen_states, output.co_means, behavior
        )
