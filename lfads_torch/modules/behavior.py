"""The readout of behaviour that trains with the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from ..tuples import bins_past
from .readin_readout import FanInLinear


class BehaviorReadout(FanInLinear):
    """Behaviour, standardised: y = W z + b, with W from N(0, 1 / in_features) and b = 0.

    `mean` and `std` of each dimension are those of the training trials, in the units of the data
    file. A dimension that does not vary there has the `std` 0: it is predicted by its mean, and no
    loss counts it.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of z and y.
    source : {"gen_states", "factors", "rates"}
        What z is: rates are log rates, or means where the read-out has no log link.
    detach : bool
        Whether no gradient goes from here into the model.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, in_features: int, out_features: int, source: str = "gen_states", detach: bool = False
    ) -> None:
        # What is drawn here changes no other draw: a model with it trains as one without it.
        with torch.random.fork_rng(devices=[]):
            super().__init__(in_features, out_features)
        self.source, self.detach = source, detach
        self.register_buffer("mean", torch.zeros(out_features))
        self.register_buffer("std", torch.ones(out_features))

    @property
    def is_standardised(self) -> bool:
        """Whether mean and standard deviation are known."""
        return bool((self.mean != 0).any() or (self.std != 1).any())

    @torch.no_grad()
    def standardise(self, mean: NDArray[np.float64], std: NDArray[np.float64]) -> None:
        """Take mean and standard deviation of each dimension of the training trials."""
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(std))

    def forward(self, z: Float[Tensor, "*any M"]) -> Float[Tensor, "*any D"]:
        """Return standardised behaviour."""
        return nn.functional.linear(z.detach() if self.detach else z, self.weight, self.bias)

    def features(
        self,
        gen_states: Float[Tensor, "B T G"],
        factors: Float[Tensor, "B T F"],
        params: Float[Tensor, "B T N k"],
        recon: Any,
    ) -> Float[Tensor, "B T M"]:
        """Return what is read out, of all that it can be; `params` are those of `recon`."""
        if self.source == "gen_states":
            return gen_states
        if self.source == "factors":
            return factors
        means: Tensor = recon.compute_means(params)
        return params[..., 0] if getattr(recon, "for_counts", False) else means

    def in_units(self, y: Float[Tensor, "*any D"]) -> Float[Tensor, "*any D"]:
        """Return standardised behaviour in the units of the data file."""
        return y * self.std + self.mean

    def errors(
        self,
        y: Float[Tensor, "B T D"],
        target: Float[Tensor, "B Ty D"],
        lengths: Int[Tensor, " B"] | None,
    ) -> tuple[Float[Tensor, "B Ty D"], Bool[Tensor, "B Ty D"]]:
        """Return standardised errors, 0 where nothing is observed, and what is observed.

        Observed are numbers, in the bins of a trial, of dimensions that vary. The bins of `target`
        are the first of `y`.
        """
        observed = ~target.isnan() & (self.std > 0)
        if lengths is not None:
            observed = observed & ~bins_past(lengths, target.shape[1]).unsqueeze(-1)
        known = torch.where(self.std > 0, self.std, 1.0)
        standard = (target.nan_to_num() - self.mean) / known
        return torch.where(observed, y[:, : target.shape[1]] - standard, 0.0), observed
