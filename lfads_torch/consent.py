"""Consent to code that a run folder or a checkpoint names, and that may be a stranger's.

Parts of this package, modules of `torch.nn` and ordinary callbacks are built freely. Anything else
is imported only where the user said so, or where the folder's configuration is signed: runs sign
what they write with a key that never leaves this user's home. ``docs/security.md`` says what this
protects, and what it does not.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from .errors import UserError

#: What is built apart from the parts of a network. Names, because every other class or function
#: has to be thought of first: a logger may send data away, a function may read or write any file.
_FREE = {
    f"{room}.{name}"
    for room, names in {
        "lfads_torch": ["model.LFADS", "checkpoint.load_model", "runs.resume.RunCSVLogger"],
        "lfads_torch.post_run.analysis": ["run_posterior_sampling"],
        "lfads_torch.datamodules": ["BasicDataModule", "module.BasicDataModule"],
        "lfads_torch.sessions.day_model": ["alignment_model", "DayData"],
        "lfads_torch.callbacks": [
            *("RasterPlot", "TrajectoryPlot", "NaNGuard", "EpochProgressBar", "TestEval"),
        ],
        "lfads_torch.extensions": ["nlb.NLBEvaluation", "tune.EarlyStoppingWithBurnInPeriod"],
        "lfads_torch.compat.ray_names": [
            *("get_trial_dir", "get_trial_name", "get_trial_id"),
            *("TuneReportCallback", "TuneReportCheckpointCallback"),
        ],
        "pytorch_lightning": ["Trainer", "loggers.CSVLogger", "loggers.TensorBoardLogger"],
        "pytorch_lightning.callbacks": [
            *("DeviceStatsMonitor", "EarlyStopping", "GradientAccumulationScheduler"),
            *("LearningRateMonitor", "ModelCheckpoint", "ModelSummary", "RichModelSummary"),
            *("RichProgressBar", "StochasticWeightAveraging", "TQDMProgressBar", "Timer"),
        ],
    }.items()
    for name in names
}
#: Target of the model of a run that goes on from a checkpoint.
LOAD_MODEL = "lfads_torch.checkpoint.load_model"
#: Rooms whose public classes are parts of a network.
_ROOMS = ("lfads_torch.modules", "torch.nn")
_PARTS_DEFINED_IN = ("lfads_torch.modules.", "torch.nn.modules.")
#: Bases of classes that a script may have imported before. Classes of the libraries that are always
#: imported do not count: nobody here chose to import them.
_KINDS = ("torch.nn.modules.", "pytorch_lightning.")
_LIBRARIES = {
    *("lfads_torch", "torch", "torchmetrics", "pytorch_lightning", "lightning"),
    *("lightning_fabric", "ray", "wandb"),
}
_SIGNATURE = re.compile(r"# code outside lfads-torch: (.*)\n# signature: ([0-9a-f]{64})\n\Z")
#: A reference to another key or to the environment; a backslash before it makes it plain text.
_REFERENCE = re.compile(r"(?<!\\)(\\\\)*\$\{")
_HOW = (
    "Nothing of it was imported. Read that code first; where you trust it, add --trust (in Python "
    "trust=True)"
)


class Question(NamedTuple):
    """What a configuration asks for, in words, and the target that it names, if it names one."""

    text: str
    target: str | None = None


@dataclass(frozen=True)
class Trust:
    """What may be imported apart from known parts: everything, or these names."""

    everything: bool = False
    names: frozenset[str] = frozenset()
    #: Whether the configuration is one that a run of this user wrote, unchanged.
    is_own: bool = False

    def covers(self, target: str) -> bool:
        """Return whether a target may be imported and built."""
        return (
            self.everything or target in self.names or is_known_part(target) or _is_loaded(target)
        )

    def admit(self, target: str) -> None:
        """Refuse the class that a checkpoint names, or make sure that it can be imported."""
        if not self.covers(target):
            raise UserError(
                f"the checkpoint was not made by a run of yours, and needs {target}. {_HOW}"
            )
        if not is_known_part(target):
            open_places()

    def check(self, config: Mapping[str, Any], source: Any) -> None:
        """Refuse a configuration that asks for more."""
        if self.everything or self.is_own:
            return
        asked = [
            question.text
            for question in _questions(config)
            if question.target is None or not self.covers(question.target)
        ]
        if asked:
            more = f" and {len(asked) - 8} more" if len(asked) > 8 else ""
            raise UserError(
                f"{source} was not written by a run of yours, or was changed since, and does what "
                f"needs your consent: {'; '.join(asked[:8])}{more}. {_HOW}"
            )


NOTHING, EVERYTHING = Trust(), Trust(everything=True)


def trust_of(config: Path, given: bool | Trust) -> Trust:
    """Return what a run may import: everything with consent, else what its file is signed for."""
    if isinstance(given, Trust):
        return given
    if given:
        return EVERYTHING
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return NOTHING
    signed, key = _SIGNATURE.search(text), _key(make=False)
    if signed is None or key is None:
        return NOTHING
    expected = _digest(key, text[: signed.start(2)])
    if not hmac.compare_digest(expected, signed[2]):
        return NOTHING
    return Trust(names=frozenset(signed[1].split()), is_own=True)


def sign(text: str, config: Mapping[str, Any], more: Iterable[str] = ()) -> str:
    """Add a signature to a configuration that a run writes, where it asks for consent.

    `more` are targets of the model's parts that the configuration itself does not name.
    """
    asked = list(_questions(config))
    named = {question.target for question in asked if question.target}
    names = sorted(name for name in named.union(more) if not is_known_part(name))
    if not (asked or names):
        return text
    # Without a home that can be written the run goes on; its folder asks for consent later.
    key = _key(make=True)
    if key is None:
        return text
    above = f"{text}# code outside lfads-torch: {' '.join(names)}\n# signature: "
    return f"{above}{_digest(key, above)}\n"


def is_known_part(target: str) -> bool:
    """Return whether a name is of a part that is built freely; only known modules are imported."""
    if target in _FREE:
        return True
    room, _, name = target.rpartition(".")
    if name.startswith("_") or not any(room == r or room.startswith(f"{r}.") for r in _ROOMS):
        return False
    # By its definition, not by its place: `lfads_torch.modules.recons` also holds what it imports.
    if room != "torch.nn" and not f"{room}.".startswith(_PARTS_DEFINED_IN):
        return False
    try:
        part = vars(import_module(room)).get(name)
    except (ImportError, ValueError):
        return False
    return _is_part(part) and part.__module__.startswith(_PARTS_DEFINED_IN)


def is_augmentation(cls: type) -> bool:
    """Return whether a class has a method of an augmentation."""
    return hasattr(cls, "process_batch") or hasattr(cls, "process_losses")


def look_in(folder: str) -> None:
    """Look for a lab's own modules in this folder, once the first one may be imported."""
    # Not on Python's path before: where a stranger's folder is the working directory, a file there
    # must not stand in for an optional library that is not installed.
    _places[:] = [folder]


