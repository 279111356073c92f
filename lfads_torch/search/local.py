"""A search in one process: one group, its coordinator, and the loop over epochs."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

from ..checkpoint import recover
from ..folder import RunFolder
from ..run_model import RunResult
from ..runs.build import pick_device
from .coordinator import Coordinator
from .group import Group
from .history import History
from .live_table import LiveTable
from .result import GoingOn, finish_search, recorded
from .settings import SearchSettings
from .state import Place, all_diverged

#: A kill needs no flush to the disk; a power cut may take half a minute of training. To flush a
#: large population can take longer than an epoch on a GPU.
FLUSH_EVERY_S = 30.0


def search_locally(
    config: dict[str, Any],
    settings: SearchSettings,
    folder: Path,
    going_on: GoingOn,
    *,
    overwrite: bool,
) -> RunResult:
    """Build and check the members, train them, and write what is left."""
    device = pick_device(config["trainer"], is_stacked=True)
    group = Group(config, settings, range(settings.n_members), device=device)
    settings = group.settings
    going_on.check_data(RunFolder(folder), group.data)
    if overwrite:  # now that nothing is left to be wrong
        RunFolder(folder).delete()
    # Each keeps what it has judged; the coordinator judges again from the first epoch on.
    method = copy.deepcopy(group.method)
    place = Place.of_search(folder)
    if going_on.resume and place.has_state(folder):
        recover(place.state)
        group.load(place)
    # A kill may have left rows of an epoch that was never saved. The coordinator continues what
    # remains, and makes the decisions so far again.
    History(folder).rewind(group.n_epochs)
    table = LiveTable(group.method.exchanges, group.max_epochs, group.population.steps_per_epoch)
    coordinator = Coordinator(
        folder,
        [range(settings.n_members)],
        method,
        settings,
        group.max_epochs,
        table=table,
    )
    coordinator.check_history([group.n_epochs])
    more = going_on.facts(RunFolder(folder), group.data, group.n_epochs)
    with recorded(config, settings, folder, "local", table, more) as facts:
        _train(group, coordinator, place)
    group.save_members(place)
    table.say(f"the search ended: {coordinator.ended}")
    return finish_search(config, folder, settings, group.outcome, coordinator.ended, facts)


def _train(group: Group, coordinator: Coordinator, place: Place) -> None:
    flushed = -math.inf
    while not coordinator.is_over:
        plan = coordinator.plan(group.n_epochs)
        if plan is not None and group.waits:
            group.follow(plan)
        # History before state: a kill between the two leaves rows that a resumed search cuts off
        # and writes again. A state ahead of its history would have nothing to decide from.
        coordinator.report(group.train_epoch())
        coordinator.decide()
        if coordinator.diverged_at is None:
            is_due = time.monotonic() - flushed > FLUSH_EVERY_S
            group.save(place, flush=is_due)
            flushed = time.monotonic() if is_due else flushed
    if coordinator.diverged_at is not None:
        n_members, epoch = len(coordinator.training), coordinator.diverged_at
        raise all_diverged(coordinator.folder, n_members, epoch, group.best)
    if (plan := coordinator.plan(group.n_epochs)) is not None and group.waits:
        group.follow(plan)
