"""Which axis of an array is time, which units and which trials: by what else the file says, or ask.

Nothing is guessed in silence: what decides is returned for a note, and where two readings fit the
error names both, with the option that chooses each.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...data.validate import show_shape
from ...errors import UserError
from ..names import NUMBER_OF, OF_UNIT, TIMES, TRIALS, UNIT_FIELD, UNITS
from .recording import AnyArray, count_rows
from .sheet import open_sheet
from .tree import Source, column_name, is_regular, last_name

Axes = tuple[str, ...]

ROLES = ("trial", "time", "unit")
_WORDS = {"trial": "trials", "time": "bins", "unit": "units"}
# A recording has many times more bins than units; below this ratio the longer axis says nothing.
_LONGER = 4
_END = 1000  # entries at each end of a long vector that are looked at


def is_times(name: str) -> bool:
    """Return whether an array by this name holds times of samples or bins."""
    return last_name(name).removesuffix("_ms").removesuffix("_s").removesuffix("_us") in TIMES


def has_equal_steps(vector: AnyArray) -> bool:
    """Return whether a vector ascends in equal steps, by its ends: it may be large."""
    n = vector.shape[0]
    if n <= 2 * _END:
        return is_regular(vector[:])
    first, last = vector[:_END], vector[n - _END :]
    if not (is_regular(first) and is_regular(last)):
        return False
    step, mean = float(first[1] - first[0]), float(last[-1] - first[0]) / (n - 1)
    return abs(mean - step) <= 0.01 * step


@dataclass
class Hints:
    """Sizes that the rest of a file gives for trials, bins and units, with the reason of each.

    `likely` are those of columns that say no more than that they have an entry for each.
    """

    sure: dict[str, dict[int, str]] = field(default_factory=dict)
    likely: dict[str, dict[int, str]] = field(default_factory=dict)

    def add(self, role: str, size: int, why: str, *, sure: bool = True) -> None:
        """Add a size of a role; the first reason stays."""
        sizes = (self.sure if sure else self.likely).setdefault(role, {})
        sizes.setdefault(size, why)

    def reason(self, role: str, size: int) -> str | None:
        """Return why a role has this size."""
        for known in (self.sure, self.likely):
            if size in known.get(role, {}):
                return known[role][size]
        return None


def gather_hints(source: Source, used: Iterable[str] = (), *, columns_are: str = "trial") -> Hints:
    """Collect what the file says of the numbers of trials, bins and units.

    `used` are the keys of the spikes themselves. `columns_are` says what columns without a table
    count: trials, or bins where the spikes are an array of two axes.
    """
    hints, options = Hints(), source.options
    used, in_table = set(used), set[str]()
    if isinstance(options.trials, dict):
        size = count_rows(options.trials)
        hints.add("trial", size, f"the table of trials has {size} rows")
    elif options.trials and options.table is None:
        size = sum(1 for _ in open_sheet(Path(options.trials)).fields())
        hints.add("trial", size, f"{options.trials} has {size} rows")
    tables = (("trial", (options.table,) if options.table else TRIALS), ("unit", UNITS))
    for role, prefixes in tables:
        for prefix in prefixes:
            columns = {
                key: vector.shape[0]
                for key, vector in source.vectors.items()
                if key not in used and column_name(key, prefix)
            }
            lengths = [n for n in columns.values() if n > 1]
            if lengths:
                in_table |= set(columns)
                size = max(lengths, key=lengths.count)
                hints.add(role, size, f"the table {prefix!r} has {size} rows")
                break
    for key, vector in source.vectors.items():
        name, size = last_name(key), vector.shape[0]
        if key in used or key in in_table:
            continue
        if size == 1 and vector.dtype.kind in "uif":
            for role, pattern in NUMBER_OF.items():
                if re.fullmatch(pattern, name):
                    n = int(vector[:][0])
                    hints.add(role, n, f"{key!r} is {n}")
        elif size > 1 and UNIT_FIELD.fullmatch(name):
            hints.add("unit", size, f"{key!r} has {size} entries")
        elif size > 2 and name.endswith("edges"):
            hints.add("time", size - 1, f"{key!r} has {size} edges of bins")
        elif size > 1 and is_times(name):
            hints.add("time", size, f"{key!r} has {size} entries")
        elif size > 1 and "trial" in key.lower():
            hints.add("trial", size, f"{key!r} has {size} entries", sure=False)
        elif size > 2 and has_equal_steps(vector):
            hints.add("time", size, f"{key!r} has {size} entries in equal steps", sure=False)
        elif size > 1 and OF_UNIT.search(name):
            hints.add("unit", size, f"{key!r} has {size} entries", sure=False)
        elif size > 1:
            hints.add(columns_are, size, f"{key!r} has {size} entries", sure=False)
    return hints


def parse_axes(text: str, what: str, shape: Sequence[int], legal: Iterable[Axes]) -> Axes:
    """Read ``--axes``: names of axes in the order of the array."""
    axes = tuple(
        {"channel": "unit", "neuron": "unit", "bin": "time"}.get(name, name)
        for name in (word.strip().lower().rstrip("s") for word in text.split(","))
    )
    choices = list(legal)
    if axes not in choices:
        raise UserError(
            f"--axes {text} for {what} of {show_shape(shape)}; legal are "
            f"{', '.join(','.join(one) for one in choices)}: the names of its axes, in its order."
        )
    return axes


def readings(n_axes: int) -> list[Axes]:
    """Return the orders of axes that binned spikes may have, the usual ones first."""
    if n_axes == 2:
        return [("time", "unit"), ("unit", "time")]
    usual = [("unit", "time", "trial"), ("trial", "time", "unit"), ("trial", "unit", "time")]
    return usual + [axes for axes in itertools.permutations(ROLES) if axes not in usual]


def choose(
    what: str, shape: Sequence[int], candidates: list[Axes], hints: Hints
) -> tuple[Axes, str]:
    """Return the only reading that fits what the file says, and why; ask where several do."""
    left, reasons = candidates, []
    for known in (hints.sure, hints.likely):
        for role, sizes in known.items():
            matching = [axes for axes in left if role in axes and shape[axes.index(role)] in sizes]
            if matching and len(matching) < len(left):
                left = matching
                reasons += [
                    why
                    for size, why in sizes.items()
                    if any(shape[axes.index(role)] == size for axes in matching)
                ][:1]
    if len(left) > 1:
        ratio = [_ratio(axes, shape) for axes in left]
        long = [axes for axes, r in zip(left, ratio, strict=True) if r >= _LONGER]
        # Where trials are another axis than in the next reading, length says nothing.
        same_trials = len({axes.index("trial") if "trial" in axes else -1 for axes in left}) == 1
        if len(long) == 1 and same_trials:
            left = long
            reasons.append(f"bins are {max(ratio):.3g} times as many as units")
    if len(left) == 1:
        return left[0], "; ".join(reasons)
    roles = {role for axes in candidates for role in axes}
    for role in sorted(roles & set(hints.sure)):
        sizes = hints.sure[role]
        if not any(n in shape for n in sizes):
            reasons.append(f"{next(iter(sizes.values()))}, which no axis has")
    raise UserError(ask(what, shape, left, reasons))


def ask(what: str, shape: Sequence[int], left: list[Axes], reasons: Sequence[str] = ()) -> str:
    """Word the question which of several readings is right, with the option for each."""
    lines = [
        f"  --axes {','.join(axes)}: "
        + ", ".join(f"{shape[axes.index(r)]} {_WORDS[r]}" for r in ROLES if r in axes)
        for axes in left[:3]
    ]
    known = f" ({'; '.join(reasons)})" if reasons else ""
    return (
        f"{what}, {show_shape(shape)}, can be read in several ways{known}; choose one:\n"
        + "\n".join(lines)
    )


def _ratio(axes: Axes, shape: Sequence[int]) -> float:
    if "unit" not in axes or "time" not in axes:
        return 0.0
    return shape[axes.index("time")] / max(1, shape[axes.index("unit")])
