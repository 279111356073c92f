"""The run folder of a search: its files, the places in it, and its best model so far.

::

    config.yaml                 the configuration, with `search`
    status.json                 how far it got, how it ended, who was best
    population.csv              every member in every epoch; exchanges.csv: who copied whom
    search_state.pt             all that the next epoch depends on
    members/member_000.ckpt     the members at the end
    best_model/                 an ordinary run folder
    figures/
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from ..errors import DivergedError, UserError
from ..files import generation_before
from ..folder import BEST_MODEL, CHECKPOINTS, CONFIG, POPULATION, RunFolder
from ..tables import read_rows

STATE = "search_state.pt"
MEMBERS = "members"
BEST_CHECKPOINT = f"{BEST_MODEL}/{CHECKPOINTS}/best.ckpt"
LAST_CHECKPOINT = f"{BEST_MODEL}/{CHECKPOINTS}/last.ckpt"


_ADVICE = (
    "lower search.space.lr_init.init and max_samp or trainer.gradient_clip_val, and look for "
    "extreme values in the data (`lfads check`)"
)


class Best(NamedTuple):
    """The best score so far, negative where more is better, and its member and epoch (from 0)."""

    score: float = math.inf
    member: int = -1
    epoch: int = -1


class Outcome(NamedTuple):
    """What training leaves: scores of the members at the end, the best score, and its length."""

    scores: dict[int, float]
    best: Best
    n_epochs: int
    steps_per_epoch: int


class Place(NamedTuple):
    """Where a group is saved: its state, its best model so far, and members that do not train."""

    state: Path
    best: Path
    members: Path

    @classmethod
    def of_search(cls, folder: Path) -> Place:
        """Return the place of a search's only group, and of what is left at the end."""
        return cls(folder / STATE, folder / BEST_CHECKPOINT, folder / MEMBERS)

    @classmethod
    def of_trial(cls, folder: Path) -> Place:
        """Return the place of one group of several, in its own folder."""
        return cls(folder / "state.pt", folder / "best.ckpt", folder)

    def has_state(self, folder: Path) -> bool:
        """Whether a state was written, even where it is gone; `folder` is that of the search."""
        if self.state.is_file() or generation_before(self.state).is_file():
            return True
        # An epoch is written to the history before its state.
        return any(int(row["epoch"]) > 0 for row in read_rows(folder / POPULATION)[1])

    @property
    def about(self) -> Path:
        """A small file that says what else is saved, for who does not load the state."""
        return self.state.with_name("about.json")

    def member(self, number: int) -> Path:
        """Return the checkpoint of a member that does not train any more."""
        return self.members / f"member_{number:03d}.ckpt"


def check_is_search(folder: Path) -> None:
    """Refuse a folder that holds no search to go on with."""
    run = RunFolder(folder)
    if not (folder / CONFIG).is_file() or run.kind != "search":
        kind = "an ordinary run (lfads train --resume)" if run.status else "no search"
        raise UserError(
            f"{folder} holds {kind}, so lfads pbt --resume cannot go on with it; name the folder "
            "of a search, or start one without --resume"
        )


def all_diverged(folder: Path, n_members: int, epoch: int, best: Best) -> DivergedError:
    """Return what to raise where no member has a finite loss any more."""
    remains = (
        f"The best model before is {folder / BEST_CHECKPOINT} (member {best.member}, "
        f"epoch {best.epoch})."
        if best.member >= 0
        else "None of them ever had a finite loss."
    )
    return DivergedError(
        f"All {n_members} members have diverged by epoch {epoch}: loss or weights are NaN or "
        f"infinite. {remains} What happened is in {folder / POPULATION}. To mend it, {_ADVICE}, "
        "and start anew (--overwrite)."
    )
