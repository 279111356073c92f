"""Posterior sampling of a finished run, on its own data or on new trials."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..consent import Trust, trust_of
from ..data.fingerprint import check_unchanged, fingerprints
from ..errors import UserError, whole
from ..files import absent, check_writable, expanded
from ..folder import CONFIG, RunFolder, lacks, number_outputs
from ..processes import stoppable
from .build import build, pick_device
from .compose import absolute_pattern, read_config


def sample_run(
    run: str | Path,
    *,
    data: str | Path | None = None,
    num_samples: int = 50,
    output: str | Path | None = None,
    overwrite: bool = False,
    best: bool = True,
    ensemble: bool = False,
    members: int | None = None,
    config: str | Path | None = None,
    reconstruction: str | None = None,
    trust: bool | Trust = False,
    accept_changed_data: bool = False,
    member: Path | None = None,
    rates_only: bool = False,
) -> list[Path]:
    """Average posterior samples of a trained model, or rates of the models of an ensemble.

    An ensemble is a folder of `lfads ensemble`, or with `ensemble` the final members of a search.
    `member` is another checkpoint of the run or search that is to be sampled.

    `config` and `reconstruction` say what a checkpoint of the existing implementation lacks.
    `trust` consents to code outside this package that the run or its checkpoint names,
    `accept_changed_data` to data files that hold other numbers than the model was trained on.
    """
    from ..checkpoint import data_settings, find_checkpoint, load_model
    from ..post_run.analysis import (
        MAX_BYTES,
        Draws,
        output_paths,
        run_ensemble_sampling,
        write_posterior_means,
    )

    if members is not None and not ensemble:
        raise UserError("a number of members says how large an ensemble is; give --ensemble too")
    whole("num_samples (--samples)", num_samples, least=1)
    if members is not None:
        whole("members (--members)", members, least=1)
    place = expanded(run).absolute()
    if not place.exists():
        raise UserError(f"{absent(place)}; name a run folder or a .ckpt file")
    home, counts, is_log = place, None, False
    if RunFolder(place).kind == "ensemble":
        from ..post_run.ensemble import ensemble_models

        if ensemble or members is not None:
            raise UserError(f"{place} is an ensemble already; leave out --ensemble and --members")
        about, files, counts = ensemble_models(place)
        if data is None:
            raise UserError(
                f"{place} has its rates already; give other trials with --data FILE, or make the "
                "ensemble again: lfads ensemble"
            )
        # Where the data of its first member are described, those of all are.
        first = next(one for one in about["members"] if one["count"])
        home, is_log, ensemble = Path(first["run"]), about["space"] == "log", True
    folder = RunFolder.around(home).single.path
    consent, trust = trust, trust_of(folder / CONFIG, trust)
    # Nothing else of the run is built, so nothing else of it needs consent.
    parts = ("datamodule", "trainer.accelerator")
    of_run = read_config(folder, trust, parts) if (folder / CONFIG).is_file() else {}
    chosen: Sequence[Path | None]
    if counts is not None:
        chosen = files
    elif ensemble:
        chosen = RunFolder(place).models()[:members]
    else:
        chosen = [member or find_checkpoint(place, best=best)]
    checkpoint = chosen[0]
    if checkpoint is None:
        raise lacks(place, "checkpoint", "name a run folder or a .ckpt file")
    settings = dict(of_run.get("datamodule") or data_settings(checkpoint))
    # New trials need not have the keys that scores and figures read, and they keep their splits.
    if data is not None:
        settings["datafile_pattern"] = absolute_pattern(str(data), Path.cwd())
        settings.update(
            batch_keys=[], attr_keys=[], reshuffle_tv_seed=None, reshuffle_tv_ratio=None
        )
    if "datafile_pattern" not in settings:
        raise UserError(
            f"{folder} does not say what its data were, or they are gone; give --data FILE"
        )
    settings.setdefault("_target_", "lfads_torch.datamodules.BasicDataModule")
    if "datamodule" not in of_run:  # a checkpoint says it, which no signature covers
        replace(trust, is_own=False).check({"datamodule": settings}, checkpoint)
    datamodule = build(settings, "datamodule")
    datamodule.setup("fit")
    if data is None:
        changed = _changed_data(RunFolder(folder), checkpoint, datamodule, accept_changed_data)
        # Of a member of an ensemble, the folder is another's.
        if changed and member is None and (status := RunFolder(folder).status):
            RunFolder(folder).write_status(**{**status, "data": fingerprints(datamodule)})
    device = pick_device({"accelerator": of_run.get("trainer.accelerator", "auto")})
    stem = "lfads_output" if data is None else f"{_stem(data)}_output"
    name = f"{stem}_ensemble.h5" if ensemble and counts is None else f"{stem}.h5"
    where = place if ensemble else folder
    path = expanded(output).absolute() if output else where / name
    # One session's file is named as it was asked for; several need the names of their data files.
    is_exact = datamodule.n_sessions == 1 and (output is not None or data is not None)
    paths = [path] if is_exact else output_paths(path, datamodule)
    # The outputs of the run itself are drawn anew; a file that was named is somebody's result.
    existing = [file for file in paths if file.exists()]
    if existing and output is not None and not overwrite:
        raise UserError(f"{existing[0]} exists already; name another --output, or add --overwrite")
    check_writable(path)
    writing = nullcontext() if output else RunFolder(where).owned("sampling")
    with stoppable(), writing:
        if ensemble:
            # A generator: one member is in memory at a time.
            # What is covered by the signature of one run is not by that of another.
            allowed = trust if counts is None else consent
            models = (
                load_model(one, trust=allowed).to(device) for one in chosen if one is not None
            )
            run_ensemble_sampling(
                models, datamodule, paths, num_samples, counts=counts, is_log=is_log, run=place
            )
        else:
            answers: dict[str, Any] = {"reconstruction": reconstruction} if reconstruction else {}
            model = load_model(
                checkpoint, config=config, data=datamodule, trust=trust, **answers
            ).to(device)
            draws = Draws(num_samples, seed=0, max_bytes=MAX_BYTES)
            fields = ("output_params",) if rates_only else None
            write_posterior_means(
                model, datamodule, paths, draws, run=folder, checkpoint=checkpoint, fields=fields
            )
        if output is None and data is None:
            number_outputs(paths, path.stem)
    return paths


def _changed_data(run: RunFolder, checkpoint: Path, datamodule: Any, accept: bool) -> bool:
    """Refuse data that are not the run's, or return whether such are accepted."""
    from ..checkpoint import read_checkpoint
    from .resume import RUN_KEY

    recorded = run.status.get("data") or read_checkpoint(checkpoint).get(RUN_KEY, {}).get("data")
    return bool(check_unchanged(recorded, fingerprints(datamodule), accept=accept))


def _stem(data: str | Path) -> str:
    return Path(data).stem.replace("*", "").replace("?", "").strip("_-. ") or "lfads"
