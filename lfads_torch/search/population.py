"""Many models of one structure trained at once, as one model with a leading axis of members.

SKELETON: signatures are final, bodies follow (ENGINE).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..model import LFADS

Numbers = np.ndarray[Any, np.dtype[Any]]


class Population:
    """K models of one structure that train side by side and independently.

    Member k, trained without exchange, draws what `models[k]` alone would draw in `run_model` with
    the seed `seeds[k]`, and equals it within float tolerance.

    Parameters
    ----------
    models : sequence of LFADS
        One structure; they may differ in parameters and in numbers kept as tensors (`tunables`).
        Member k starts from models[k]'s. The models themselves are not changed.
    datamodule : BasicDataModule
    seeds : sequence of int
        Run seed of every member: its draws and its order of trials.
    gradient_clip_val : float
        Largest norm of a member's gradient; 0 for no limit.
    device : str or torch.device
    chunk : int, optional
        Members stacked at a time; by default as many as fit into memory.

    Attributes
    ----------
    n_members : int
    epoch : int
        The next epoch to train, from 0.
    steps_per_epoch : int
    names : tuple of str
        Tunables by their path below ``model.``.
    chunk : int
    alive : ndarray of bool, shape (K,)
        False where a loss or a weight turned NaN or infinite.
    mapped : dict of str to str
        For "train" and "valid": "all" (one stacked step), "model" (augmentations one member after
        another, the rest stacked) or "none" (members one after another); known after an epoch.

    Raises
    ------
    ConfigError
        Where the models differ in more than numbers kept as tensors; numbers of models and seeds
        that do not agree; a chunk out of range.
    """

    n_members: int
    epoch: int
    steps_per_epoch: int
    names: tuple[str, ...]
    chunk: int

    def __init__(
        self,
        models: Sequence[LFADS],
        datamodule: Any,
        seeds: Sequence[int],
        *,
        gradient_clip_val: float,
        device: Any = "cpu",
        chunk: int | None = None,
    ) -> None:
        raise NotImplementedError

    @property
    def alive(self) -> Numbers:
        """Bool (K,)."""
        raise NotImplementedError

    @property
    def values(self) -> dict[str, Numbers]:
        """Tunables of all members: float64 arrays (K,) by name."""
        raise NotImplementedError

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Change tunables: arrays (K,) by name; what is not named stays.

        A member whose `lr_init` changes goes on with that learning rate (a plateau schedule's
        earlier reductions are dropped); one whose `lr_init` stays keeps its current rate.

        Raises
        ------
        ConfigError
            For an unknown name (did-you-mean), a wrong length, a value that is not finite.
        """
        raise NotImplementedError

    def train_epoch(self) -> dict[str, Numbers]:
        """Train and validate one epoch; return what Lightning would log, arrays (K,) by name.

        Names: train/loss, train/recon, train/wt_l2, train/wt_kl, ..., train/bps, valid/...,
        valid/recon_smth. NaN for members that diverged.
        """
        raise NotImplementedError

    def exchange(self, parents: Any) -> None:
        """Let member k take over from parents[k]; parents[k] == k stays as it is.

        Taken over: parameters, optimiser state, tunables, smoothed loss, learning rate and plateau
        state, `alive`. Seeds stay.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """All that changes while training: plain tensors, on the CPU, and plain numbers."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`; training goes on with identical numbers."""
        raise NotImplementedError

    def member(self, k: int) -> LFADS:
        """Member k as an ordinary model on the CPU, in evaluation mode."""
        raise NotImplementedError

    def checkpoint(self, k: int) -> dict[str, Any]:
        """Member k as the checkpoint that Lightning would save at the end of the last epoch."""
        raise NotImplementedError
