"""From which folders a script's relative paths are looked for, also in Ray's workers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os.path import abspath
from pathlib import Path

_at_import = Path.cwd()
_of_driver: list[Path] = []


def starts() -> list[Path]:
    """Return the folders from which relative paths count, the likeliest first.

    These are the folder of the script, the working directory when this module was imported, and
    the present one: scripts change into their run folder before they train. A worker of Ray has
    those of the script that started it.
    """
    if _of_driver:
        return list(_of_driver)
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    script = Path(abspath(file)).parent if file else _at_import
    # Commands (lfads, pytest, python -m lfads_torch.cli) are scripts, too, but nobody's paths count
    # from there.
    is_command = script in (Path(sys.executable).parent, Path(abspath(__file__)).parents[1])
    return list(dict.fromkeys([*([] if is_command else [script]), _at_import, Path.cwd()]))


@contextmanager
def starting_from(folders: Sequence[Path]) -> Iterator[None]:
    """Let relative paths count from the folders that `starts` gave in another process."""
    before = list(_of_driver)
    _of_driver[:] = folders
    try:
        yield
    finally:
        _of_driver[:] = before
