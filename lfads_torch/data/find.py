"""Finding, opening and writing HDF5 files, with errors that say what to do."""

from __future__ import annotations

import glob
import io
import os
import shlex
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import DataError, DataWarning, UserError, nearest
from ..files import absent, cannot_write, check_writable
from ..processes import remove_leftovers, temporary
from .nlb_files import how_to_make
from .tree import walk

# Bytes of a chunk. Short trials share one: HDF5 keeps an entry in an index for each chunk, which
# could take more room than the trial. A chunk must be smaller than 4 GiB.
_LEAST_CHUNK, _MOST_CHUNK = 1 << 14, 1 << 31

Pattern = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

# What a file that is not HDF5 turns out to be, by its first bytes.
_SIGNATURES = {
    b"version https://git-lfs": "a Git LFS pointer: fetch the real file with `git lfs pull`",
    b"MATLAB 5.0": "a MATLAB file older than v7.3",
    b"\x93NUMPY": "a NumPy .npy file",
    b"PK\x03\x04": "a zip archive, perhaps a NumPy .npz file",
    b"\x1f\x8b": "a gzip archive: unpack it first",
}


def absolute_pattern(pattern: str | os.PathLike[str]) -> str:
    """Expand ``~`` and make `pattern` absolute against the working directory."""
    return os.path.abspath(os.path.expanduser(os.fspath(pattern)))


def find_sessions(pattern: Pattern) -> list[Path]:
    """Find the data files that a pattern names, one per session.

    Parameters
    ----------
    pattern : str, path or sequence of these
        Path or glob pattern (``**`` included). ``~`` is expanded, relative patterns start at the
        working directory. A path that exists is taken literally, whatever characters it holds.

    Returns
    -------
    list of Path
        Absolute paths, each once: those of a pattern sorted, several patterns one after another.
        Sessions are numbered in this order.

    Raises
    ------
    UserError
        If a pattern matches no file; the message names the folder and what it holds.
    """
    patterns = [pattern] if isinstance(pattern, str | os.PathLike) else list(pattern)
    if not patterns:
        raise UserError("The list of data files is empty: name at least one HDF5 file.")
    paths: dict[Path, None] = {}
    for one in patterns:
        full = absolute_pattern(one)
        matches = [full] if os.path.isfile(full) else glob.glob(full, recursive=True)
        files = {Path(match) for match in matches if os.path.isfile(match)}
        if not files:
            raise UserError(no_match(os.fspath(one)))
        paths |= dict.fromkeys(sorted(files))
    return list(paths)


def no_match(pattern: str) -> str:
    """Say that no data file matches a pattern, and what the folder holds instead."""
    full = Path(absolute_pattern(pattern))
    folder = full.parent
    if full.is_dir():
        return f"{full} is a folder, not a data file; to use all its files write '{pattern}/*.h5'."
    message = f"No data file matches {pattern!r} (looked for {full})."
    if glob.has_magic(str(folder)):
        pass
    elif not folder.is_dir():
        message += f" The folder {folder} does not exist."
    else:
        names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name[0] != ".")
        names = [n for n in names if n.endswith((".h5", ".hdf5", ".nwb", ".mat"))]
        # More generous than with keys: file names share their ending and often much of their stem.
        if near := nearest(full.name, names, cutoff=0.5):
            message += " Did you mean " + " or ".join(repr(n) for n in near) + "?"
        elif names:
            message += f" The folder holds {list_some(names)}."
        else:
            message += " The folder holds no HDF5 files."
    advice = how_to_make(str(full))
    return f"{message}\n{advice}" if advice else message


def list_some(items: Sequence[Any], most: int = 12) -> str:
    """Join `items` with commas, naming at most `most` of them and the count of the rest."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


@contextmanager
def open_h5(path: Path, *, is_data_file: bool = False) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; whatever goes wrong meanwhile is a `DataError`.

    Where a data file is expected, the error for a file of another kind says how to make one.
    """
    try:
        # Best effort: shared and read-only file systems often cannot lock.
        with h5py.File(path, "r", locking="best-effort") as file:
            if is_data_file:
                warn_of_other_files(file)
            yield file
    except (OSError, RuntimeError) as err:
        why = _why_unreadable(path, err)
        # What only has to be fetched, unpacked or copied again is no recording in another format.
        other = "not an HDF5 file" in why and "git lfs" not in why and "unpack" not in why
        raise DataError(f"{why} {how_to_prepare(path)}" * (is_data_file and other) or why) from err


