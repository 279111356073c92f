"""Files that are written whole or not at all, and tables in CSV that grow."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import DataError, WriteError, nearest
from .processes import remove_leftovers, temporary

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home in the place of ``~``; of a file named ``~x`` nothing changes."""
    # Path.expanduser raises where there is no user of that name.
    return Path(os.path.expanduser(path))


def absent(path: Path) -> str:
    """Say that a path does not exist, and which of its neighbours may have been meant."""
    with suppress(OSError):
        if near := nearest(path.name, [neighbour.name for neighbour in path.parent.iterdir()]):
            return f"{path} does not exist (did you mean {' or '.join(near)}?)"
    return f"{path} does not exist"


def write_whole(path: Path, content: str | bytes, *, keep: bool = False) -> None:
    """Write a file so that it is there whole or not at all; text is written as UTF-8."""
    with replacing(path, keep=keep) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that the copy is there whole or not at all."""
    with open(source, "rb") as content, replacing(target, flush=False) as file:
        while block := content.read(1 << 22):
            file.write(block)


def save_figure(figure: Any, path: Path, **options: Any) -> None:
    """Save a figure of matplotlib so that the file is there whole or not at all."""
    with replacing(path, flush=False) as file:
        figure.savefig(file, format=path.suffix[1:] or "png", **options)


@contextmanager
def replacing(path: Path, *, flush: bool = True, keep: bool = False) -> Iterator[IO[bytes]]:
    """Open a temporary file that takes the place of `path` when the block ends.

    With `flush`, wait until it is on the disk: a kill needs no such wait, a power cut does. With
    `keep`, what was at `path` stays as `generation_before(path)`.
    """
    # In the same folder, because a rename is atomic within one file system only.
    new = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        with open(new, "wb") as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        if keep and path.exists():
            _keep(path)
        os.replace(new, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            new.unlink()


def generation_before(path: Path) -> Path:
    """Return where `replacing` keeps what was at a path before."""
    # No "*.ckpt": who looks for the newest checkpoint by its ending must not take it for one.
    return path.with_name(f"{path.name}.previous")


def _keep(path: Path) -> None:
    before = generation_before(path)
    try:
        # A second name, so that a kill at any moment leaves a file at `path`.
        before.unlink(missing_ok=True)
        os.link(path, before)
    except OSError:  # a file system without hard links
        os.replace(path, before)


class Sealed:
    """A file that torch.save writes into, with a checksum of all of it as the comment of the zip.

    So the checksum travels with the file, and torch.load, which looks at none, reads past it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sum = file, 0
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes in order."""
        # Of an exception torch's writer, which is C++, makes one of its own that tells nothing, and
        # may end the process. So a full disk is kept until it has done.
        try:
            if self._error is None:
                self._sum = zlib.crc32(data, self._sum)
                self._file.write(data)
        except OSError as error:
            self._error = error
        return len(data)

    def flush(self) -> None:
        """Do nothing: the file is flushed when it is closed."""

    def seal(self) -> None:
        """Write the checksum, after everything else, or raise what kept that from being written."""
        if self._error is not None:
            raise self._error
        comment = _SEAL % self._sum
        self._file.seek(-2, os.SEEK_END)  # a zip ends with the length of its comment
        self._file.write(len(comment).to_bytes(2, "little") + comment)


_SEAL = b"lfads crc32 %08x"
_SEALED_BYTES = len(_SEAL % 0)


def damage(path: Path) -> str | None:
    """Say why a file of torch cannot be what was written, or None where its checksums agree."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _SEALED_BYTES, 0))
            seal = file.read()
            file.seek(0)
            if not size:
                return "it is empty"
            if seal[:-8] == _SEAL[:-4]:
                total, rest = 0, size - _SEALED_BYTES - 2
                while rest > 0 and (block := file.read(min(rest, 1 << 22))):
                    total, rest = zlib.crc32(block, total), rest - len(block)
                # What torch wrote ended with a comment of length 0.
                agrees = seal == _SEAL % zlib.crc32(b"\0\0", total)
                return None if agrees else "its checksum does not agree"
            if file.read(1) == b"\x80":
                return None  # the format of torch before 1.6, a bare pickle, has no checksum
        # Of another program or version: torch gives each tensor a checksum.
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        return bad and f"the checksum of its record {bad} does not agree"
    except FileNotFoundError:
        return "it is missing"
    except zipfile.BadZipFile:
        return "it is cut short or was overwritten"
    except Exception as error:  # random bytes fail in every way there is
        return f"it cannot be read ({error})"


