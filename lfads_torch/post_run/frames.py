"""Outputs as labelled tables: xarray and pandas, where they are installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UserError

if TYPE_CHECKING:
    import pandas
    import xarray

    from .outputs import Trials

# Dimensions after the trials; `time` are the bins that are reconstructed, `time_read` those read.
_DIMENSIONS = {
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
}
_TIMES = ("time", "time_read", "time_ext")


def to_xarray(trials: Trials) -> xarray.Dataset:
    """All numeric arrays of `trials` as one dataset.

    Parameters
    ----------
    trials : Trials

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
    variables: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    arrays = {name: trials[name] for name in trials.names}
    arrays = {name: array for name, array in arrays.items() if array.dtype.kind in "buif"}
    if trials.bin_ms is not None and trials.session.counts:
        arrays["rates"] = trials.rates
    lengths = {
        dimension: array.shape[1]
        for name, dimension in (("recon_data", "time"), ("encod_data", "time_read"))
        if (array := arrays.get(name)) is not None
    }
    lengths.setdefault("time", arrays["output_params"].shape[1])
    for name, array in arrays.items():
        dimensions = ("trial", *_dimensions(name, array, lengths))
        variables[name] = (dimensions, array, _attributes(name, trials))
        sizes.update(zip(dimensions, array.shape, strict=True))
    unit = 1.0 if trials.bin_ms is None else trials.bin_ms / 1000
    coordinates: dict[str, Any] = {
        time: (time, np.arange(sizes[time]) * unit, {"units": "bin" if unit == 1.0 else "s"})
        for time in _TIMES
        if time in sizes
    }
    coordinates["split"] = ("trial", trials.split)
    return xarray.Dataset(variables, coordinates)


def to_pandas(trials: Trials, name: str) -> pandas.DataFrame:
    """One array of `trials` as a table.

    Parameters
    ----------
    trials : Trials
    name : str
        An array's name, or ``rates``.

    Returns
    -------
    pandas.DataFrame
        A row per trial; of arrays with bins, a row per trial and bin (index ``trial``, ``bin``). A
        column per channel, factor, ...

    Raises
    ------
    UserError
        If pandas is not installed.
    DataError
        If the array has more than three dimensions, or there is none of that name.
    """
    try:
        import pandas
    except ImportError as error:
        raise _not_installed("pandas") from error
    array = trials.rates if name == "rates" else trials[name]
    if array.ndim > 3:
        raise DataError(f"{name!r} has {array.ndim} dimensions; a table takes up to three")
    rows: pandas.Index = pandas.RangeIndex(len(array), name="trial")
    if array.ndim == 3:
        rows = pandas.MultiIndex.from_product(
            [range(array.shape[0]), range(array.shape[1])], names=["trial", "bin"]
        )
    known = _DIMENSIONS.get(name)
    columns = pandas.RangeIndex(
        1 if array.ndim == 1 else array.shape[-1], name=known[-1] if known else name
    )
    return pandas.DataFrame(array.reshape(len(rows), len(columns)), index=rows, columns=columns)


def _dimensions(name: str, array: NDArray[Any], lengths: dict[str, int]) -> tuple[str, ...]:
    known = _DIMENSIONS.get(name, ())
    if len(known) == array.ndim - 1:
        return known
    # The user's own: the second axis is time where its length says so.
    own = [f"{name}_{axis}" for axis in range(1, array.ndim)]
    times = [time for time, length in lengths.items() if array.shape[1:2] == (length,)]
    if array.ndim == 3 and times:
        own[0] = times[0]
    return tuple(own)


def _attributes(name: str, trials: Trials) -> dict[str, str]:
    if name == "rates":
        return {"units": "spikes/s"}
    per_bin = name in ("output_params", "truth", "recon_data", "encod_data")
    return {"units": "spikes/bin"} if per_bin and trials.session.counts else {}


def _not_installed(package: str) -> UserError:
    return UserError(
        f"{package} is not installed; `pip install {package}`, or use the arrays as they are"
    )
