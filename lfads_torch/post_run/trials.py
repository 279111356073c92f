"""The trials of a run, as named arrays that are read when they are first used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UserError, did_you_mean
from ..progress import html_table

if TYPE_CHECKING:
    import pandas
    import xarray

Array = NDArray[Any]

# Dimensions after the trials; `time` are the bins that are reconstructed, `time_read` those read.
DIMENSIONS = {
    "recon_data": ("time", "channel"),
    "encod_data": ("time_read", "channel_read"),
    "output_params": ("time", "channel"),
    "rates": ("time", "channel"),
    "truth": ("time", "channel"),
    "ext_input": ("time_ext", "ext"),
    "factors": ("time", "factor"),
    "ic_mean": ("ic",),
    "ic_std": ("ic",),
    "co_means": ("time", "co"),
    "co_stds": ("time", "co"),
    "gen_states": ("time", "gen"),
    "gen_init": ("gen",),
    "gen_inputs": ("time", "gen_input"),
    "con_states": ("time", "con"),
    "behavior_prediction": ("time", "behavior"),
}
# What people add to their data under these names may have any shape.
WRITTEN = set(DIMENSIONS) - {"rates", "truth"}
_TIMES = ("time", "time_read", "time_ext")


class Trials:
    """The trials of one split, or of several merged: arrays by name, read when they are first used.

    ``trials["factors"]`` and ``trials.factors`` are the same array, one row per trial in the order
    of the file. Names are those of the file without their split: the model's (fields of
    `SessionOutput`), the data's (``encod_data``, ``recon_data``, ...) and the user's own.
    docs/outputs.md says what each holds.

    Attributes
    ----------
    session : SessionOutputs
        The session that these trials are of.
    names : tuple of str
        Names of the arrays.
    bin_ms : float or None
        Bin width in milliseconds, where known.
    n_trials : int
        Number of trials.
    """

    def __init__(self, session: Any, splits: Sequence[str], order: Array | None = None) -> None:
        self.session, self._splits, self._order = session, tuple(splits), order
        self._arrays: dict[str, Array] = {}
        shared = [session.names_of(split) for split in self._splits]
        self.names = tuple(name for name in shared[0] if all(name in other for other in shared))
        self.bin_ms = session.bin_ms
        self.n_trials = sum(session.n_trials(split) for split in self._splits)

    @property
    def split(self) -> Array:
        """Split of each trial, shape (trials,)."""
        counts = [self.session.n_trials(split) for split in self._splits]
        return self._ordered(np.repeat(np.array(self._splits), counts))

    @property
    def rates(self) -> Array:
        """Inferred rates in spikes/s, shape (trials, bins, channels).

        Raises
        ------
        DataError
            If the bin width is not known, or what was modelled are not counts.
        """
        if self.bin_ms is None:
            raise DataError(
                f"{self.session.path} does not say how wide its bins are, so rates per second "
                "are not known: give load_outputs(..., bin_ms=...), or use output_params, which "
                "are per bin"
            )
        if not self.session.counts:
            raise DataError(
                f"{self.session.path}: recon_data are not counts, so rates in spikes "
                "per second do not exist; output_params are in the units of recon_data"
            )
        return self["output_params"] * np.float32(1000 / self.bin_ms)

    @property
    def time_ms(self) -> Array | None:
        """Where each reconstructed bin begins, in ms from the trial's first bin, shape (bins,)."""
        n_bins = self["output_params"].shape[1]
        return None if self.bin_ms is None else np.arange(n_bins) * self.bin_ms

    @property
    def past_end(self) -> Array | None:
        """Bins past each trial's end, (trials, bins) of bool; None where all trials are whole."""
        if "lengths" not in self:
            return None
        return np.arange(self["output_params"].shape[1]) >= self["lengths"][:, None]

    def __getitem__(self, name: str) -> Array:
        if name not in self.names:
            raise DataError(
                f"{self.session.path} has no {name!r} for {' and '.join(self._splits)}; "
                f"{did_you_mean(name, self.names, limit=40)}"
            )
        if name not in self._arrays:
            arrays = {split: self.session.read(f"{split}_{name}") for split in self._splits}
            if len({array.shape[1:] for array in arrays.values()}) > 1:
                shapes = ", ".join(f"{split} {array.shape}" for split, array in arrays.items())
                raise DataError(f"{name!r} cannot be merged: its shapes are {shapes}")
            first, *others = arrays.values()  # a single one is not copied
            self._arrays[name] = self._ordered(
                np.concatenate([first, *others]) if others else first
            )
        return self._arrays[name]

    def get(self, name: str) -> Array | None:
        """Return the array of that name, or None where the file lacks it."""
        return self[name] if name in self.names else None

    def __getattr__(self, name: str) -> Array:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except DataError as error:
            raise AttributeError(str(error)) from error

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __len__(self) -> int:
        return self.n_trials

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.names})

    def __repr__(self) -> str:
        where = " and ".join(self._splits)
        return f"<{self.n_trials} {where} trials of {self.session.name}: {', '.join(self.names)}>"

    def _repr_html_(self) -> str:
        # Shapes alone: to look at an object must not read all of its file.
        split, shapes = self._splits[0], {}
        for name in self.names:
            shape = self.session._shapes[f"{split}_{name}"]
            shapes[name] = " x ".join(map(str, (self.n_trials, *shape[1:])))
        where = " and ".join(self._splits)
        return html_table(f"{self.n_trials} {where} trials of {self.session.name}", shapes)

    def to_xarray(self) -> xarray.Dataset:
        """Return all numeric arrays as one dataset.

        Returns
        -------
        xarray.Dataset
            Dimensions ``trial``, ``time`` (in s from the trial's first bin where the bin width is
            known, else in bins), ``channel``, ``factor``, ``gen``, ...; with ``rates`` in spikes/s
            where they are known.

        Raises
        ------
        UserError
            If xarray is not installed.
        """
        try:
            import xarray
        except ImportError as error:
            raise _not_installed("xarray") from error
        variables, sizes = dict[str, Any](), dict[str, int]()
        arrays = {name: self[name] for name in self.names if self[name].dtype.kind in "buif"}
        if self.bin_ms is not None and self.session.counts:
            arrays["rates"] = self.rates
        lengths = {
            dimension: array.shape[1]
            for name, dimension in (("recon_data", "time"), ("encod_data", "time_read"))
            if (array := arrays.get(name)) is not None
        }
        lengths.setdefault("time", arrays["output_params"].shape[1])
        for name, array in arrays.items():
            dimensions = ("trial", *_dimensions(name, array, lengths))
            variables[name] = (dimensions, array, _attributes(name, self))
            sizes.update(zip(dimensions, array.shape, strict=True))
        unit = 1.0 if self.bin_ms is None else self.bin_ms / 1000
        coordinates: dict[str, Any] = {
            time: (time, np.arange(sizes[time]) * unit, {"units": "bin" if unit == 1.0 else "s"})
            for time in _TIMES
            if time in sizes
        }
        coordinates["split"] = ("trial", self.split)
        if "window_start" in variables:  # s on the clock of the recording
            coordinates["window_start"] = (*variables.pop("window_start")[:2], {"units": "s"})
        return xarray.Dataset(variables, coordinates)

    def to_pandas(self, name: str) -> pandas.DataFrame:
        """Return one array as a table.

        Parameters
        ----------
        name : str
            An array's name, or ``rates``.

        Returns
        -------
        pandas.DataFrame
            A row per trial; of arrays with bins, a row per trial and bin (index ``trial``,
            ``bin``). A column per channel, factor, ...

        Raises
        ------
        UserError
            If pandas is not installed.
        DataError
            If the array has more than three dimensions, or the name does not exist.
        """
        try:
            import pandas
        except ImportError as error:
            raise _not_installed("pandas") from error
        array = self.rates if name == "rates" else self[name]
        if array.ndim > 3:
            raise DataError(f"{name!r} has {array.ndim} dimensions; a table takes up to three")
        rows: pandas.Index = pandas.RangeIndex(len(array), name="trial")
        if array.ndim == 3:
            rows = pandas.MultiIndex.from_product(
                [range(array.shape[0]), range(array.shape[1])], names=["trial", "bin"]
            )
        known = DIMENSIONS.get(name)
        columns = pandas.RangeIndex(
            1 if array.ndim == 1 else array.shape[-1], name=known[-1] if known else name
        )
        return pandas.DataFrame(array.reshape(len(rows), len(columns)), index=rows, columns=columns)

    def _ordered(self, array: Array) -> Array:
        return array if self._order is None else array[self._order]


def _dimensions(name: str, array: NDArray[Any], lengths: dict[str, int]) -> tuple[str, ...]:
    known = DIMENSIONS.get(name, ())
    if len(known) == array.ndim - 1:
        return known
    # The user's own: the second axis is time where its length says so.
    names = [f"{name}_{axis}" for axis in range(1, array.ndim)]
    times = [time for time, length in lengths.items() if array.shape[1:2] == (length,)]
    if array.ndim == 3 and times:
        names[0] = times[0]
    return tuple(names)


def _attributes(name: str, trials: Trials) -> dict[str, str]:
    if name == "rates":
        return {"units": "spikes/s"}
    per_bin = name in ("output_params", "truth", "recon_data", "encod_data")
    return {"units": "spikes/bin"} if per_bin and trials.session.counts else {}


def _not_installed(package: str) -> UserError:
    return UserError(
        f"{package} is not installed; `pip install {package}`, or use the arrays as they are"
    )
