"""Ensembles: what several trained models infer together."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..datamodules import BasicDataModule
from ..errors import UserError
from ..model import LFADS
from .analysis import MAX_BYTES, match_sessions, sample_session
from .writing import OutputFile, RowWriter, computing, output_file


def run_ensemble_sampling(
    models: Iterable[LFADS],
    datamodule: BasicDataModule,
    filename: str | Path,
    num_samples: int = 50,
    *,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
    run: str | Path | None = None,
) -> list[Path]:
    """Write the rates of all trials, averaged over models, one file per session.

    A file holds every key of the session's data file and ``{split}_output_params``, the mean over
    models of their posterior mean rates (or other means). Factors, states, initial conditions and
    inferred inputs are left out: each model has coordinates of its own for them, so a mean over
    models means nothing.
    """
    target = Path(filename)
    sessions = datamodule.sessions
    paths = [
        target.with_name(f"{target.stem}_sess{number}{target.suffix or '.h5'}")
        for number in range(len(sessions))
    ]
    n_models = 0
    names: list[str] = []
    with ExitStack() as stack:
        files: list[OutputFile] = []
        sums: dict[tuple[int, str], RowWriter] = {}
        for n_models, model in enumerate(models, start=1):
            numbers = match_sessions(model, datamodule)
            if not files:
                names = list(model.session_names)
                for path, session in zip(paths, sessions, strict=True):
                    files.append(stack.enter_context(output_file(path, session)))
                sums = {
                    (number, split): files[number].rows(split, ["output_params"])
                    for number, session in enumerate(sessions)
                    for split in session.splits
                }
            for (number, split), total in sums.items():
                arguments = (model, datamodule, number, numbers[number], split, num_samples)
                with computing():
                    sample_session(
                        *(*arguments, seed + n_models - 1, max_bytes),
                        as_in_file=True,
                        keep=total.add,
                    )
        if not n_models:
            raise UserError("an ensemble needs at least one model")
        for total in sums.values():
            total.divide(n_models)
        for number, file in enumerate(files):
            attributes: dict[str, Any] = {
                "session_name": datamodule.session_names[number],
                "model_session_names": names or [datamodule.session_names[number]],
                "num_samples": num_samples,
                "sampling_seed": seed,
                "num_models": n_models,
            }
            if run is not None:
                attributes["run"] = str(run)
            file.finish(attributes)
    return paths