def open_places() -> None:
    """Put the folder of `look_in` last on Python's path, so that a file hides no library."""
    sys.path.extend(place for place in _places if place not in sys.path)


_places: list[str] = []


def _is_part(cls: Any) -> bool:
    return isinstance(cls, type) and (
        is_augmentation(cls) or any(base.__module__.startswith(_KINDS) for base in cls.__mro__)
    )


def _is_loaded(target: str) -> bool:
    """Return whether a target is a class that the user's program has imported already."""
    room, _, name = target.rpartition(".")
    # Of the module's own names: to ask the module may make it import something.
    cls = vars(sys.modules[room]).get(name) if room in sys.modules else None
    return room.partition(".")[0] not in _LIBRARIES and _is_part(cls)


def _questions(config: Any, where: str = "") -> Iterator[Question]:
    """Yield what a configuration asks beyond known parts, with the key that asks it."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            target = config["_target_"]
            if not isinstance(target, str) or not is_known_part(target):
                yield Question(f"{where} builds {target}", str(target))
            if target == LOAD_MODEL and "trust" in config:
                yield Question(f"{where}.trust gives the consent itself")
        if not where:
            for key in sorted({"defaults", "hydra"} & config.keys()):
                yield Question(f"{key} brings in other configurations")
        for key, value in config.items():
            name = f"{where}.{key}" if where else str(key)
            # Which data a run reads is the run's to say; it only reads them.
            if key == "datafile_pattern":
                listed = value if isinstance(value, list | tuple) else [value]
                value = [v for v in listed if not isinstance(v, str) or _REFERENCE.search(v)]
            if key == "address" and value not in (None, "local", "auto"):
                yield Question(f"{name} joins a Ray cluster at {value}")
            yield from _questions(value, name)
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            yield from _questions(value, f"{where}.{number}")
    elif isinstance(config, str):
        if _REFERENCE.search(config):
            yield Question(f"{where} reads {config}")
        elif _leaves_folder(config):
            yield Question(f"{where} names the place {config}")


def _leaves_folder(text: str) -> bool:
    """Return whether a text is a path or an address outside the run folder."""
    return (
        text.startswith(("/", "\\", "~"))
        or re.match(r"[A-Za-z]:[\\/]", text) is not None
        or "://" in text
        or "::" in text
        or ".." in re.split(r"[\\/]", text)
    )


def _digest(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _key(*, make: bool) -> bytes | None:
    """Read this user's key, or make it; None where there is none."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(home) / "lfads_torch" / "key"
    with suppress(OSError):
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Linked, so that of two runs that begin at once one makes the key, and it is whole.
            new = path.with_name(f".key.{os.getpid()}.{secrets.token_hex(4)}")
            new.touch(mode=0o600, exist_ok=False)
            new.write_bytes(secrets.token_bytes(32))
            with suppress(FileExistsError):
                os.link(new, path)
            new.unlink()
        key = path.read_bytes()
        return key if len(key) == 32 else None
    return None
