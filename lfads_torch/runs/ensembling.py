"""Make an ensemble of runs: gather models, sample what is not sampled yet, choose, average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoint import find_checkpoint
from ..consent import Trust
from ..errors import ConfigError, UserError, one_of, whole
from ..files import expanded
from ..folder import CHECKPOINTS, RunFolder, lacks, number_outputs
from ..post_run.ensemble import Ensemble, Member, select_members, write_ensemble
from ..post_run.library_member import LIBRARIES, library_member
from ..post_run.outputs import RunOutputs, load_outputs
from ..post_run.report.comparison import distinct_names
from ..processes import remove
from .sampling import sample_run

MEMBERS = "members"


class _Model(NamedTuple):
    """A checkpoint, the run or search it is of, and whether it is the one that a run samples."""

    run: Path
    checkpoint: Path
    is_best: bool


def make_ensemble(
    runs: Sequence[str | Path],
    output: str | Path,
    *,
    select: str = "greedy",
    most: int = 32,
    metric: str | None = None,
    select_split: str | float | None = None,
    split: str | None = None,
    space: str = "rate",
    num_samples: int = 50,
    seed: int = 0,
    checkpoints: bool = False,
    data: str | Path | None = None,
    also: Sequence[str] = (),
    condition: str | None = None,
    overwrite: bool = False,
    trust: bool | Trust = False,
    accept_changed_data: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Ensemble:
    """Choose among models of the same data, and write their mean rates into a folder.

    Parameters
    ----------
    runs : sequence of str or Path
        Run folders; of a search its final members count, of a folder of seeds each seed.
    output : str or Path
        The folder of the ensemble.
    select, most, metric, select_split, split, space, seed
        As `how`, `most`, `metric`, `select_split`, `scored`, `space` and `seed` of
        `lfads_torch.post_run.ensemble.select_members`.
    num_samples : int
        Posterior samples of each model. Outputs of a run that have as many are used as they are.
    checkpoints : bool
        Whether every checkpoint of a run is a member.
    data : str or Path, optional
        Other trials of the same channels; by default those of the runs.
    also : sequence of {"mint", "mint_causal"}
        Libraries of PSTHs in which trials are looked up, as members beside the models.
    condition : str, optional
        Key that holds each trial's condition, which a library needs.
    overwrite : bool
        Replace the ensemble that the folder holds.
    trust : bool
        Consent to code outside this package that a run or checkpoint names.
    accept_changed_data : bool
        Sample a model although its data files hold other numbers than it was trained on.
    tell : callable, optional
        Called with a line of text before each model that is sampled.

    Returns
    -------
    Ensemble
        `text()` is the table; ``ensemble.json`` in the folder holds the same in numbers.

    Raises
    ------
    UserError
        Where there are fewer than two models, their data differ, rates are NaN, or the metric has
        no channels.
    """
    whole("num_samples (--samples)", num_samples, least=1)
    consent = {"trust": trust, "accept_changed_data": accept_changed_data}
    models = [model for run in runs for model in _models_of(expanded(run), checkpoints)]
    libraries = [one_of("--also", name.replace("-", "_"), LIBRARIES) for name in also]
    n_members = len(models) + len(libraries)
    if not models or n_members < 2:
        raise ConfigError(
            f"an ensemble of {n_members} member(s); it needs 2 or more: name more runs, a search, "
            "the folder of lfads train --seeds, or take --checkpoints of a run"
        )
    folder = RunFolder(expanded(output).absolute())
    names = distinct_names([model.run / _label(model) for model in models])
    if folder.kind not in ("none", "ensemble"):
        raise UserError(f"{folder.path} holds a {folder.kind}; name another folder (-o)")
    with folder.claimed("averaging", overwrite=overwrite):
        place, caches, members = folder.path / MEMBERS, [], []
        for k, (name, model) in enumerate(zip(names, models, strict=True), start=1):
            tell(f"rates of {name} ({k}/{len(models)})")
            caches.append(place / f"{name.replace('/', '_')}.h5")
            outputs = _rates(model, caches[-1], num_samples, data, consent)
            members.append(Member(name, model.run, model.checkpoint, outputs))
        for name in libraries:
            tell(f"rates of {name}")
            caches.append(place / name)
            members.append(library_member(members[0].outputs, name, caches[-1], condition))
        tell("choosing")
        ensemble = select_members(
            members,
            how=select,
            most=most,
            metric=metric,
            select_split=select_split,
            scored=split,
            space=space,
            seed=seed,
            path=folder.path,
        )
        # Only now: a mistake must not cost the ensemble that is overwritten.
        if overwrite:
            folder.delete(but=MEMBERS)
        for file in place.glob("*"):
            if not any(file.name.startswith(cache.stem) for cache in caches):
                remove(file)
        number_outputs(write_ensemble(ensemble))
    return ensemble


def _label(model: _Model) -> str:
    return "" if model.is_best else model.checkpoint.stem


def _models_of(place: Path, checkpoints: bool) -> list[_Model]:
    """Return the models of a run, a search or a folder of seeds."""
    place = place.absolute()
    folder = RunFolder(place)
    if not place.is_dir():
        raise UserError(f"{place} is no folder; name a run folder, such as runs/my_run")
    if folder.kind == "ensemble":
        raise UserError(f"{place} is an ensemble; name its members: {', '.join(folder.members())}")
    if folder.kind == "seeds":
        runs = [Path(run) for run in folder.members()]
        return [model for run in runs for model in _models_of(run, checkpoints)]
    if folder.kind == "search":
        return [_Model(place, file, False) for file in folder.models()]
    if checkpoints:
        files = sorted((place / CHECKPOINTS).glob("*.ckpt"))
        return [_Model(place, file, False) for file in files]
    file = find_checkpoint(place, best=True)
    if file is None:
        raise lacks(place, "checkpoint", "train it first: lfads train")
    return [_Model(place, file, True)]


def _rates(
    model: _Model, cache: Path, num_samples: int, data: str | Path | None, consent: dict[str, Any]
) -> RunOutputs:
    """Return the rates of a model, sampled now where the run has no such outputs."""
    if model.is_best and data is None:
        try:
            outputs = load_outputs(model.run)
        except UserError:
            outputs = None
        if outputs is not None and all(_is_of(s.attrs, model, num_samples) for s in outputs):
            return outputs
    sample_run(
        model.run,
        member=model.checkpoint,
        data=data,
        num_samples=num_samples,
        output=cache,
        overwrite=True,
        rates_only=True,
        **consent,
    )
    return load_outputs(cache)


def _is_of(attributes: Any, model: _Model, num_samples: int) -> bool:
    """Whether an output file is of this checkpoint and of as many samples."""
    checkpoint = Path(str(attributes.get("checkpoint", ""))).name
    return checkpoint == model.checkpoint.name and attributes.get("num_samples") == num_samples
