"""What a driver tells its trials at the end of a generation."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..methods import Method
from ..settings import SearchSettings


@dataclass(frozen=True)
class Plan:
    """What all trials do before they go on.

    Attributes
    ----------
    n_epochs : int
        Epochs after which it holds.
    ended : str
        Why the search ends here; empty where it goes on.
    parents : dict of int to int
        Members that become copies, and of whom.
    values : dict of str to (dict of int to float)
        Hyper-parameters of those copies.
    sources : dict of int to str
        For each of those parents, the checkpoint of its trial after `n_epochs` epochs.
    finished, dropped : tuple of int
        Members that stop: because they are done, or because they are given up.
    """

    n_epochs: int
    ended: str = ""
    parents: dict[int, int] = field(default_factory=dict)
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    sources: dict[int, str] = field(default_factory=dict)
    finished: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()


def needs_all(settings: SearchSettings, method: Method, n_epochs: int, max_epochs: int) -> bool:
    """Return whether what happens after so many epochs depends on the members of all trials."""
    return settings.method != "random" and method.ends(n_epochs) and n_epochs < max_epochs
