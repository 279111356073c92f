"""How Ray Tune runs the trials of a search: who trains, who makes room, and what stops it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.tune import Callback, Checkpoint
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.stopper import Stopper

from ...errors import UserError
from ..coordinator import Coordinator
from .trial import EPOCHS, GROUP, NUMBER, REPORT, WAITS

#: Seconds after which a trial that waits makes room for one that should have had a place.
_GRACE_S = 120.0


class GroupScheduler(FIFOScheduler):
    """Hands the plans of a coordinator to the trials.

    A trial that waits for a plan keeps its process. Only where there are more trials than places
    does it make room, saved, and comes back once its plan is there.
    """

    # Every result says whether its trial waits, so Tune may not collect several before a decision.
    _supports_buffered_results = False

    def __init__(self, coordinator: Coordinator, board: Any, slots: Callable[[], int]) -> None:
        super().__init__()
        self._coordinator = coordinator
        self._board = board
        self._slots = slots  # of the nodes that are there now
        self._last_ran = time.monotonic()
        self._n_posted = 0
        self._waits_since: dict[str, float] = {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Send a trial that waits away if another one needs its place."""
        if not result.get(WAITS):
            self._waits_since.pop(trial.trial_id, None)
            return str(self.CONTINUE)
        since = self._waits_since.setdefault(trial.trial_id, time.monotonic())
        trials = tune_controller.get_trials()
        is_long = time.monotonic() - since > _GRACE_S
        needs_room = any(
            other.status == Trial.PENDING or (other.status == Trial.PAUSED and self._can_go(other))
            for other in trials
        )
        if needs_room and (is_long or len(trials) > self._slots()):
            return str(self.PAUSE)
        return str(self.CONTINUE)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Post new plans; choose a trial that has something to do."""
        self._coordinator.decide()
        for plan in self._coordinator.plans[self._n_posted :]:
            ray.get(self._board.post.remote(plan))
            self._n_posted += 1
        trials = tune_controller.get_trials()
        self._check_nodes(trials)
        for trial in trials:
            if trial.status == Trial.PENDING:
                return trial
        for trial in trials:
            if trial.status == Trial.PAUSED and self._can_go(trial):
                return trial
        return None

    def _check_nodes(self, trials: Sequence[Trial]) -> None:
        """Give the search up where nodes died and none that is left can hold a trial."""
        now = time.monotonic()
        if any(trial.status == Trial.RUNNING for trial in trials):
            self._last_ran = now
        elif now - self._last_ran > _GRACE_S and not self._slots():
            self._coordinator.failure = UserError(
                "no node of the Ray cluster is left that has what one trial takes. Start one, and "
                f"go on with lfads pbt --resume {self._coordinator.folder}"
            )

    def _can_go(self, trial: Trial) -> bool:
        plans = self._coordinator.plans
        return bool(plans) and plans[-1].n_epochs >= trial.last_result.get(EPOCHS, 0)


class Watch(Callback):
    """Hands what trials report to a coordinator, with their checkpoints and failures."""

    def __init__(self, coordinator: Coordinator, max_failures: int) -> None:
        self._coordinator = coordinator
        self._max_failures = max_failures
        self._on_user_signal = _user_signal()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing, as a coordinator; nor can every handler of a signal be pickled."""
        return {}

    def setup(self, *args: Any, **info: Any) -> None:
        """Put back the handler of SIGUSR1, in whose place Tune has set one of its own."""
        # Tune's would end the search as if it had been Ctrl-C, with another exit status, and stay.
        if self._on_user_signal is not None:
            signal.signal(signal.SIGUSR1, self._on_user_signal)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Take in an epoch; the scheduler does not see the last one of a trial."""
        for report in result.get(REPORT, ()):
            self._coordinator.report(report)

    def on_checkpoint(
        self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: Checkpoint, **info: Any
    ) -> None:
        """Note where a trial can be gone on with from, before Tune deletes older checkpoints."""
        place = "/".join(str(checkpoint.path).rstrip("/").split("/")[-3:])
        number, result = trial.config[GROUP][NUMBER], trial.last_result
        is_over = bool(result.get("done"))
        self._coordinator.saved(number, int(result[EPOCHS]), place, is_over=is_over)

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Say that a trial starts again."""
        saved = self._coordinator.checkpoints[trial.config[GROUP][NUMBER]]
        place = f"from epoch {saved[-1][0]}" if saved else "from the beginning"
        self._coordinator.table.say(f"{self._name(trial)} starts again {place}: {_reason(trial)}")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Note the failure that is one too many."""
        cause = getattr(_error_of(trial), "cause", None)
        if isinstance(cause, UserError):
            self._coordinator.failure = cause
            return
        self._coordinator.failure = UserError(
            f"{self._name(trial)} failed {self._max_failures + 1} times, at last because "
            f"{_reason(trial)} (in full: {trial.path}/error.txt). Mend that and go on with "
            f"lfads pbt --resume {self._coordinator.folder}"
        )

    def _name(self, trial: Trial) -> str:
        members = self._coordinator.groups[trial.config[GROUP][NUMBER]]
        if len(members) == 1:
            return f"the trial of member {members[0]}"
        return f"the trial of members {members[0]} to {members[-1]}"


def _user_signal() -> Any:
    """Return the handler of SIGUSR1; None where there is none that could be put back."""
    in_main = threading.current_thread() is threading.main_thread()
    return signal.getsignal(signal.SIGUSR1) if in_main and hasattr(signal, "SIGUSR1") else None


def _error_of(trial: Trial) -> Any:
    """Return the latest error of a trial, or its text; None where Tune has neither."""
    # Tune writes it into a folder of this machine, and copies that to the storage some time later:
    # its own `get_pickled_error` looks into the storage alone, in which there is nothing yet.
    for name, read in ((trial.pickled_error_file, cloudpickle.loads), (trial.error_file, _latest)):
        if name and Path(name).is_file():
            return read(Path(name).read_bytes())
    return trial.get_pickled_error() or trial.get_error()


def _latest(content: bytes) -> str:
    text = content.decode("utf-8", "replace")
    return text.rpartition("Failure #")[2].partition("\n")[2]


def _reason(trial: Trial) -> str:
    """Return in a line why a trial failed."""
    error = _error_of(trial)
    if error is None:
        return "it gave no reason"
    cause = getattr(error, "cause", None)
    if cause is not None:
        return f"{type(cause).__name__}: {cause}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    details = [line for line in lines if "Worker exit detail" in line]
    if details:
        return f"its worker died: {details[0].rpartition('Worker exit detail: ')[2]}"
    return lines[0] if lines else "it gave no reason"


class StopOnFailure(Stopper):
    """Ends the experiment once the search cannot go on."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no trial by its result; that is for the trial to know."""
        return False

    def stop_all(self) -> bool:
        """Stop all."""
        return self._coordinator.failure is not None or self._coordinator.diverged_at is not None
