"""Tables of text as programs and countries write them: CSV and its dialects.

Commas, semicolons, tabs or white space between columns; decimal points or commas; several lines of
header, comments and titles; units of time in the header.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from ...errors import DataError
from ..binning import Array
from ..names import TIME_UNITS

_ROWS = 1 << 19  # rows that are parsed at once
_LOOKED_AT = 200  # lines that decide the dialect
_DECODED = 1 << 20  # bytes that decide the encoding
_MOST_HEADERS = 30  # lines before the first row

_COMMENT = re.compile(r'\s*"?\s*(#|%|//)+\s?')
_SUSPECT = '#%/" \t\r\n'
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*')  # a line for Excel
_DECIMAL_COMMA = re.compile(r"\s*[-+]?\d*,\d+(e[-+]?\d+)?\s*", re.IGNORECASE)
_DECIMAL_POINT = re.compile(r"\s*[-+]?\d*\.\d+(e[-+]?\d+)?\s*", re.IGNORECASE)
MISSING = ("", "na", "n/a", "null", "none", "-", "--", ".")
_IN_BRACKETS = re.compile(r"(.+?)[\s_]*[(\[]\s*(?:in\s+)?([^()\[\]]*?)\s*[)\]]")
# What stands under names without being one: a unit of something.
_NO_NAME = re.compile(
    r"[(\[]?\s*([a-zµμ%#°]{0,3}(/[a-z]{1,3}\^?\d?)?|-+|a\.?u\.?|count)\s*[)\]]?", re.I
)


class Sheet(NamedTuple):
    """A table of text: the names of its columns, and how to read its rows."""

    path: Path
    names: list[str]
    units: list[str]  # of time, by column: s, ms, us, ns, samples; empty where none is named
    rows: list[list[str]]  # the first ones
    delimiter: str | None  # None: white space
    decimal_comma: bool
    n_before: int  # lines before the first row
    encoding: str

    def is_numeric(self, column: int) -> bool:
        """Return whether a column holds numbers, by its first rows."""
        values = [row[column] for row in self.rows if column < len(row)]
        known = [value for value in values if value.strip().lower() not in MISSING]
        return all(is_number(value, self.decimal_comma) for value in known)

    def lines(self) -> Iterator[list[str]]:
        """Yield lines of rows, block after block, without comments and empty ones."""
        with _open(self.path, self.encoding) as file:
            rows = itertools.islice(file, self.n_before, None)
            while block := list(itertools.islice(rows, _ROWS)):
                # The first sign decides for most lines, which costs less than a search in each.
                yield [
                    line
                    for line in block
                    if line[0] not in _SUSPECT or (line.strip() and not _COMMENT.match(line))
                ]

    def fields(self) -> Iterator[list[str]]:
        """Yield the fields of each row."""
        for block in self.lines():
            yield from _split(block, self.delimiter)

    def numbers(self, columns: Sequence[int]) -> Iterator[Array]:
        """Yield columns as numbers, block after block of rows; empty fields are NaN."""
        for block in self.lines():
            lines = [line.replace(",", ".") for line in block] if self.decimal_comma else block
            try:
                yield self._parse(lines, columns, dtype=np.float64)
            except ValueError as err:
                yield self._filled(lines, columns, err)

    def text(self, columns: Sequence[int]) -> Iterator[Array]:
        """Yield columns as text, block after block of rows."""
        for block in self.lines():
            try:
                yield np.char.strip(self._parse(block, columns, dtype=str))
            except ValueError as err:
                raise self._wrong(err) from err

    def number(self, values: Array) -> Array:
        """Convert text to numbers, or raise an error that shows what is none."""
        points = np.char.replace(values, ",", ".") if self.decimal_comma else values
        try:
            return points.astype(np.float64)
        except ValueError as err:
            raise self._wrong(err) from err

    def _parse(self, lines: list[str], columns: Sequence[int], dtype: Any) -> Array:
        return np.loadtxt(
            lines,
            dtype,
            delimiter=self.delimiter,
            usecols=columns,
            ndmin=2,
            # A unit may be called ch#1: comments are whole lines, which are gone.
            comments=None,
            quotechar='"',
        )

    def _filled(self, lines: list[str], columns: Sequence[int], err: ValueError) -> Array:
        rows = list(_split(lines, self.delimiter))
        if self.delimiter is None or any(len(row) < len(self.names) for row in rows):
            raise self._wrong(err) from err
        values = np.array([[row[column].strip() for column in columns] for row in rows])
        values[np.isin(np.char.lower(values), MISSING)] = "nan"
        try:
            return values.astype(np.float64)
        except ValueError as wrong:
            raise self._wrong(wrong) from err

    def _wrong(self, err: ValueError) -> DataError:
        what = re.sub(r"np\.str_\((.*?)\)", r"\1", str(err))
        return DataError(
            f"{self.path} holds rows that are not numbers, or of different lengths: {what}"
        )


def open_sheet(path: Path) -> Sheet:
    """Find out how a table of text is written, by its first lines."""
    try:
        encoding = _encoding(path)
        with _open(path, encoding) as file:
            lines = list(itertools.islice(file, _LOOKED_AT))
    except OSError as err:
        raise DataError(f"{path} cannot be read: {err}") from err
    given = _SEPARATOR.fullmatch(lines[0].rstrip("\r\n")) if lines else None
    comments = [i for i, line in enumerate(lines) if _COMMENT.match(line)]
    skipped = {*comments, *([0] if given else [])}
    places = [i for i, line in enumerate(lines) if line.strip() and i not in skipped]
    if not places:
        raise DataError(f"{path} is empty.")
    body = [lines[i] for i in places]
    delimiter = given[1] if given else _delimiter(body)
    rows = list(_split(body, delimiter))
    comma = delimiter != "," and _has(_DECIMAL_COMMA, rows) and not _has(_DECIMAL_POINT, rows)
    n_headers = _count_headers(rows, comma)
    headers, first = rows[:n_headers], rows[n_headers:]
    if not headers and comments and comments[-1] < places[0]:
        # As NumPy writes it: the names in a comment.
        text = _COMMENT.sub("", lines[comments[-1]], count=1)
        headers = [row for row in _split([text], delimiter) if len(row) == len(rows[0])]
    if not headers:
        raise DataError(
            f"{path} has no header: its first line must name the columns, such as time,unit. It is "
            f"{body[0].strip()[:60]!r}."
        )
    names, units = _names(headers, len(max(first or headers, key=len)))
    while (
        len(names) > 1 and not names[-1] and not any(row[len(names) - 1 :] != [""] for row in first)
    ):
        names, units = names[:-1], units[:-1]  # rows that end with a delimiter
    names = [name or f"column {i}" for i, name in enumerate(names, 1)]
    n_before = places[n_headers] if n_headers < len(places) else places[-1] + 1
    return Sheet(path, names, units, first, delimiter, comma, n_before, encoding)


def is_number(text: str, decimal_comma: bool = False) -> bool:
    """Return whether a field is a number."""
    try:
        float(text.replace(",", ".") if decimal_comma else text)
    except ValueError:
        return False
    return True


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(_DECODED)
    # Excel writes a byte order mark, which would become part of the first column's name.
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return "cp1252"  # of older programs in the West
    return "utf-8-sig"


def _open(path: Path, encoding: str) -> TextIO:
    return path.open(encoding=encoding, newline="", errors="replace")


def _split(lines: Sequence[str], delimiter: str | None) -> Iterator[list[str]]:
    if delimiter is None:
        return (line.split() for line in lines)
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True)


def _delimiter(lines: list[str]) -> str | None:
    """Return what stands between the columns of most lines; white space (None) as the last."""
    body = lines[1:] or lines
    often = [d for d in "\t;|," if sum(d in line for line in body) * 2 >= len(body)]
    even = [d for d in often if len({len(row) for row in _split(body, d)}) == 1]
    # Where several are as even, a comma is that of decimals.
    for delimiter in (*even, *often):
        return delimiter
    named = next((d for d in "\t;|," if d in lines[0]), None)
    if named or all(len(line.split()) < 2 for line in body):
        return named or ","
    return None


def _has(pattern: re.Pattern[str], rows: list[list[str]]) -> bool:
    return any(pattern.fullmatch(value) for row in rows for value in row)


def _count_headers(rows: list[list[str]], comma: bool) -> int:
    """Count the lines before the first row of numbers."""
    width = len(max(rows[len(rows) // 2 :], key=len))

    def filled(row: list[str]) -> dict[int, bool]:
        known = {i: value for i, value in enumerate(row) if value.strip().lower() not in MISSING}
        return {i: is_number(value, comma) for i, value in known.items()}

    later = [filled(row) for row in rows[(len(rows) + 1) // 2 :] or rows[-1:]]
    numeric = {
        i
        for i in range(width)
        if (flags := [row[i] for row in later if i in row]) and sum(flags) * 2 >= len(flags)
    }
    for number, row in enumerate(rows[:_MOST_HEADERS]):
        here = [flag for i, flag in filled(row).items() if i in numeric]
        if here and all(here) and len(row) >= min(width, 2):
            return number
    return 1


def _names(headers: list[list[str]], width: int) -> tuple[list[str], list[str]]:
    """Return names and units of time of columns, out of one or several lines of header."""
    lines = [[field.strip().strip('"').strip() for field in row] for row in headers]
    lines = [row + [""] * (width - len(row)) for row in lines]
    # Titles and notes about the file have a field or two.
    wide = [row for row in lines if sum(map(bool, row)) * 2 > width] or lines[-1:]
    units = [""] * width
    named: list[list[str]] = []
    for row in wide:
        if named and all(_NO_NAME.fullmatch(field) for field in row):
            units = [TIME_UNITS.get(field.strip("()[] ").lower(), "") for field in row]
        else:
            named.append(row)
    unique = [row for row in named if len({*row} - {""}) == len([f for f in row if f])]
    chosen = (
        unique[-1]
        if unique
        # Such as a line of channels, and below it one of the units of each.
        else ["_".join(dict.fromkeys(filter(None, fields))) for fields in zip(*named, strict=True)]
    )
    for i, name in enumerate(chosen):
        match = _IN_BRACKETS.fullmatch(name)
        if match and match[2].lower() in TIME_UNITS:
            chosen[i], units[i] = match[1], TIME_UNITS[match[2].lower()]
    return chosen, units
