"""Maps between the channels of a session and what all sessions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import find_sessions, read_session
from ..errors import ConfigError, DataError
from .initial_readout import ChannelStats, Line, initial_blocks, log_line, set_blocks


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
        onto components that all sessions share, `lfads align-init`):
        y = (x - readout_bias) @ readin_weight, or with `readin_offset` where the file has it.
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
        sessions = _read_sessions(datafile_pattern)
        if pcr_init:
            _check_agree(sessions)
        for session in sessions:
            n_channels = session.splits["train"].encod_data.shape[2]
            if pcr_init:
                weight, offset = readin_of(session, n_channels)
                out = _agreed(out_features, weight.shape[1], "out_features", session)
                layer = FanInLinear(weight.shape[0], out)
                _set(layer.weight, weight.T)
                _set(layer.bias, -offset @ weight)
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
        Start from the files' `readout_weight` (or the pseudo-inverse of `readin_weight`) and
        `readout_bias`, which say how the mean depends on the factors. A model turns them into the
        parameters of its reconstruction (`start_from`).
    requires_grad : bool
        Whether training changes the maps.
    recon_params : int
        Parameters per channel of the observation model.
    link : {"log", "identity"}, optional
        Overrules the reconstruction: the first block of parameters is the mean's logarithm
        (linearised about `readout_bias`), or the mean itself; the others are drawn at random.
        Until a model is built, "log".
    """

    def __init__(
        self,
        datafile_pattern: str,
        in_features: int | None = None,
        pcr_init: bool = True,
        requires_grad: bool = True,
        recon_params: int = 1,
        link: str | None = None,
    ) -> None:
        if link not in ("log", "identity", None):
            raise ConfigError(f"readout: link is {link!r}; legal are 'log' and 'identity'")
        layers, starts = [], []
        sessions = _read_sessions(datafile_pattern)
        if pcr_init:
            _check_agree(sessions)
        for session in sessions:
            recon_data = session.splits["train"].recon_data
            n_channels = recon_data.shape[2]
            if pcr_init:
                line = _line_of(session)
                features = _agreed(in_features, line.weight.shape[1], "in_features", session)
                layer = FanInLinear(features, recon_params * n_channels)
                first = line if link == "identity" else log_line(line)
                set_blocks(layer, [first, *[None] * (recon_params - 1)])
                starts.append((session.path, line, ChannelStats.of(recon_data)))
            else:
                if in_features is None:
                    raise ConfigError("readout: in_features is needed when pcr_init is false")
                layer = FanInLinear(in_features, recon_params * n_channels)
            layers.append(layer.requires_grad_(requires_grad))
        super().__init__(layers)
        self._starts = [] if link else starts

    def start_from(self, recons: Sequence[nn.Module]) -> None:
        """Start every session's map so that its reconstruction's means follow the files' maps.

        Parameters
        ----------
        recons : sequence of Module
            One reconstruction per session.

        Raises
        ------
        ConfigError
            Where `recon_params` is not the reconstruction's number of parameters.
        """
        layers: list[Any] = list(self)
        for layer, recon, start in zip(layers, recons, self._starts, strict=False):
            path, line, stats = start
            blocks = initial_blocks(recon, line, stats)
            if layer.out_features != len(blocks) * len(stats.mean):
                raise ConfigError(
                    f"readout: recon_params is {layer.out_features // len(stats.mean)}, but "
                    f"{type(recon).__name__} has {len(blocks)} parameters per channel ({path})"
                )
            set_blocks(layer, blocks)


def _read_sessions(datafile_pattern: str) -> list[Any]:
    # Of the trials only sizes and sums over them are needed.
    return [read_session(path, in_memory=False) for path in find_sessions(datafile_pattern)]


def _check_agree(sessions: Sequence[Any]) -> None:
    columns = {
        session.path.name: session.readin_weight.shape[1]
        for session in sessions
        if session.readin_weight is not None
    }
    if len(set(columns.values())) > 1:
        raise DataError(
            f"the files' readin_weight have different numbers of columns: {columns}; align them "
            "together (lfads align-init)"
        )


def _needed(session: Any, *keys: str) -> list[np.ndarray]:
    found = [getattr(session, key) for key in keys]
    if any(array is None for array in found):
        raise DataError(
            f"{session.path}: pcr_init needs the keys readin_weight (channels x factors) and "
            "readout_bias (channels), and the file lacks them; add them (lfads align-init), or set "
            "pcr_init: false"
        )
    return [np.asarray(array, dtype=np.float64) for array in found]


def readin_of(session: Any, n_channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight (N_e, factors) and offset (N_e,) of a session's read-in."""
    weight, bias = _needed(session, "readin_weight", "readout_bias")
    if weight.shape[0] != n_channels:
        raise DataError(
            f"{session.path}: readin_weight has {weight.shape[0]} rows, but "
            f"train_encod_data has {n_channels} channels; they must agree"
        )
    own = session.readin_offset
    offset = bias[:n_channels] if own is None else np.asarray(own, dtype=np.float64)
    if len(offset) != n_channels:
        raise DataError(
            f"{session.path}: readin_offset has {len(offset)} entries, but "
            f"train_encod_data has {n_channels} channels; they must agree"
        )
    return weight, offset


def _line_of(session: Any) -> Line:
    """Means per bin as a linear function of the factors."""
    readin, bias = _needed(session, "readin_weight", "readout_bias")
    own = session.readout_weight
    weight = np.linalg.pinv(readin).T if own is None else np.asarray(own, dtype=np.float64)
    if weight.shape[1] != readin.shape[1]:
        raise DataError(
            f"{session.path}: readout_weight has {weight.shape[1]} columns, readin_weight "
            f"{readin.shape[1]}; they must agree"
        )
    n_both = min(len(weight), len(bias))
    return Line(weight[:n_both], bias[:n_both])


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