def warn_of_other_files(file: h5py.File) -> None:
    """Warn of data sets whose numbers are in other files of this machine, and name these."""
    # Labs join files so. But a stranger's file may point to any file, whose numbers then go into
    # outputs that are passed on.
    others: dict[str, list[str]] = {}
    for key, item, _ in walk(file):
        link = file.get(key, getlink=True)
        names = {link.filename} if isinstance(link, h5py.ExternalLink) else set()
        if isinstance(item, h5py.Dataset):
            names |= (
                {str(one.file_name) for one in item.virtual_sources()} if item.is_virtual else set()
            )
            names |= {str(name) for name, _, _ in item.external or ()}
        for name in names - {"."}:
            others.setdefault(name, []).append(key)
    if others:
        named = "; ".join(f"{list_some(keys, 3)} from {other}" for other, keys in others.items())
        warnings.warn(
            f"{file.filename} takes numbers from other files: {named}. Outputs and copies hold "
            "them",
            DataWarning,
            stacklevel=4,
        )


def _why_unreadable(path: Path, err: Exception) -> str:
    if isinstance(err, FileNotFoundError) or not path.exists():
        return f"{absent(path)}."
    if path.is_dir():
        return f"{path} is a folder, not an HDF5 file."
    if isinstance(err, PermissionError):
        return f"{path} may not be read by this user: check its permissions."
    with suppress(OSError):
        size = path.stat().st_size
        if size == 0:
            return f"{path} is empty (0 bytes): make or copy it again."
        if not h5py.is_hdf5(path):
            with path.open("rb") as file:
                head = file.read(32)
            kind = next((k for s, k in _SIGNATURES.items() if head.startswith(s)), None)
            return f"{path} is not an HDF5 file" + (f" but {kind}." if kind else ".")
        if "truncated" in str(err):
            return (
                f"{path} is cut short: it holds {size} bytes, fewer than its header says. "
                f"The copy or the program that wrote it did not finish; make or copy it again."
            )
    # HDF5 has one error for all of these, of which only the text differs.
    if "lock" in str(err):
        return f"{path} is being written by another program: close it there. ({err})"
    return f"{path} cannot be read; it seems damaged or cut short. (HDF5 says: {err})"


def how_to_prepare(path: str | os.PathLike[str]) -> str:
    """Say what to type where a file may be a recording."""
    return (
        f"If it is a recording, `lfads prep {shlex.quote(os.fspath(path))} --list` shows what it "
        "holds and how to make a data file of it."
    )


def write_session(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Any],
    attrs: Mapping[str, Any] | None = None,
    *,
    copy_from: str | os.PathLike[str] | None = None,
    compression: str | None = None,
) -> Path:
    """Write an HDF5 file so that it is either complete or not there.

    Everything goes into a hidden ``*.tmp`` file in the same folder, is synced to the disk and
    renamed at the end. When anything fails, the partial file is removed and an earlier file of
    the same name stays as it was. Missing folders are made.

    Parameters
    ----------
    path : str or path
        The file; one of this name is replaced.
    arrays : mapping of str to array
        Data sets by key. A list or object array of arrays of different lengths becomes a
        variable-length data set.
    attrs : mapping, optional
        File attributes: numbers, text or small arrays, such as ``bin_ms``.
    copy_from : str or path, optional
        Another HDF5 file whose data sets (those not in `arrays`) and attributes (those not in
        `attrs`) are copied as they are.
    compression : str, optional
        HDF5 filter, such as ``"gzip"``; default none.

    Returns
    -------
    Path
        Absolute path of the file.

    Raises
    ------
    WriteError
        If the folder cannot be written, or the disk is full.
    DataError
        If HDF5 cannot hold a value.
    """
    with new_file(path) as file:
        if copy_from is not None:
            copy_rest(Path(copy_from), file, set(arrays))
        add_to_file(file, arrays, attrs, compression=compression)
    return Path(absolute_pattern(path))


