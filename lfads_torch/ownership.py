"""One owner at a time for a run folder: a lock file in it says which process writes there.

The lock comes into being whole, by a hard link, which only one of two processes can make, also on
network file systems. It holds who, since when and for what. That of a process that has ended is
taken over; whether one of another machine still runs cannot be known, so its lock has to be
deleted.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import cannot_write
from .processes import host, is_gone, mark, temporary

LOCK = ".lock"
#: Marks of processes that own folders, for what they start: workers, ranks of one training.
_OWNERS = "LFADS_TORCH_OWNERS"


@contextmanager
def owned(folder: Path, doing: str) -> Iterator[bool]:
    """Own a folder, or raise `UserError` that says who does; `doing` is for what ("training").

    A process that already owns it, and what it started, go on: yield false to the latter.
    """
    lock = folder / LOCK
    is_mine = _is_mine(lock)
    try:
        owner = _take(lock, doing)
    except BaseException:  # a signal, perhaps, just after the lock was made
        if not is_mine:
            _release(lock)
        raise
    is_taken = owner is None
    before = os.environ.get(_OWNERS)
    if is_taken:
        os.environ[_OWNERS] = " ".join(dict.fromkeys([*_ancestors(), mark()]))
    try:
        yield owner in (None, mark())
    finally:
        if is_taken:
            if before is None:
                os.environ.pop(_OWNERS, None)
            else:
                os.environ[_OWNERS] = before
            _release(lock)


def _is_mine(lock: Path) -> bool:
    return (_read(lock) or {}).get("process") == mark()


def _release(lock: Path) -> None:
    if _is_mine(lock):
        with suppress(OSError):
            lock.unlink()


def _ancestors() -> list[str]:
    return os.environ.get(_OWNERS, "").split()


def _take(lock: Path, doing: str) -> str | None:
    """Make a lock; where the process or one that started it has it, return the mark of that."""
    mine = {
        "process": mark(),
        "host": host(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "doing": doing,
        "folder": str(lock.parent),
    }
    while not _create(lock, json.dumps(mine, indent=2) + "\n"):
        with _alone(lock.parent):
            other = _read(lock)
            if other is None:
                continue  # it was just released
            if other.get("process") in (mark(), *_ancestors()):
                return str(other["process"])
            why = _why_stale(other, lock.parent)
            if why is None:
                raise UserError(_in_use(other, lock))
            with suppress(FileNotFoundError):
                lock.unlink()
        warnings.warn(f"{lock.parent} is taken over: {why}", stacklevel=4)
    return None


def _create(lock: Path, text: str) -> bool:
    """Make a file that holds a text, unless it exists."""
    new = temporary(lock)
    try:
        new.write_text(text, encoding="utf-8")
        try:
            os.link(new, lock)
        except FileExistsError:
            # A network file system may repeat a request whose answer was lost: then it is ours.
            return new.stat().st_nlink > 1
        except OSError:  # a file system without hard links
            try:
                with open(lock, "x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError:
                return False
    except OSError as error:
        raise cannot_write(lock.parent, error) from error
    finally:
        with suppress(OSError):
            new.unlink()
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time judge a lock: two that take over one would delete each other's."""
    try:
        import fcntl

        place = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows
        yield
        return
    try:
        with suppress(OSError):  # a network file system that locks no folders
            fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def _read(lock: Path) -> dict[str, Any] | None:
    """Read who holds a lock; None where there is none, empty where it does not say."""
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _why_stale(other: dict[str, Any], folder: Path) -> str | None:
    """Say why a lock counts no more, or None where it does or may."""
    process = str(other.get("process", ""))
    if is_gone(process):
        return f"{_who(other)}, but has ended"
    original = Path(str(other.get("folder", folder)))
    is_here = process.startswith(f"{host()}_")
    # Where the folder was moved the process may still write into it.
    if is_here and original.is_dir() and not original.samefile(folder):
        return f"the lock was copied along from {original}"
    return None


def _in_use(other: dict[str, Any], lock: Path) -> str:
    delete = f"delete {lock}"
    if not {"host", "pid", "since", "process"} <= other.keys():
        return (
            f"{lock.parent} is locked, and {lock} does not say by whom. If nobody works in this "
            f"folder, {delete}"
        )
    text = f"{lock.parent} is in use: {_who(other)}"
    if is_gone(str(other["process"])) is None:
        return (
            f"{text}. Whether it still runs cannot be known from here ({host()}). If it does not, "
            f"{delete}; if it does, wait until it ends or name another folder"
        )
    return (
        f"{text}. Wait until it ends, stop it (kill {_text(other, 'pid')}), or name another "
        f"folder. If that process is another program, {delete}"
    )


def _who(other: dict[str, Any]) -> str:
    pid, place, doing, since = (_text(other, key) for key in ("pid", "host", "doing", "since"))
    return f"process {pid} on {place} has been {doing} there since {since}"


def _text(other: dict[str, Any], key: str) -> str:
    # A lock may come with a stranger's folder: no control characters for the terminal.
    return "".join(filter(str.isprintable, str(other.get(key, "?"))))[:100]
