"""Maps between the channels of a session and what all sessions share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import find_sessions, session_in_use
from ..errors import ConfigError, DataError, one_of, whole
from .initial_readout import ChannelStats, Line, initial_blocks, log_line, set_blocks
from .initializers import init_linear_


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
        init_linear_(self)


class NormalizedLinear(FanInLinear):
    """The factor matrix: linear, no bias, each row scaled to unit Euclidean norm at every use.

    Source: Pandarinath et al. 2018 (doi:10.1038/s41592-018-0109-9).

    Parameters
    ----------
    in_features, out_features : int
        Sizes of input and output, the generator's states and the factors.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        if bias:
            raise ConfigError("the factors take no bias; leave the argument out")
        super().__init__(in_features, out_features, bias=False)

    @property
    def unit_weight(self) -> Tensor:
        """Return the weight with rows of unit norm, shape (out_features, in_features)."""
        return nn.functional.normalize(self.weight, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map to the last axis."""
        return nn.functional.linear(x, self.unit_weight)


class _MultisessionModuleList(nn.ModuleList, ABC):
    """One linear layer per session file, in the order of the sorted paths.

    A subclass says how a session's layer starts; your own may override `_get_layer_shape` and
    `_get_state_dict` of the two below.
    """

    def __init__(self, datafile_pattern: Any, pcr_init: bool, requires_grad: bool) -> None:
        super().__init__()
        self.datafile_pattern, self.pcr_init = datafile_pattern, pcr_init
        paths = find_sessions(datafile_pattern)
        # All sessions are held until the last layer is made, so that each file is read once.
        sessions = [session_in_use(path) for path in paths]
        if pcr_init:
            _check_columns(sessions)
        for path in paths:
            layer = FanInLinear(*self._get_layer_shape(str(path)))
            if pcr_init:
                layer.load_state_dict(self._get_state_dict(str(path)))
            self.append(layer.requires_grad_(requires_grad))

    @abstractmethod
    def _get_layer_shape(self, data_path: str) -> tuple[int, int]:
        """Return in_features and out_features of a session's layer."""

    @abstractmethod
    def _get_state_dict(self, data_path: str) -> dict[str, Tensor]:
        """Return weight and bias that a session's layer starts from, with `pcr_init`."""


class MultisessionReadin(_MultisessionModuleList):
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
        datafile_pattern: Any,
        out_features: int | None = None,
        pcr_init: bool = True,
        requires_grad: bool = False,
    ) -> None:
        self._out_features = out_features
        super().__init__(datafile_pattern, pcr_init, requires_grad)

    @property
    def out_features(self) -> int:
        """Channels after read-in."""
        return int(getattr(self[0], "out_features"))  # noqa: B009 - typed as any module

    def _get_layer_shape(self, data_path: str) -> tuple[int, int]:
        session, out_features = session_in_use(data_path), self._out_features
        n_channels = session.splits["train"].encod_data.shape[2]
        if not self.pcr_init:
            return n_channels, _given(out_features, "readin: out_features")
        columns = readin_of(session, n_channels)[0].shape[1]
        return n_channels, _agreed(out_features, columns, "out_features", session)

    def _get_state_dict(self, data_path: str) -> dict[str, Tensor]:
        session = session_in_use(data_path)
        weight, offset = readin_of(session, session.splits["train"].encod_data.shape[2])
        return {"weight": _tensor(weight.T), "bias": _tensor(-offset @ weight)}


class MultisessionReadout(_MultisessionModuleList):
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
        datafile_pattern: Any,
        in_features: int | None = None,
        pcr_init: bool = True,
        requires_grad: bool = True,
        recon_params: int = 1,
        link: str | None = None,
    ) -> None:
        one_of("readout: link", link, ("log", "identity", None))
        self._in_features, self._link = in_features, link
        self._recon_params = whole("readout: recon_params", recon_params, least=1)
        super().__init__(datafile_pattern, pcr_init, requires_grad)
        self._starts: list[tuple[Any, Line, ChannelStats]] = []
        # A start of your own stands, whatever the reconstruction.
        if pcr_init and not link and _is_ours(self._get_state_dict):
            for path in find_sessions(datafile_pattern):
                session = session_in_use(path)
                stats = ChannelStats.of(session.splits["train"].recon_data)
                self._starts.append((path, _line_of(session), stats))

    @property
    def in_features(self) -> int:
        """Number of factors."""
        return int(getattr(self[0], "in_features"))  # noqa: B009

    def _get_layer_shape(self, data_path: str) -> tuple[int, int]:
        session, in_features = session_in_use(data_path), self._in_features
        n_outputs = self._recon_params * session.splits["train"].recon_data.shape[2]
        if not self.pcr_init:
            return _given(in_features, "readout: in_features"), n_outputs
        columns = _line_of(session).weight.shape[1]
        return _agreed(in_features, columns, "in_features", session), n_outputs

    def _get_state_dict(self, data_path: str) -> dict[str, Tensor]:
        line = _line_of(session_in_use(data_path))
        # The stream of random numbers stays where one draw per layer leaves it.
        with torch.random.fork_rng(devices=[]):
            layer = FanInLinear(*self._get_layer_shape(data_path))
        first = line if self._link == "identity" else log_line(line)
        set_blocks(layer, [first, *[None] * (self._recon_params - 1)])
        return layer.state_dict()

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


def _check_columns(sessions: Sequence[Any]) -> None:
    weights = {s.path.name: s.readin_weight for s in sessions if s.readin_weight is not None}
    columns = {name: weight.shape[1] for name, weight in weights.items()}
    if len(set(columns.values())) > 1:
        raise DataError(
            f"the files' readin_weight have different numbers of columns: {columns}; align them "
            "together (lfads align-init)"
        )


def _is_ours(method: Any) -> bool:
    return method.__func__ is MultisessionReadout._get_state_dict


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))


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
