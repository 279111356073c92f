"""The stop rule of AutoLFADS for your own Tune scripts."""

from __future__ import annotations

import math
from typing import Any

from ray.tune.stopper import Stopper

from ..errors import one_of, unknown, whole
from ..search.rules import Patience


class ImprovementRatioStopper(Stopper):
    """Ends a search once the best score has all but stopped improving.

    For use as `stop` of `ray.tune.RunConfig` or `ray.tune.run`, with `BinaryTournamentPBT`.
    """

    def __init__(
        self,
        num_trials: int,
        perturbation_interval: int,
        burn_in_period: int,
        metric: str = "valid/recon_smth",
        patience: int = 4,
        min_improvement_ratio: float = 5e-4,
        *,
        mode: str = "min",
        time_attr: str = "training_iteration",
    ) -> None:
        self.num_trials = whole("num_trials", num_trials, least=1)
        self.interval = whole("perturbation_interval", perturbation_interval, least=1)
        self.first_end = max(whole("burn_in_period", burn_in_period, least=0), self.interval)
        one_of("mode", mode, ("min", "max"))
        self.metric = metric
        self.sign = 1 if mode == "min" else -1
        self.time_attr = time_attr
        self.rule = Patience(patience, min_improvement_ratio)
        #: Scores of the trials that have reached the end of a generation, by its number.
        self._scores: dict[int, dict[str, float]] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Note a result; no trial is stopped by itself."""
        for name in (self.metric, self.time_attr):
            if name not in result:
                raise unknown("the report of a trial", name, map(str, result))
        since = int(result[self.time_attr]) - self.first_end
        if since < 0 or since % self.interval:
            return False
        generation = since // self.interval
        if generation < len(self.rule.best):
            return False  # a trial that failed and was trained again
        scores = self._scores.setdefault(generation, {})
        scores[trial_id] = self.sign * float(result[self.metric])
        if len(scores) >= self.num_trials:
            self.rule.update([s if math.isfinite(s) else math.inf for s in scores.values()])
            self._scores.pop(generation)
        return False

    def stop_all(self) -> bool:
        """Return whether the search should end."""
        return self.rule.is_over
