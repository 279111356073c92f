"""The members of one trial: a part of a population, trained and saved as one. Needs no Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import read_checkpoint
from ..files import write_whole
from .coordinator import Plan, needs_all
from .members import build_members, max_epochs_of
from .population import Population
from .settings import SearchSettings
from .state import Best, save

STATE = "state.pt"
ABOUT = "about.json"
BEST = "best.ckpt"

OpenFolder = Callable[[str], AbstractContextManager[Path | str]]


def final_name(member: int) -> str:
    """Return the file of a member that does not train any more, in a trial's checkpoint."""
    return f"member_{member:03d}.ckpt"


class Group:
    """Members of a search that train as one stacked model.

    Parameters
    ----------
    config : mapping
        Composed, with ``search``.
    settings : SearchSettings
    numbers : sequence of int
        Which members of the search these are.
    device : str, default="cpu"
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        settings: SearchSettings,
        numbers: Sequence[int],
        *,
        device: str = "cpu",
    ) -> None:
        members = build_members(config, settings, numbers, device=device)
        self.settings = settings
        self.method = members.method
        self.max_epochs = max_epochs_of(config)
        self.population = Population(
            members.models,
            members.datamodule,
            members.seeds,
            gradient_clip_val=float(config["trainer"].get("gradient_clip_val") or 0.0),
            device=device,
            stack_size=settings.chunk,
        )
        self.population.set_values(members.values)
        self.numbers: NDArray[np.intp] = np.asarray(numbers, dtype=np.intp)
        #: Members that the population holds; it cannot hold none.
        self._held = self.numbers
        self.scores = np.full(len(self.numbers), np.inf)
        self.best = Best()
        self._best_checkpoint: dict[str, Any] | None = None
        #: Members that do not train any more, with score and checkpoint.
        self._left: dict[int, tuple[float, dict[str, Any]]] = {}
        self._decided = 0
        self._ended = False

    @property
    def n_epochs(self) -> int:
        """Epochs trained."""
        return self.population.epoch

    @property
    def is_over(self) -> bool:
        """Whether no member trains any more."""
        return self._ended or not len(self.numbers) or self.n_epochs >= self.max_epochs

    @property
    def waits(self) -> bool:
        """Whether a plan is needed before the next epoch."""
        together = needs_all(self.method, self.n_epochs, self.max_epochs)
        return not self.is_over and together and self._decided < self.n_epochs

    def train_epoch(self) -> dict[str, Any]:
        """Train an epoch, and let go who stops without a look at other trials.

        Returns
        -------
        dict
            What the history records, in plain lists with one item for each member that was trained.
        """
        names, values = self.population.names, self.population.values
        metrics = self.population.train_epoch()
        alive = self.population.alive
        self.scores = self.settings.scores(metrics[self.settings.metric], alive)
        report = {
            "n_epochs": self.n_epochs,
            "members": self.numbers.tolist(),
            "values": {name: values[name].tolist() for name in names},
            "metrics": {name: np.asarray(column).tolist() for name, column in metrics.items()},
            "diverged": (~alive).tolist(),
        }
        self._keep_best()
        verdict = self.method.judge(self.n_epochs, self.numbers, self.scores)
        if not needs_all(self.method, self.n_epochs, self.max_epochs):
            self._let_go(verdict.finished, verdict.dropped)
        return report

    def _keep_best(self) -> None:
        k = int(np.argmin(self.scores))
        if self.scores[k] < self.best.score:
            self.best = Best(float(self.scores[k]), int(self.numbers[k]), self.n_epochs - 1)
            self._best_checkpoint = self.population.checkpoint(k)

    def _let_go(self, finished: Sequence[int], dropped: Sequence[int]) -> None:
        """Take members out, by their places; who is finished leaves a checkpoint."""
        for k in finished:
            checkpoint = self.population.checkpoint(k)
            self._left[int(self.numbers[k])] = (float(self.scores[k]), checkpoint)
        leaving = {*finished, *dropped}
        staying = np.array([k for k in range(len(self.numbers)) if k not in leaving], np.intp)
        if leaving and len(staying):
            self.population.keep(staying)
            self._held = self.numbers[staying]
        self.numbers, self.scores = self.numbers[staying], self.scores[staying]

    def follow(self, plan: Plan, open_folder: OpenFolder = nullcontext) -> None:
        """Do what a plan says.

        Parameters
        ----------
        plan : Plan
        open_folder : callable, optional
            Gives a checkpoint of another trial as a folder on this machine.
        """
        self._decided = plan.n_epochs
        self._ended = bool(plan.ended)
        place = {int(number): k for k, number in enumerate(self.numbers)}
        own = {place[number]: parent for number, parent in plan.parents.items() if number in place}
        elsewhere = {k: parent for k, parent in own.items() if parent not in place}
        for source in sorted({plan.sources[parent] for parent in elsewhere.values()}):
            with open_folder(source) as folder:
                state = read_checkpoint(Path(folder) / STATE)
            for k, parent in elsewhere.items():
                if plan.sources[parent] == source:
                    self.population.adopt(k, state["population"], state["held"].index(parent))
        parents = np.arange(len(self.numbers))
        for k, parent in own.items():
            parents[k] = place.get(parent, k)
        if len(elsewhere) < len(own):
            self.population.exchange(parents)
        if own:
            values = self.population.values
            for name, column in plan.values.items():
                for k in own:
                    values[name][k] = column[int(self.numbers[k])]
            self.population.set_values({name: values[name] for name in plan.values})
        finished = [place[number] for number in plan.finished if number in place]
        self._let_go(finished, [place[number] for number in plan.dropped if number in place])

    def save(self, folder: Path) -> None:
        """Write all that the next epoch depends on; at the end, also every member.

        Parameters
        ----------
        folder : Path
            An empty one.
        """
        left = dict(self._left)
        if self.is_over:
            for k in np.flatnonzero(np.isfinite(self.scores)):
                checkpoint = self.population.checkpoint(int(k))
                left[int(self.numbers[k])] = (float(self.scores[k]), checkpoint)
        for number, (_, checkpoint) in left.items():
            save(folder / final_name(number), checkpoint)
        if self._best_checkpoint is not None:
            save(folder / BEST, self._best_checkpoint)
        state = {
            "population": self.population.state_dict(),
            "method": self.method.state_dict(),
            "numbers": self.numbers.tolist(),
            "held": self._held.tolist(),
            "scores": self.scores.tolist(),
            "best": list(self.best),
            "left": {number: score for number, (score, _) in self._left.items()},
            "decided": self._decided,
            "ended": self._ended,
        }
        save(folder / STATE, state)
        about = {
            "n_epochs": self.n_epochs,
            "is_over": self.is_over,
            "best": list(self.best),
            "scores": {number: score for number, (score, _) in left.items()},
            "steps_per_epoch": self.population.steps_per_epoch,
        }
        write_whole(folder / ABOUT, json.dumps(about))

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; the group may not have got further than that."""
        state = read_checkpoint(folder / STATE)
        held = np.asarray(state["held"], dtype=np.intp)
        if len(held) < len(self._held):
            self.population.keep(np.flatnonzero(np.isin(self._held, held)))
        self._held = held
        self.numbers = np.asarray(state["numbers"], dtype=np.intp)
        self.population.load_state_dict(state["population"])
        self.method.load_state_dict(state["method"])
        self.scores = np.asarray(state["scores"], dtype=np.float64)
        score, member, epoch = state["best"]
        self.best = Best(float(score), int(member), int(epoch))
        best = folder / BEST
        self._best_checkpoint = read_checkpoint(best) if best.is_file() else None
        self._left = {
            int(number): (float(score), read_checkpoint(folder / final_name(int(number))))
            for number, score in state["left"].items()
        }
        self._decided = int(state["decided"])
        self._ended = bool(state["ended"])