def cannot_write(path: Path | str, error: Exception) -> WriteError:
    """Return the error that says in words why a file or folder could not be written."""
    number, text, place = getattr(error, "errno", None), str(error), _folder_of(path)
    # HDF5 raises RuntimeError, too, with the number within a long text.
    of_disk = ("No space left", "File too large", "quota", "errno = 28", "errno = 27")
    if number in _FULL or any(part in text for part in of_disk):
        why = "the disk is full, or a quota is. Make room or name another folder"
    elif number in _FORBIDDEN or "Permission denied" in text:
        why = f"{place} is not writable. Change its permissions or name another folder"
    elif number in (errno.EEXIST, errno.ENOTDIR) or not os.path.isdir(place):
        why = f"{place} is not a folder. Name another one"
    elif number == errno.EISDIR:
        why = "there is a folder of that name. Name another file"
    else:
        why = f"{getattr(error, 'strerror', None) or text}. Make room or name another folder"
    return WriteError(f"{path} cannot be written: {why}.")


def check_writable(path: Path | str) -> None:
    """Refuse a place that takes no new file, before anything is computed for it."""
    place = _folder_of(path)
    if not os.path.isdir(place):
        raise cannot_write(path, NotADirectoryError(errno.ENOTDIR, ""))
    if not os.access(place, os.W_OK | os.X_OK):
        raise cannot_write(path, PermissionError(errno.EACCES, ""))


def _folder_of(path: Path | str) -> Path:
    """Return the folder that a path is, or that it or its folder would be made in."""
    full = Path(os.path.abspath(path))
    places = full.parents if not os.path.isdir(full) else [full]
    return next((place for place in places if os.path.lexists(place)), full)


def is_write_failure(error: OSError) -> bool:
    """Return whether the system refused to write (disk full, quota, permission)."""
    return error.errno in (*_FULL, *_FORBIDDEN)


