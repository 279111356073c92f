"""Names of hyper-parameter searches that existing YAML and scripts use.

`BinaryTournamentPBT`, `ImprovementRatioStopper` and `train_trial` are for your own Tune scripts
(docs/clusters.md) and need Ray, which is imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping

from ..compat import populations, ray_names
from ..errors import ConfigError
from ..search.ray import require_ray
from ..search.space import HyperParam
from ..tables import as_frame, read_population

if TYPE_CHECKING:
    from .tune_scheduler import BinaryTournamentPBT as BinaryTournamentPBT
    from .tune_stopper import ImprovementRatioStopper as ImprovementRatioStopper
    from .tune_trial import train_trial as train_trial

__all__ = ["EarlyStoppingWithBurnInPeriod", "HyperParam", "read_pbt_fitlog"]

ray_names.install()

#: What needs Ray, and the module of `lfads_torch.extensions` that has it.
_OVER_RAY = {
    "BinaryTournamentPBT": "tune_scheduler",
    "ImprovementRatioStopper": "tune_stopper",
    "train_trial": "tune_trial",
}


def __getattr__(name: str) -> Any:
    if name not in _OVER_RAY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_ray(name)
    return getattr(import_module(f"lfads_torch.extensions.{_OVER_RAY[name]}"), name)


class EarlyStoppingWithBurnInPeriod(EarlyStopping):
    """Early stopping that looks away during the first epochs.

    While the KL and L2 ramps rise, the validation loss may rise as well without meaning that the
    model has stopped learning.

    Parameters
    ----------
    monitor : str
        Metric to watch.
    *args, **kwargs
        Further arguments of Lightning's `EarlyStopping`, in their places or by name.
    burn_in_period : int
        Epochs that are not looked at, neither for the best value nor for patience.
    """

    def __init__(
        self, monitor: str = "valid/recon_smth", *args: Any, burn_in_period: int = 0, **kwargs: Any
    ) -> None:
        if burn_in_period < 0:
            raise ConfigError(f"burn_in_period must be 0 or more epochs, got {burn_in_period}")
        super().__init__(monitor, *args, **kwargs)
        self.burn_in_period = burn_in_period

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check after validation, once the burn-in is over."""
        if trainer.current_epoch >= self.burn_in_period:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check after the epoch, once the burn-in is over."""
        if trainer.current_epoch >= self.burn_in_period:
            super().on_train_epoch_end(trainer, pl_module)


def read_pbt_fitlog(pbt_dir: str | Path, n_processes: int = 8) -> Any:
    """Read what every member of a search logged in every epoch.

    Parameters
    ----------
    pbt_dir : path
        Run folder of a search, or a folder of trials that a script wrote with Ray Tune.
    n_processes : int
        Not used: files are read by this process. Scripts give it.

    Returns
    -------
    pandas.DataFrame
        For a search, one row for each epoch and member: ``epoch``, ``generation``, ``member``,
        ``parent`` (the member it became a copy of before this epoch, else itself), ``diverged``,
        hyper-parameters ``hp/...``, and losses and scores such as ``valid/recon_smth``; NaN where
        not logged. For a folder of trials, one row for each epoch of every ``metrics.csv``: its
        columns, gaps filled from the row before, and ``worker_id``, the number of the file in
        sorted order.

    Raises
    ------
    DataError
        If the folder holds neither.
    UserError
        If pandas is not installed.
    """
    if populations.is_population(pbt_dir):
        return populations.read_logs(pbt_dir)
    return as_frame(read_population(pbt_dir))
