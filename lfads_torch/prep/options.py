"""Options of `prepare`, which are those of `lfads prep`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .sources.recording import SourceOptions
from .trials import Align


@dataclass(frozen=True)
class PrepOptions(SourceOptions):
    """What to make of a recording; with `SourceOptions`, how to read it.

    Attributes
    ----------
    bin_ms : float, optional
        Bin width; by default that of a binned recording.
    align : str or Align, optional
        Window around an event of each trial, ``EVENT:START:STOP`` in ms. Trials of one length need
        none.
    until : str, optional
        Column of the trials: the time at which each ends, where that is within its window. It
        becomes ``{split}_lengths``, and bins past it count as missing.
    forward_ms : float
        Time after the window that is only predicted: `recon_data` is longer by its bins.
    select, units : sequence of str
        Rules for trials and for units: ``COLUMN=VALUE[,VALUE]``, or with ``!=``, ``<``, ``<=``,
        ``>``, ``>=``; such as ``success=1``.
    behavior, ext_input : sequence of str
        Series that become ``{split}_behavior`` and ``{split}_ext_input``.
    lag_ms : float
        Time by which behaviour is taken later than spikes (earlier where it is negative).
    conditions : sequence of str
        Columns of the trials that together give the condition; they become ``{split}_cond_idx``.
    keep : sequence of str
        Further columns to carry along.
    min_rate : float
        Spikes/s of the windows that train, below which a unit is dropped.
    min_presence : float
        Fraction of 20 stretches of the session in which a unit must fire; of windows that train.
    max_correlation : float, optional
        Drop units until no two are correlated more than this over bins of `correlation_ms`.
    correlation_ms : float
        Bin width for that; at most `bin_ms`.
    split : str, optional
        "random", "conditions" (each condition has its share), "blocks" (blocks of `block`
        neighbouring trials), "time" (what comes first trains, then comes validation, then test),
        "last:20%" (the same, by the share of the last part), or a column of the trials. By default
        the column ``split`` where the file has one, else "conditions" where conditions are given,
        else "random".
    valid, test, select_fraction : float
        Fractions of the trials. The last one is carved out of those that would train: the split
        ``select`` chooses among trained models, or which of them to average (`lfads ensemble`).
    block : int
        Trials of a block.
    seed : int
        For the split and for units held out.
    hold_out : float, str or None
        Units that are predicted but not read: a fraction, a number, or a column of the units that
        flags them. By default the column ``heldout`` where the file has one.
    never_seen : float
        Units, drawn among those that are read, that the model neither reads nor predicts: a
        fraction or a number. They become ``{split}_extra_data``, for few-shot co-smoothing.
    chop_ms, overlap_ms : float
        Length of windows that are cut from the whole recording, instead of trials, and by how much
        they overlap.
    block_ms, guard_ms : float, optional
        Length of the blocks that are split, by default that of ten windows, and the time that is
        left out on both sides of a border between splits.
    drop_duplicates : bool
        Leave out spikes at the very time of another one of the same unit.
    compress : bool
        Compress the file (gzip).
    strict : bool
        Raise an error where there would be a warning.
    """

    bin_ms: float | None = None
    align: str | Align | None = None
    until: str | None = None
    forward_ms: float = 0.0
    select: Sequence[str] = ()
    units: Sequence[str] = ()
    behavior: Sequence[str] = ()
    ext_input: Sequence[str] = ()
    lag_ms: float = 0.0
    conditions: Sequence[str] = ()
    keep: Sequence[str] = ()
    min_rate: float = 0.0
    min_presence: float = 0.0
    max_correlation: float | None = None
    correlation_ms: float = 1.0
    split: str | None = None
    valid: float = 0.2
    test: float = 0.0
    select_fraction: float = 0.0
    block: int = 10
    seed: int = 0
    hold_out: float | str | None = None
    never_seen: float = 0.0
    chop_ms: float | None = None
    overlap_ms: float = 0.0
    block_ms: float | None = None
    guard_ms: float = 0.0
    drop_duplicates: bool = False
    compress: bool = False
    strict: bool = False
