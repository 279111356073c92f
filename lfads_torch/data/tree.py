"""The tree of an HDF5 file: links that lead nowhere, sources in other files, unwritten arrays."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

# Fewer bytes are read in a second or two, whatever they are.
_LARGE = 1 << 29
# Gzip packs zeros 1032 times, and nothing packs real data so well. A file that keeps still less of
# what it declares was never written to its end, or its header is damaged.
_MOST_PACKED = 1100

Place = tuple[str, Any, str | None]


def walk(group: h5py.Group) -> Iterator[Place]:
    """Yield every path below a group, what it leads to (None: nothing), and where a link points."""
    # Links can lead back up, so a group is entered once. `visititems` leaves links out.
    entered = set()

    def look(node: h5py.Group, above: str) -> Iterator[Place]:
        info = h5py.h5o.get_info(node.id)
        if (info.fileno, info.addr) in entered:
            return
        entered.add((info.fileno, info.addr))
        for name in node:
            link = node.get(name, getlink=True)
            target = None
            if isinstance(link, h5py.ExternalLink):
                target = f"{link.path} in {link.filename}"
            elif isinstance(link, h5py.SoftLink):
                target = link.path
            try:
                item = node[name]
            except (KeyError, OSError, RuntimeError, ValueError):
                item = None
            yield f"{above}{name}", item, target
            if isinstance(item, h5py.Group):
                yield from look(item, f"{above}{name}/")

    yield from look(group, "")


def tree_faults(file: h5py.File) -> dict[str, str]:
    """Say by key what a file promises and does not hold: links, sources, arrays, at any depth."""
    faults = {}
    for key, item, target in walk(file):
        if item is None:
            where = f"is a link to {target}, where nothing is" if target else "cannot be opened"
            faults[key] = (
                f"{key!r} {where}. Outputs take every key along, so mend it, or delete it: "
                f"python -c \"import h5py; del h5py.File({str(file.filename)!r}, 'a')[{key!r}]\""
            )
        elif isinstance(item, h5py.Dataset):
            if lost := lost_sources(item):
                faults[key] = (
                    f"{key!r} takes its numbers from {', '.join(lost)}, which cannot be read; HDF5 "
                    "would give zeros in their place. Put the file there, or copy the numbers "
                    "into this one."
                )
            elif text := unwritten(item):
                faults[key] = f"{key!r} {text}"
    return faults


def lost_sources(data: h5py.Dataset) -> list[str]:
    """Name what a virtual or external data set takes its numbers from and is not there."""
    folder = Path(data.file.filename).parent
    lost = []
    for name, _, _ in data.external or ():
        if _beside(name, folder) is None:
            lost.append(str(name))
    for name, key in _sources(data):
        if name == ".":
            source = data.file.get(key)
            is_lost = not isinstance(source, h5py.Dataset) or bool(lost_sources(source))
        else:
            path, is_lost = _beside(name, folder), True
            if path is not None:
                try:
                    with h5py.File(path, "r", locking="best-effort") as other:
                        source = other.get(key)
                        is_lost = not isinstance(source, h5py.Dataset) or bool(lost_sources(source))
                except OSError:
                    pass
        if is_lost:
            lost.append(f"{key} of {'the file itself' if name == '.' else name}")
    return lost


def unwritten(data: h5py.Dataset) -> str | None:
    """Say that a data set declares far more than its file keeps; None where it may be read."""
    declared = math.prod(data.shape or ()) * data.dtype.itemsize
    if declared < _LARGE or _kept(data) * _MOST_PACKED >= declared:
        return None
    return (
        f"declares {math.prod(data.shape):.3g} entries ({declared / 1e9:.3g} GB), of which the "
        f"file keeps {_kept(data) / 1e6:.3g} MB: it was not written to its end, or its header is "
        "damaged. Make or copy it again."
    )


def _kept(data: h5py.Dataset) -> int:
    """Return the bytes on the disk that hold a data set's numbers, at most."""
    folder = Path(data.file.filename).parent
    if data.external:
        paths = [_beside(name, folder) for name, _, _ in data.external]
        return sum(path.stat().st_size for path in paths if path is not None)
    kept = 0
    if data.is_virtual:
        for name, key in set(_sources(data)):
            path = Path(data.file.filename) if name == "." else _beside(name, folder)
            if path is not None:
                with h5py.File(path, "r", locking="best-effort") as other:
                    kept += _kept(other[key])
        return kept
    # A sparse file takes less room on the disk than HDF5 has laid out in it.
    status = os.stat(data.file.filename) if os.path.isfile(data.file.filename) else None
    blocks = getattr(status, "st_blocks", None)
    kept = int(data.id.get_storage_size())
    return kept if blocks is None else min(kept, 512 * blocks)


def _sources(data: h5py.Dataset) -> list[tuple[str, str]]:
    """Return file and key of each source of a virtual data set; "." is the file itself."""
    if not data.is_virtual:
        return []
    pairs = [(str(one.file_name), str(one.dset_name)) for one in data.virtual_sources()]
    # A name with %b stands for a row of files, of which HDF5 takes those that are there.
    return [pair for pair in pairs if "%" not in "".join(pair)]


def _beside(name: str | bytes, folder: Path) -> Path | None:
    """Return the file that HDF5 opens by a name in another file; None where it is not there."""
    # HDF5 looks in the working directory too; a run works in a folder of its own, so that a file
    # that is only there now would be gone by then.
    path = Path(os.fsdecode(name))
    places = [folder / path, folder / path.name] if path.is_absolute() else [folder / path]
    return next((place for place in places if place.is_file()), None)
