"""The whole model on one window: what a stream of any model runs, and an export traces."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..model import LFADS
from ..tuples import SessionBatch


class WindowOutput(NamedTuple):
    """Posterior means of all bins of a window."""

    rates: Float[Tensor, "B T Nr"]
    factors: Float[Tensor, "B T F"]
    gen_states: Float[Tensor, "B T G"]
    inputs: Float[Tensor, "B T U"]


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
        # Lengths stay None: a missing bin at the window's end is no end of the trial.
        x = torch.where(x.isnan(), 0.0, x)
        ext = x.new_zeros(len(x), 0, self.model.hparams["ext_input_dim"]) if ext is None else ext
        none = x.new_zeros(len(x), 0, 0)
        output = self.model({self.session: SessionBatch(x, x, ext, none, none.bool())})[
            self.session
        ]
        return WindowOutput(
            output.output_params, output.factors, output.gen_states, output.co_means
        )
