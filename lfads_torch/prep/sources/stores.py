"""NWB that is no HDF5 file on this machine: Zarr stores, and files that are read by their URL."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...errors import DataError, UserError

_HDF5 = b"\x89HDF\r\n\x1a\n"
_PATIENCE_S = 20.0
_SCHEMES = ("http://", "https://", "s3://")
_ZARR = (".zgroup", ".zmetadata", "zarr.json")


def is_url(source: Any) -> bool:
    """Return whether a source is an address of the web, not a path."""
    return isinstance(source, str) and "://" in source


def open_url(url: str) -> h5py.File:
    """Open an HDF5 file of which only what is needed is transferred."""
    if not url.startswith(_SCHEMES):
        raise UserError(
            f"{url}: legal are {', '.join(_SCHEMES)}. Of DANDI, give an asset's address: "
            "https://api.dandiarchive.org/api/assets/ID/download/."
        )
    try:
        import remfile
    except ImportError as err:
        raise UserError(
            f"{url}: to read over the network takes remfile: pip install 'lfads-torch[remote]'. Or "
            "download the file."
        ) from err
    if url.startswith("s3://"):  # a public bucket, without credentials
        bucket, _, key = url.removeprefix("s3://").partition("/")
        url = f"https://{bucket}.s3.amazonaws.com/{key}"
    try:
        # Asked once before: remfile tries a wrong address again for half a minute.
        first = urllib.request.Request(url, headers={"Range": "bytes=0-7"})
        with urllib.request.urlopen(first, timeout=_PATIENCE_S) as answer:
            if answer.read(8) != _HDF5:
                raise ValueError("it is no HDF5 file")
        return h5py.File(remfile.File(url), "r")
    # What goes wrong on the way raises errors of many kinds.
    except Exception as err:
        raise DataError(
            f"{url} cannot be read: {type(err).__name__}: {err}. Check address and network, or "
            "download the file; only NWB in HDF5 is read by its address."
        ) from err


def is_zarr(path: Path) -> bool:
    """Return whether a folder is a Zarr store."""
    return path.is_dir() and any((path / name).is_file() for name in _ZARR)


def open_zarr(path: Path) -> Any:
    """Open a Zarr store, with the names and methods that h5py has."""
    try:
        import zarr
    except ImportError as err:
        raise UserError(
            f"{path.name} is a Zarr store: pip install 'lfads-torch[zarr]' to read it."
        ) from err
    try:
        root = zarr.open_group(str(path), mode="r")
    except Exception as err:
        raise DataError(f"{path} cannot be read as a Zarr store: {err}") from err
    return ZarrGroup(root, root)


class ZarrGroup:
    """A group of a Zarr store, with the links that hdmf-zarr keeps as attributes."""

    def __init__(self, group: Any, root: Any) -> None:
        self.group, self.root = group, root
        self.attrs, self.name = group.attrs, group.name
        links = group.attrs.get("zarr_link", ())
        self.links = {
            link["name"]: link["path"].strip("/") for link in links if link["source"] == "."
        }

    def __iter__(self) -> Iterator[str]:
        return iter([*self.group, *self.links])

    def __contains__(self, name: str) -> bool:
        return name in self.group or name in self.links

    def __getitem__(self, name: str) -> Any:
        node = self.root[self.links[name]] if name in self.links else self.group[name]
        return ZarrArray(node) if hasattr(node, "dtype") else ZarrGroup(node, self.root)

    def get(self, name: str, default: Any = None, getlink: bool = False) -> Any:
        """Return a member; with `getlink` the default, since links are followed unseen."""
        return default if getlink or name not in self else self[name]

    def keys(self) -> Iterator[str]:
        """Yield names."""
        return iter(self)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield members with their names."""
        return ((name, self[name]) for name in self)


class ZarrArray:
    """An array of a Zarr store; a scalar is stored with one entry."""

    def __init__(self, array: Any) -> None:
        self.array, self.attrs = array, array.attrs
        is_scalar = array.attrs.get("zarr_dtype") == "scalar"
        self.shape: tuple[int, ...] = () if is_scalar else array.shape
        self.dtype, self.ndim, self.size = array.dtype, len(self.shape), int(np.prod(self.shape))
        self.file, self.name = self, array.name
        self.filename = str(getattr(array.store, "path", "Zarr"))

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> Any:
        return self.array[0] if self.shape == () else self.array[rows if rows != () else ...]