def read_json(path: Path, shape: Any) -> dict[str, Any]:
    """Read a mapping from JSON; `DataError` where values have other types than `shape` says.

    A shape is a type, a list with the shape of its items, or a dict with the shapes of keys, which
    may be absent; its key `str` stands for every key. None is a value of every type but these two.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if wrong := next(_misfits(content, shape, ""), ""):
        raise DataError(f"{path} is damaged: {wrong}")
    return dict(content)


def _misfits(value: Any, shape: Any, name: str) -> Iterator[str]:
    """Yield what does not fit a shape of `read_json`."""
    is_container = isinstance(shape, dict | list)
    kind = type(shape) if is_container else shape
    if not isinstance(value, kind) and (is_container or value is not None):
        yield f"{name or 'the whole'} is {str(value)[:40]!r}; legal is {_words(kind)}"
    elif isinstance(shape, list):
        for item in value:
            yield from _misfits(item, shape[0], f"an item of {name}")
    elif isinstance(shape, dict):
        for key, item in value.items():
            if (of_key := shape.get(key, shape.get(str))) is not None:
                yield from _misfits(item, of_key, f"{name}.{key}" if name else key)


def _words(kind: Any) -> str:
    return {dict: "a mapping", list: "a list", str: "text"}.get(kind, "a number")


class Table:
    """A table in a CSV file that grows by rows and columns and survives a kill.

    Values are text, blank where a row lacks a column; names and values are quoted where they need
    it. A file that exists is continued, less a row that a kill cut off. The file is only touched
    when something is written. With `is_sorted`, columns stand in the order of their names.
    """

    def __init__(self, path: str | Path, *, is_sorted: bool = False) -> None:
        self.path, self._is_sorted = Path(path), is_sorted
        self.header, rows, is_whole = _parse(self.path)
        self._last_size = 0
        if not is_whole:
            self.rewrite(rows)

    def read(self) -> list[dict[str, str]]:
        """Read all rows."""
        return _parse(self.path)[1]

    def append(
        self, rows: Sequence[Mapping[str, Any]], *, flush: bool = True, replace: bool = False
    ) -> None:
        """Write rows at the end; new columns rewrite the file.

        With `flush`, wait until they are on the disk, as in `replacing`. With `replace`, they take
        the place of the last row, which this object wrote.
        """
        columns = dict.fromkeys(name for row in rows for name in row)
        new = [name for name in columns if name not in self.header]
        if not rows:
            return
        if new:
            before = self.read() if self.header else []
            if replace:
                before.pop()
            header = [*self.header, *new]
            # Lightning sorts the columns of a log, and existing files have them so.
            self.rewrite([*before, *rows], sorted(header) if self._is_sorted else header)
            return
        try:
            with open(self.path, "ab") as file:
                if replace:
                    file.truncate(file.tell() - self._last_size)
                file.write(csv_text(self.header, rows, with_header=False).encode())
                file.flush()
                if flush:
                    os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._note_last(rows)

    def _note_last(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._last_size = len(csv_text(self.header, rows[-1:], with_header=False).encode())

    def rewrite(
        self, rows: Sequence[Mapping[str, Any]], header: Sequence[str] | None = None
    ) -> None:
        """Replace the whole file."""
        columns = list(self.header if header is None else header)
        write_whole(self.path, csv_text(columns, rows))
        self.header = columns
        self._note_last(rows)


def read_table(path: str | Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read header and rows of a CSV file as text; a row that a kill cut off is left out."""
    return _parse(Path(path))[:2]


def csv_text(
    header: Sequence[str], rows: Iterable[Mapping[str, Any]], *, with_header: bool = True
) -> str:
    """Return rows as CSV, blank where a row lacks a column."""
    stream = io.StringIO(newline="")
    # Python leaves a lone carriage return without quotes, and then reads it as the end of a line.
    is_odd = "\r" in "".join(header)
    quoting: Any = csv.QUOTE_ALL if is_odd else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(stream, header, restval="", lineterminator="\n", quoting=quoting)
    if with_header:
        writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _parse(path: Path) -> tuple[list[str], list[dict[str, str]], bool]:
    """Return header, whole rows, and whether the file held nothing but these.

    Raise `DataError` where more is missing than the row that a kill cut off.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], [], True
    # A kill can cut within a row, or within a character; what is whole ends with a line end.
    lines = content[: content.rfind(b"\n") + 1]
    try:
        text = whole = lines.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, 1 + lines[: error.start].count(b"\n"), "is no text") from error
    while whole.count('"') % 2:  # that line end stands within quotes
        whole = whole[: whole.rfind("\n", 0, -1) + 1]
    reader = csv.reader(io.StringIO(whole, newline=""), strict=True)
    header: list[str] = []
    rows = []
    try:
        for row in reader:
            if not header:
                header = row
            elif row and len(row) != len(header):
                what = f"has {len(row)} values for {len(header)} columns"
                raise _damaged(path, reader.line_num, what)
            elif row:
                rows.append(dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise _damaged(path, reader.line_num, f"cannot be read ({error})") from error
    if double := [name for name in dict.fromkeys(header) if header.count(name) > 1]:
        raise _damaged(path, 1, f"names the column {double[0]!r} more than once")
    # A stray quote takes all that follows for one value, which is more than a kill leaves.
    cut = [line for line in text[len(whole) :].split("\n")[1:] if line]
    if cut and (not header or any(line.count(",") == len(header) - 1 for line in cut)):
        raise _damaged(path, whole.count("\n") + 1, "has a quote that is not closed")
    return header, rows, whole.encode() == content


def _damaged(path: Path, line: int, what: str) -> DataError:
    return DataError(
        f"{path} is damaged: line {line} {what}. Mend it there. The log of a single run can also "
        "be moved away: it then goes on with the next epoch"
    )
