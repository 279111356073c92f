"""Maps between the channels of a session and what all sessions share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.schema import find_sessions, read_session
from ..errors import ConfigError, DataError


class FanInLinear(nn.Linear):
    """Linear map with weights from N(0, 1 / in_features) and zero bias.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.normal_(self.weight, std=max(1, self.in_features) ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class NormalizedLinear(FanInLinear):
    """The factor matrix: linear, no bias, each row scaled to unit Euclidean norm at every use."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    @property
    def unit_weight(self) -> Tensor:
        """The weight with rows of unit norm, shape (out_features, in_features)."""
        return nn.functional.normalize(self.weight, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map to the last axis."""
        return nn.functional.linear(x, self.unit_weight)


class MultisessionReadin(nn.ModuleList):
    """One linear read-in per session file, in the order of the sorted paths.

    Parameters
    ----------
    datafile_pattern : str
        Glob pattern of the session files.
    out_features : int, optional
        Channels after read-in; by default the columns of the files' `readin_weight`.
    pcr_init : bool
        Start from the files' `readin_weight` and `readout_bias` (principal-component regression
        onto components that all sessions share): y = (x - readout_bias) @ readin_weight.
    requires_grad : bool
        Whether training changes the maps.
    """

    def __init__(
        self,
        datafile_pattern: str,
        out_features: int | None = None,
        pcr_init: bool = True,
        requires_grad: bool = False,
    ) -> None:
        layers = []
        for session in _read_sessions(datafile_pattern):
            n_channels = session.splits["train"].encod_data.shape[2]
            if pcr_init:
                weight, offset = _pcr_arrays(session)
                out = _agreed(out_features, weight.shape[1], "out_features", session)
                layer = FanInLinear(weight.shape[0], out)
                _set(layer.weight, weight.T)
                _set(layer.bias, -offset @ weight)
                if weight.shape[0] != n_channels:
                    raise DataError(
                        f"{session.path}: readin_weight has {weight.shape[0]} rows, but "
                        f"train_encod_data has {n_channels} channels; they must agree"
                    )
            else:
                if out_features is None:
                    raise ConfigError("readin: out_features is needed when pcr_init is false")
                layer = FanInLinear(n_channels, out_features)
            layers.append(layer.requires_grad_(requires_grad))
        super().__init__(layers)


class MultisessionReadout(nn.ModuleList):
    """One linear read-out per session file, in the order of the sorted paths.

    Parameters
    ----------
    datafile_pattern : str
        Glob pattern of the session files.
    in_features : int, optional
        Factors; by default the columns of the files' `readin_weight`.
    pcr_init : bool
        Start the first block of parameters from the pseudo-inverse of the read-in.
    requires_grad : bool
        Whether training changes the maps.
    recon_params : int
        Parameters per channel of the observation model.
    link : {"log", "identity"}
        What the first block of parameters is of the mean: its logarithm (Poisson, Gamma: the
        pseudo-inverse is linearised about the mean count), or the mean itself (Gaussian, MSE).
    """

    def __init__(
        self,
        datafile_pattern: str,
        in_features: int | None = None,
        pcr_init: bool = True,
        requires_grad: bool = True,
        recon_params: int = 1,
        link: str = "log",
    ) -> None:
        if link not in ("log", "identity"):
            raise ConfigError(f"readout: link is {link!r}; legal are 'log' and 'identity'")
        layers = []
        for session in _read_sessions(datafile_pattern):
            n_channels = session.splits["train"].recon_data.shape[2]
            if pcr_init:
                readin, offset = _pcr_arrays(session)
                weight, bias = np.linalg.pinv(readin).T, offset
                if link == "log":
                    # A silent channel has no logarithm; this floor is far below any real rate.
                    mean = np.maximum(offset, 1e-4)
                    weight, bias = weight / mean[:, None], np.log(mean)
                features = _agreed(in_features, weight.shape[1], "in_features", session)
                layer = FanInLinear(features, recon_params * n_channels)
                with torch.no_grad():
                    rows = weight.shape[0]
                    layer.weight[:rows].copy_(torch.from_numpy(weight))
                    layer.bias[:rows].copy_(torch.from_numpy(bias))
            else:
                if in_features is None:
                    raise ConfigError("readout: in_features is needed when pcr_init is false")
                layer = FanInLinear(in_features, recon_params * n_channels)
            layers.append(layer.requires_grad_(requires_grad))
        super().__init__(layers)


def _read_sessions(datafile_pattern: str) -> list[Any]:
    return [read_session(path) for path in find_sessions(datafile_pattern)]


def _pcr_arrays(session: Any) -> tuple[np.ndarray, np.ndarray]:
    if session.readin_weight is None or session.readout_bias is None:
        raise DataError(
            f"{session.path}: pcr_init needs the keys readin_weight (channels x factors) and "
            "readout_bias (channels), and the file lacks them; add them, or set pcr_init: false"
        )
    return (
        np.asarray(session.readin_weight, dtype=np.float64),
        np.asarray(session.readout_bias, dtype=np.float64),
    )


def _agreed(wanted: int | None, found: int, name: str, session: Any) -> int:
    if wanted is not None and wanted != found:
        raise ConfigError(
            f"{name} is {wanted}, but readin_weight of {session.path} has {found} columns; "
            f"set {name} to {found} or to null"
        )
    return found


def _set(parameter: Tensor, values: np.ndarray) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