@contextmanager
def new_file(path: str | os.PathLike[str], *, copy_of: Path | None = None) -> Iterator[h5py.File]:
    """Write an HDF5 file piece by piece, so that it is either complete or not there.

    `copy_of` is a file that it begins as. What `write_session` says of partial files and errors
    holds here too.
    """
    path = Path(absolute_pattern(path))
    partial = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        if copy_of is not None:
            shutil.copyfile(copy_of, partial)
        with _Disk(partial, "w+" if copy_of is None else "r+") as disk:
            try:
                with h5py.File(disk, "w" if copy_of is None else "r+") as file:
                    yield file
            finally:
                if disk.error is not None:
                    raise disk.error
            # Synced before it is renamed, or a power cut could leave the new name on an empty file.
            os.fsync(disk.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as err:
        raise cannot_write(path, err) from err
    finally:
        with suppress(OSError):
            partial.unlink()


class _Disk(io.FileIO):
    """A file that HDF5 writes into, which keeps to itself that the disk is full."""

    # HDF5 2.0 ends the process by a segmentation fault where it cannot write as it closes a file.
    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of some bytes, unless an error came before."""
        rest = memoryview(data).cast("B")
        while self.error is None and len(rest):
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Set the size, unless an error came before."""
        try:
            return super().truncate(size) if self.error is None else 0
        except OSError as error:
            self.error = error
            return 0


def make_folder(path: Path) -> None:
    """Make the folder that a file goes into; a `WriteError` where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise cannot_write(path, err) from err


def add_to_file(
    file: h5py.File,
    arrays: Mapping[str, Any],
    attrs: Mapping[str, Any] | None = None,
    *,
    compression: str | None = None,
) -> None:
    """Add data sets and attributes to an open file; the arguments are those of `write_session`."""
    for key, value in arrays.items():
        _write_array(file, key, value, compression)
    for key, value in (attrs or {}).items():
        _write_attr(file, key, value)


def copy_rest(source: Path, file: h5py.File, skip: Collection[str]) -> None:
    """Copy another file's data sets, those not in `skip`, and attributes as they are."""
    with open_h5(source) as old:
        for key in old:
            if key not in skip:
                old.copy(key, file)
        file.attrs.update(old.attrs)


def trial_chunks(shape: Sequence[int], dtype: Any) -> tuple[int, ...] | None:
    """Return chunks of whole trials, so that each can be read by itself; None without trials."""
    row = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
    if len(shape) < 2 or not shape[0] or not 0 < row <= _MOST_CHUNK:
        return None
    return (min(shape[0], max(1, _LEAST_CHUNK // row)), *shape[1:])


def as_array(value: Any) -> Any:
    """Return what an object of numbers or text holds; a `DataError` where NumPy cannot read it.

    Masked numbers become NaN, sparse matrices are filled.
    """
    if isinstance(value, np.ma.MaskedArray):
        # NumPy drops a mask without a word, and what it hides would count.
        if not np.ma.is_masked(value):
            return np.asarray(value.data)
        if value.dtype.kind not in "buif":
            return np.asarray(value.filled("" if value.dtype.kind in "SU" else None))
        numbers = value.data.astype(np.result_type(value.dtype, np.float32))
        numbers[np.ma.getmaskarray(value)] = np.nan
        return numbers
    try:
        if hasattr(value, "detach"):  # a tensor
            value = value.detach().cpu()
        array = np.asarray(value.toarray() if hasattr(value, "toarray") else value)
        return array.astype(str) if array.dtype.kind == "T" else array
    except (TypeError, RuntimeError) as err:  # such as tensors of a GPU or in bfloat16
        kind = type(value)
        raise DataError(
            f"{kind.__module__}.{kind.__qualname__} is no array that NumPy can read ({err}); "
            "convert it first."
        ) from err


def _write_array(file: h5py.File, key: str, value: Any, compression: str | None) -> None:
    try:
        array = as_array(value)
    except UserError:
        raise
    except ValueError:  # rows of different lengths
        array = np.empty(len(value), dtype=object)
        array[:] = [np.asarray(row) for row in value]
    options: dict[str, Any] = {"compression": compression} if compression and array.ndim else {}
    if options and array.dtype.kind in "buif":
        options["chunks"] = trial_chunks(array.shape, array.dtype)
    try:
        if array.dtype.kind == "U":
            file.create_dataset(key, data=array.astype(h5py.string_dtype()), **options)
        elif array.dtype.kind == "O" and all(isinstance(row, np.ndarray) for row in array.flat):
            # HDF5 has lists of variable length; for what has more axes h5py ends the process.
            if several := [row.shape for row in array.flat if row.ndim != 1]:
                raise DataError(
                    f"{key!r} is a list of arrays of several sizes, such as {several[0]}; legal is "
                    "one array, in which short trials are filled up with NaN."
                )
            row_type = np.result_type(*array.flat) if array.size else np.dtype(np.int64)
            file.create_dataset(key, data=array, dtype=h5py.vlen_dtype(row_type), **options)
        else:
            file.create_dataset(key, data=array, **options)
    except TypeError as err:
        raise DataError(
            f"HDF5 cannot hold {key!r} of type {array.dtype} (from {type(value).__name__}); "
            f"legal are arrays of numbers, bools or text. ({err})"
        ) from err


def _write_attr(file: h5py.File, key: str, value: Any) -> None:
    try:
        file.attrs[key] = str(value) if isinstance(value, os.PathLike) else value
    except TypeError as err:
        raise DataError(
            f"HDF5 cannot hold the attribute {key!r} of type {type(value).__name__}; legal are "
            f"numbers, text and small arrays. ({err})"
        ) from err


def check_output(source: Path, output: Path, overwrite: bool) -> None:
    """Refuse to write over the source, over another file without `overwrite`, or nowhere."""
    if output == source:
        raise UserError(f"{output} is the source itself; name another file to write (--output).")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists; name another file (--output), or add --overwrite.")
    check_writable(output.parent)
