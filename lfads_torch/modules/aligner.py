"""Maps from the channels of a new day to what a trained model reads: `lfads align` trains them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .readin_readout import FanInLinear


class Aligner(nn.Module):
    """Correct what is read: y + V2 relu(V1 y + v1). V2 is 0 at the start, so nothing changes.

    Parameters
    ----------
    features : int
        Size of what is read, in and out.
    hidden : int, optional
        Hidden units; twice as many by default.
    """

    lookahead = 0

    def __init__(self, features: int, hidden: int | None = None) -> None:
        super().__init__()
        self.features = features
        self.hidden = 2 * features if hidden is None else hidden
        self.inner = FanInLinear(features, self.hidden)
        self.outer = FanInLinear(self.hidden, features, bias=False)
        nn.init.zeros_(self.outer.weight)

    def forward(self, y: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Apply the map to the last axis."""
        return y + self.outer(torch.relu(self.inner(y)))

    def penalty(self) -> Tensor:
        """Return the sum of the squares of V1 and V2."""
        return (self.inner.weight**2).sum() + (self.outer.weight**2).sum()


class AlignedReadin(nn.Module):
    """A linear read-in, then an `Aligner`.

    Parameters
    ----------
    in_features, out_features : int
        Channels of the day, and what the model reads.
    hidden : int, optional
        Hidden units of the aligner; twice `out_features` by default.
    """

    lookahead = 0

    def __init__(self, in_features: int, out_features: int, hidden: int | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.linear = FanInLinear(in_features, out_features)
        self.aligner = Aligner(out_features, hidden)
        self.hidden = self.aligner.hidden

    def forward(self, x: Float[Tensor, "... n"]) -> Float[Tensor, "... d"]:
        """Apply the map to the last axis."""
        return self.aligner(self.linear(x))


class NormalizedReadin(nn.Module):
    """An `AlignedReadin` of channels from which a mean is taken, and which are scaled.

    A channel of scale 0 reads as 0. `mean` and `scale` are buffers, in the state dict.

    Parameters
    ----------
    readin : AlignedReadin
    """

    lookahead = 0
    mean: Tensor
    scale: Tensor

    def __init__(self, readin: AlignedReadin) -> None:
        super().__init__()
        self.readin = readin
        self.register_buffer("mean", torch.zeros(readin.in_features))
        self.register_buffer("scale", torch.ones(readin.in_features))

    @property
    def in_features(self) -> int:
        """Channels of the day."""
        return self.readin.in_features

    @property
    def out_features(self) -> int:
        """What the model reads."""
        return self.readin.out_features

    @property
    def linear(self) -> FanInLinear:
        """The linear map of the normalised channels."""
        return self.readin.linear

    @property
    def aligner(self) -> Aligner:
        """The map after it."""
        return self.readin.aligner

    def forward(self, x: Float[Tensor, "... n"]) -> Float[Tensor, "... d"]:
        """Apply the map to the last axis."""
        return self.readin((x - self.mean) * self.scale)

    @torch.no_grad()
    def folded(self) -> AlignedReadin:
        """Return the same map of the channels as they come."""
        # In float64: a mean far above the scale would cost digits of the bias.
        given, plain = self.readin, AlignedReadin(self.in_features, self.out_features, self.hidden)
        weight = given.linear.weight.double() * self.scale.double()
        plain.load_state_dict(given.state_dict())
        plain.linear.weight.copy_(weight)
        plain.linear.bias.copy_(given.linear.bias.double() - weight @ self.mean.double())
        return plain

    @property
    def hidden(self) -> int:
        """Hidden units of the aligner."""
        return self.readin.hidden
