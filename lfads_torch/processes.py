"""Which process writes a file or owns a folder, whether it still runs, and an end that cleans up.

What is under way has the mark of its process in its name (`temporary`). Whatever ends a process but
kill -9 is an exception here, so that ``finally`` removes it; kill -9 leaves it to the next writer.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

#: Signals whose default is to end the process on the spot.
#: Slurm sends SIGUSR1 some time before the end where a job asks for it (``--signal``).
_ENDING = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
]

#: Temporary names, and those of earlier versions, which tell less of their process.
_LEFT = re.compile(
    r"\..*\.(?:([^.].*_\d+_\w*_\d*_\d*)\.tmp|\d+\.tmp|[0-9a-f]{8}\.partial)|\.probe\.\d+"
)


#: Temporary names that this process made; it makes the same ones again and again.
_UNDER_WAY: set[Path] = set()


class Stopped(KeyboardInterrupt):
    """SIGTERM, SIGHUP or SIGUSR1 ended the process; as Ctrl-C, for `finally` and for Lightning."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn SIGTERM, SIGHUP and SIGUSR1 into `Stopped`, where nobody else handles them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python gives signals to the main thread alone
        return
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            raise Stopped(number)
        # A forked child, such as a worker that loads data, has nothing to clean up.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    # Under nohup a hang-up is ignored, and stays so.
    taken = [number for number in _ENDING if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        # A signal can come within the `finally` that would have removed it.
        for path in _UNDER_WAY:
            remove(path)
        raise
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def mark() -> str:
    """Return what names this process: host, number, boot, container, and its time of start."""
    pid = os.getpid()
    return "_".join((host(), str(pid), *_place(), _started(pid) or ""))


def host() -> str:
    """Return the name of this machine, as marks have it."""
    return socket.gethostname()[:40].replace("/", "-") or "unknown"


def is_gone(of: str) -> bool | None:
    """Return whether the process with this mark has ended; None where that cannot be known."""
    parts = of.rsplit("_", 4)
    if len(parts) < 5 or not parts[1].isdigit() or parts[0] != host():
        return None
    pid, boot, container, started = int(parts[1]), *parts[2:]
    if boot != _place()[0]:
        return True  # the machine was started anew
    if container != _place()[1] or os.name != "posix":  # Windows' os.kill would end the process
        return None
    if (now := _started(pid)) is not None:
        return now != started  # another process has its number, or nothing is left but that
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # somebody else's, which /proc may hide
    return False


def temporary(path: Path) -> Path:
    """Return a name in the folder of `path` for what will take its place."""
    # Short, because a name has 255 bytes at most, and the file's own may need four for a character.
    new = path.with_name(f".{path.name[:30]}.{mark()}.tmp")
    _UNDER_WAY.add(new.absolute())
    return new


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove from a folder what processes that have ended left under temporary names.

    With `name`, only what was to become the file of that name.
    """
    start = "." if name is None else f".{name[:30]}."
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(start) and entry.name.endswith(".tmp"):
                # The file's name may hold dots, and so may the host's.
                rest = entry.name.removesuffix(".tmp")
                at = rest.rfind(f".{host()}_")
                if at >= 0 and is_gone(rest[at + 1 :]):
                    remove(Path(entry.path))


def remove_all_leftovers(folder: Path) -> None:
    """Remove what was left under temporary names anywhere in a folder that nobody else owns."""
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            left = _LEFT.fullmatch(name)
            # Of another machine's process nothing is known, but it does not own the folder.
            if left and not (left[1] and is_gone(left[1]) is False):
                remove(Path(place, name))


def remove(path: Path) -> None:
    """Remove a file, a folder with all in it, or a link but not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _place() -> tuple[str, str]:
    """Return what tells starts of the machine apart, and containers that number processes."""
    boot, container = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    with suppress(OSError):
        container = "".join(filter(str.isdigit, os.readlink("/proc/self/ns/pid")))
    return boot, container


def _started(pid: int) -> str | None:
    """Return when a process started, in ticks since the machine did; None where nobody says.

    A process that has ended but was not waited for has none, which is "".
    """
    try:
        # The name of the program, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]
