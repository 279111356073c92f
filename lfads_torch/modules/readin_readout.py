"""Maps between the channels of a session and what all sessions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import find_sessions, session_in_use
from ..errors import ConfigError, DataError, one_of, whole
from .initial_readout import ChannelStats, Line, initial_blocks, log_line, set_blocks


class FanInLinear(nn.Linear):
    """Linear map y = W x + b with weights drawn from N(0, 1 / in_features) and b = 0.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of x and y.
    bias : bool
        Whether b exists.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.normal_(self.weight, std=max(1, self.in_features) ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class NormalizedLinear(FanInLinear):
    """The factor matrix: linear, no bias, each row scaled to unit Euclidean norm at every use.

    Source: Pandarinath et al. 2018 (doi:10.1038/s41592-018-0109-9).

    Parameters
    ----------
    in_features, out_features : int
        Sizes of input and output, the generator's states and the factors.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    @property
    def unit_weight(self) -> Tensor:
        """Return the weight with rows of unit norm, shape (out_features, in_features)."""
        return nn.functional.normalize(self.weight, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map to the last axis."""
        return nn.functional.linear(x, self.unit_weight)


class MultisessionReadin(nn.ModuleList):
    """One linear read-in per session file, in the order of the sorted paths.

    With `pcr_init`, a session starts as y = (x - readout_bias) @ readin_weight, or with
    `readin_offset` instead of `readout_bias` where the file has it: principal-component regression
    onto components that all sessions share, which `lfads align-init` writes into the files.
    Source: Pandarinath et al. 2018 (doi:10.1038/s41592-018-0109-9).

    Parameters
    ----------
    datafile_pattern : str
        Glob pattern of the session files.
    out_features : int, optional
        Channels after read-in; by default the columns of the files' `readin_weight`.
    pcr_init : bool
        Start from the files; else from random numbers.
    requires_grad : bool
        Whether training changes the maps.

    Raises
    ------
    ConfigError
        Where `out_features` is needed, or is not what the files say.
    DataError
        Where a file lacks the keys, or their sizes disagree.
    """

    def __init__(
        self,
        datafile_pattern: str,
        out_features: int | None = None,
        pcr_init: bool = True,
        requires_grad: bool = False,
    ) -> None:
        layers = []
        for session in _read_sessions(datafile_pattern, pcr_init):
            n_channels = session.splits["train"].encod_data.shape[2]
            if pcr_init:
                weight, offset = readin_of(session, n_channels)
                out = _agreed(out_features, weight.shape[1], "out_features", session)
                layer = FanInLinear(n_channels, out)
                with torch.no_grad():
                    layer.weight.copy_(torch.from_numpy(weight.T))
                    layer.bias.copy_(torch.from_numpy(-offset @ weight))
            else:
                layer = FanInLinear(n_channels, _given(out_features, "readin: out_features"))
            layers.append(layer.requires_grad_(requires_grad))
        super().__init__(layers)


class MultisessionReadout(nn.ModuleList):
    """One linear read-out per session file, in the order of the sorted paths.

    With `pcr_init`, a session starts from the files' `readout_weight` (or the pseudo-inverse of
    `readin_weight`) and `readout_bias`, which say how the mean depends on the factors:
    mean = readout_bias + readout_weight @ factors. A model turns these into the parameters of its
    reconstruction (`start_from`).

    Parameters
    ----------
    datafile_pattern : str
        Glob pattern of the session files.
    in_features : int, optional
        Factors; by default the columns of the files' `readin_weight`.
    pcr_init : bool
        Start from the files; else from random numbers.
    requires_grad : bool
        Whether training changes the maps.
    recon_params : int
        Parameters per channel of the observation model.
    link : {"log", "identity"}, optional
        Overrules the reconstruction: the first block of parameters is the mean's logarithm
        (linearised about `readout_bias`), or the mean itself; the others are drawn at random.
        Until a model is built, "log".

    Raises
    ------
    ConfigError
        Where `in_features` is needed, or is not what the files say, or `link` is not legal.
    DataError
        Where a file lacks the keys, or their sizes disagree.
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
        one_of("readout: link", link, ("log", "identity", None))
        recon_params = whole("readout: recon_params", recon_params, least=1)
        layers, starts = [], []
        for session in _read_sessions(datafile_pattern, pcr_init):
            recon_data = session.splits["train"].recon_data
            n_outputs = recon_params * recon_data.shape[2]
            if pcr_init:
                line = _line_of(session)
                features = _agreed(in_features, line.weight.shape[1], "in_features", session)
                layer = FanInLinear(features, n_outputs)
                first = line if link == "identity" else log_line(line)
                set_blocks(layer, [first, *[None] * (recon_params - 1)])
                starts.append((session.path, line, ChannelStats.of(recon_data)))
            else:
                layer = FanInLinear(_given(in_features, "readout: in_features"), n_outputs)
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


def _read_sessions(datafile_pattern: str, pcr_init: bool) -> list[Any]:
    sessions = [session_in_use(path) for path in find_sessions(datafile_pattern)]
    weights = {s.path.name: s.readin_weight for s in sessions if s.readin_weight is not None}
    columns = {name: weight.shape[1] for name, weight in weights.items()}
    if pcr_init and len(set(columns.values())) > 1:
        raise DataError(
            f"the files' readin_weight have different numbers of columns: {columns}; align them "
            "together (lfads align-init)"
        )
    return sessions


def readin_of(session: Any, n_channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weight (N_e, factors) and offset (N_e,) of a session's read-in, in float64."""
    weight, bias = _regression(session)
    offset = session.readin_offset
    offset = bias[:n_channels] if offset is None else np.asarray(offset, dtype=np.float64)
    for name, what, size in (
        ("readin_weight", "rows", len(weight)),
        ("readin_offset", "entries", len(offset)),
    ):
        if size != n_channels:
            raise DataError(
                f"{session.path}: {name} has {size} {what}, but train_encod_data has {n_channels} "
                "channels; they must agree"
            )
    return weight, offset


def _line_of(session: Any) -> Line:
    """Means per bin as a linear function of the factors."""
    readin, bias = _regression(session)
    weight = session.readout_weight
    weight = np.linalg.pinv(readin).T if weight is None else np.asarray(weight, dtype=np.float64)
    if weight.shape[1] != readin.shape[1]:
        raise DataError(
            f"{session.path}: readout_weight has {weight.shape[1]} columns, readin_weight "
            f"{readin.shape[1]}; they must agree"
        )
    n_both = min(len(weight), len(bias))
    return Line(weight[:n_both], bias[:n_both])


def _regression(session: Any) -> list[np.ndarray]:
    arrays = session.readin_weight, session.readout_bias
    if any(array is None for array in arrays):
        raise DataError(
            f"{session.path}: pcr_init needs the keys readin_weight (channels x factors) and "
            "readout_bias (channels), and the file lacks them; add them (lfads align-init), or set "
            "pcr_init: false"
        )
    return [np.asarray(array, dtype=np.float64) for array in arrays]


def _given(value: int | None, name: str) -> int:
    if value is None:
        raise ConfigError(f"{name} is needed when pcr_init is false")
    return value


def _agreed(value: int | None, columns: int, name: str, session: Any) -> int:
    if value not in (None, columns):
        raise ConfigError(
            f"{name} is {value}, but readin_weight of {session.path} has {columns} columns; "
            f"set {name} to {columns} or to null"
        )
    return columns
