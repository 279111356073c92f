"""Posterior means: what a trained model infers for every trial, averaged over samples."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from ..data import Survey, list_some
from ..datamodules import BasicDataModule
from ..datamodules.loaders import OrderedLoader, in_length_order
from ..errors import UserError, nearest
from ..metrics.trialwise import NLB_FLOOR
from ..model import LFADS
from ..model_checks import bytes_available
from ..modules.decoder import Decoding
from ..provenance import provenance
from ..tuples import SessionBatch, SessionOutput, bins_of
from .writing import OutputFile, RowWriter, computing, output_file

MAX_BYTES = 512 * 2**20
"""Default bound of the memory that sampling takes at a time."""

Sink = Callable[[SessionOutput], None]
"""Takes what is inferred of some trials after another, in order."""


class Draws(NamedTuple):
    """How many samples are drawn, from which seed, in how much memory at a time."""

    num_samples: int
    seed: int
    max_bytes: int


def sample_posterior(
    model: LFADS,
    data: Any,
    num_samples: int = 50,
    split: str = "valid",
    *,
    session: str | None = None,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Any:
    """Infer what a model says of each trial, averaged over samples of its posterior.

    The encoders run once; the decoder runs on many samples at a time.

    Parameters
    ----------
    model : LFADS
    data : BasicDataModule, str, Path, or array of shape (trials, bins, channels)
        A data module, the path or glob pattern of data files, or what the encoders read of one
        session's trials (an array has no split).
    num_samples : int
        Posterior samples; a model that is not variational has one.
    split : {"train", "valid", "test", "select"}
    session : str, optional
        Which session of the model an array is of; a model of one session needs none.
    seed : int
        Seed of the samples; the global generators are left alone.
    max_bytes : int
        Bound of the memory for samples, in bytes; half of the device's free memory, where that
        is less. It does not change what is computed but for the random numbers.

    Returns
    -------
    SessionOutput, or dict of int to SessionOutput
        By session number where there are several; sessions without the split are left out.
        Tensors on the CPU, trials in the order of the file; `output_params` are mean rates (or
        other means) per bin, shape (trials, T_r, N_r). Bins past a trial's end are NaN.

    Raises
    ------
    UserError
        Where the data do not fit the model.
    """
    if num_samples < 1:
        raise UserError(f"num_samples is {num_samples}; legal are whole numbers >= 1")
    draws = Draws(num_samples, seed, max_bytes)
    if isinstance(data, (np.ndarray, Tensor)):
        return _sample_array(model, data, draws, session)
    datamodule = _as_datamodule(data)
    numbers = match_sessions(model, datamodule)
    # Refuses a split that no session has; one that only some have is sampled for these.
    datamodule.split_loader(split)
    outputs = {
        number: _joined(
            partial(sample_session, model, datamodule, number, model_session, split, draws)
        )
        for number, model_session in enumerate(numbers)
        if split in datamodule.sessions[number].splits
    }
    return outputs[0] if len(numbers) == 1 else outputs


def run_posterior_sampling(
    model: LFADS,
    datamodule: Any,
    filename: str | Path,
    num_samples: int = 50,
    *,
    folder: str | Path | None = None,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
    run: str | Path | None = None,
    checkpoint: str | Path | None = None,
) -> list[Path]:
    """Write the posterior means of all trials, one file per session, into the working directory.

    A file holds every key of the session's data file and, for each split and each field of
    `SessionOutput`, ``{split}_{field}`` in the order of the file's trials; where the data module
    redraws the split, both are written in its order. ``output_params`` are mean rates (or other
    means) per bin. Where trials end before the last bin, what follows is NaN, and
    ``{split}_lengths`` says how many bins each trial has. The file appears under its name only when
    complete.

    Parameters
    ----------
    model : LFADS
    datamodule : BasicDataModule, str or Path
    filename : str or Path
        ``name.h5`` stands for ``name_{data file}.h5``, where the data file's name counts up to its
        first dot. A folder in it is left out, as in the existing implementation, with a warning.
    num_samples : int
        Posterior samples that are averaged.
    folder : str or Path, optional
        Where the files go instead; made where it does not exist.
    seed, max_bytes
        As in `sample_posterior`.
    run, checkpoint : str or Path, optional
        Recorded as attributes of the files.

    Returns
    -------
    list of Path
        The files, by session.

    Raises
    ------
    UserError
        Where the data do not fit the model, or a file cannot be written.
    """
    data = _as_datamodule(datamodule)
    name = Path(filename)
    if folder is None and name.parent != Path():
        warnings.warn(
            f"posterior means are written into the working directory, not into {name.parent}: of "
            "filename only the name counts; give folder=... for another place",
            stacklevel=2,
        )
    paths = output_paths(Path(folder or "") / name.name, data)
    write_posterior_means(
        model, data, paths, Draws(num_samples, seed, max_bytes), run=run, checkpoint=checkpoint
    )
    return paths


def output_paths(path: Path, data: BasicDataModule) -> list[Path]:
    """Name the output file of each session after its data file, up to the first dot of its name."""
    names = [session.path.name.lstrip(".").partition(".")[0] for session in data.sessions]
    for name in sorted({name for name in names if names.count(name) > 1}):
        warnings.warn(
            f"{names.count(name)} data files are named {name} up to the first dot; the numbers of "
            "their sessions are added to the names of their output files",
            stacklevel=3,
        )
    return [
        path.with_name(
            f"{path.stem}_{name}{f'_{number}' if names.count(name) > 1 else ''}"
            f"{path.suffix or '.h5'}"
        )
        for number, name in enumerate(names)
    ]


def write_posterior_means(
    model: LFADS,
    data: BasicDataModule,
    paths: Sequence[Path],
    draws: Draws,
    *,
    run: str | Path | None = None,
    checkpoint: str | Path | None = None,
    fields: Sequence[str] | None = None,
) -> None:
    """Write the posterior means of all trials, by default all of them, one file per session."""
    if fields is None:
        fields = [f for f in SessionOutput._fields if f != "behavior" or model.behavior is not None]
    for number, model_session in enumerate(match_sessions(model, data)):
        rows = data.all_rows()[number]
        attributes = _attributes(model, model.session_names, data, number, draws, run)
        if not model.hparams["variational"]:
            attributes["num_samples"] = 1
        if checkpoint is not None:
            attributes["checkpoint"] = str(checkpoint)
        with output_file(paths[number], data.sessions[number], rows) as out:
            for split in rows:
                arguments = (model, data, number, model_session, split, draws)
                with computing():
                    sample_session(*arguments, sink=out.rows(split, fields).add)
            out.finish(attributes)


def run_ensemble_sampling(
    models: Iterable[LFADS],
    datamodule: BasicDataModule,
    paths: Sequence[Path],
    num_samples: int = 50,
    *,
    counts: Sequence[int] | None = None,
    is_log: bool = False,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
    run: str | Path | None = None,
) -> None:
    """Write the rates of all trials, averaged over models, one file per session.

    A model counts once, or as often as `counts` says; with `is_log` logarithms are averaged.

    A file holds every key of the session's data file and ``{split}_output_params``, the mean over
    models of their posterior mean rates (or other means). Factors, states, initial conditions and
    inferred inputs are left out: each model has its own coordinates for them, so a mean over
    models means nothing.
    """
    sessions = datamodule.sessions
    n_models, names = 0, []
    # All files are open at once and add up on the disk, because models come one after another:
    # memory then holds a single model and one batch, whatever the number of either.
    with ExitStack() as stack:
        files: list[OutputFile] = []
        sums: dict[tuple[int, str], RowWriter] = {}
        for n_models, model in enumerate(models, start=1):
            numbers = match_sessions(model, datamodule)
            if not files:
                names = list(model.session_names)
                for target in zip(paths, sessions, datamodule.all_rows(), strict=True):
                    files.append(stack.enter_context(output_file(*target)))
                sums = {
                    (number, split): files[number].rows(split, ["output_params"])
                    for number, session in enumerate(sessions)
                    for split in session.splits
                }
            # A seed for each model: equal noise in all of them would not average out.
            draws = Draws(num_samples, seed + n_models - 1, max_bytes)
            count = 1 if counts is None else counts[n_models - 1]
            for (number, split), total in sums.items():
                arguments = (model, datamodule, number, numbers[number], split, draws)
                with computing():
                    sample_session(*arguments, sink=_Counted(total, count, is_log).add)
        if not n_models:
            raise UserError("an ensemble needs at least one model")
        n = n_models if counts is None else sum(counts)
        for total in sums.values():
            total.apply(lambda block: np.exp(block / n) if is_log else block / n)
        draws = Draws(num_samples, seed, max_bytes)
        for number, file in enumerate(files):
            attributes = _attributes(model, names, datamodule, number, draws, run)
            file.finish({**attributes, "num_models": n_models})


class _Counted(NamedTuple):
    """Adds a model's rates to a sum, as often as the model counts."""

    total: RowWriter
    times: int
    is_log: bool

    def add(self, output: SessionOutput) -> None:
        rates = output.output_params
        if self.is_log:
            rates = rates.clamp_min(NLB_FLOOR).log()
        self.total.add(output._replace(output_params=rates * self.times))


def _attributes(
    model: LFADS,
    model_names: Sequence[str],
    data: BasicDataModule,
    number: int,
    draws: Draws,
    run: str | Path | None,
) -> dict[str, Any]:
    """Return what an output file says of itself."""
    name = data.session_names[number]
    return {
        "session_name": name,
        "session_number": number,
        "model_session_names": list(model_names) or [name],
        "num_samples": draws.num_samples,
        "sampling_seed": draws.seed,
        "provenance": json.dumps(provenance(model.device, data)),
        **({} if run is None else {"run": str(run)}),
    }


def match_sessions(model: LFADS, data: BasicDataModule) -> list[int]:
    """Return for each session of the data its number in the model.

    A model of one session takes data of any one session (checked by size); a model of several
    knows its sessions by name.
    """
    names, known = data.session_names, model.session_names
    n_known = len(model.readin)
    # By size, not by name, for a single session: new data of it come in a file of another name.
    if n_known == 1 or not known:
        if len(names) != n_known:
            raise UserError(f"the model has {n_known} session(s), the data {len(names)}")
        numbers = list(range(n_known))
    else:
        unknown = [name for name in names if name not in known]
        if unknown:
            near = nearest(unknown[0], known, most=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(
                f"the model was not trained on session {unknown[0]!r}{hint}; its sessions are "
                f"{', '.join(known)}, named after their files"
            )
        numbers = [known.index(name) for name in names]
    for number, model_session in enumerate(numbers):
        model.check_session(model_session, data.sessions[number], data.sizes[number])
    return numbers


def _as_datamodule(data: Any) -> BasicDataModule:
    return data if hasattr(data, "split_loader") else BasicDataModule(data)


def _sample_array(model: LFADS, data: Any, draws: Draws, session: str | None) -> SessionOutput:
    encod = torch.as_tensor(np.asarray(data), dtype=torch.float32, device=model.device)
    number = 0
    if len(model.readin) != 1:
        if session not in model.session_names:
            raise UserError(
                f"an array of session {session!r}, for a model of {len(model.readin)} sessions; "
                f"legal as session=... are {list_some(model.session_names)}"
            )
        number = model.session_names.index(session)
    n_read = getattr(model.readin[number], "in_features", model.hparams["encod_data_dim"])
    legal = (model.hparams["encod_seq_len"], n_read)
    if encod.ndim != 3 or tuple(encod.shape[1:]) != legal:
        raise UserError(
            f"data is an array of shape {tuple(encod.shape)}; the model takes (trials, {legal[0]}, "
            f"{legal[1]})"
        )
    if model.hparams["ext_input_dim"]:
        raise UserError("the model has external inputs, which an array lacks; give a data file")
    if len(encod) == 0:
        raise UserError("data is an array without trials; give at least one")
    if encod.isinf().any():
        raise UserError(
            f"data is an array with {int(encod.isinf().sum())} infinite values; legal are numbers, "
            "and NaN where something is missing"
        )
    lengths = _lengths(encod, model.hparams["recon_seq_len"])
    order = _Order.of(len(encod), lengths, model, draws)

    def batch(rows: NDArray[np.int64]) -> SessionBatch:
        recon = encod[torch.from_numpy(rows).to(encod.device)]
        fields = {"recon_data": recon}
        if lengths is not None:
            # What is only predicted has no data, but says how many bins are.
            longest = int(lengths[rows].max())
            recon = recon[:, :longest]
            fields["recon_data"] = pad(recon, (0, 0, 0, longest - recon.shape[1]), value=torch.nan)
            fields["lengths"] = torch.from_numpy(lengths[rows]).to(encod.device)
        window = (recon.shape[1], recon.shape[2])
        return SessionBatch.from_rows(lambda name, _: fields.get(name), recon, window)

    batches = map(batch, order.batches())
    return _joined(lambda sink: _average(model, number, batches, draws, order.restored(sink)))


def _lengths(encod: Tensor, n_bins: int) -> NDArray[np.int64] | None:
    """Return the bins of each trial of an array, None where nothing is missing in it."""
    survey = Survey.of(encod.cpu().numpy())
    if (survey.lengths == 0).any():
        none = np.flatnonzero(survey.lengths == 0).tolist()
        raise UserError(
            f"trials {list_some(none)} of the array (counted from 0) hold nothing but NaN; leave "
            "them out"
        )
    # What comes after the bins that are read is not known, so such a trial goes on to the end.
    if survey.complete:
        return None
    return np.where(survey.lengths == encod.shape[1], n_bins, survey.lengths)


def sample_session(
    model: LFADS,
    data: BasicDataModule,
    number: int,
    model_session: int,
    split: str,
    draws: Draws,
    *,
    sink: Sink,
) -> None:
    """Infer a split of session `number` of the data, which is `model_session` of the model."""
    data.to(model.device)
    rows = data.all_rows()[number][split]
    lengths = data.sessions[number].lengths if data.group_by_length else None
    order = _Order.of(len(rows), None if lengths is None else lengths[rows], model, draws)
    loader = OrderedLoader(
        data.ready_tensors(),
        [(split, {number: rows[order.places]})],
        order.share,
        None if lengths is None else {number: lengths},
    )
    with closing(iter(loader)) as steps:
        batches = (step[number][0] for step in steps)
        _average(model, model_session, batches, draws, order.restored(sink))


class _Order(NamedTuple):
    """In which order trials are inferred: `share` at a time, sorted by length within a pool."""

    places: NDArray[np.int64]
    share: int
    pool: int

    @classmethod
    def of(cls, n: int, lengths: NDArray[np.int64] | None, model: LFADS, draws: Draws) -> _Order:
        share = _trials_at_once(model, draws)
        # What is inferred of a pool waits in memory: as much as one sample of each of its trials.
        pool = share * max(1, _trials_at_once(model, draws._replace(num_samples=1)) // share)
        places = np.arange(n)
        if lengths is not None:
            places = in_length_order(lengths, places, pool)
        return cls(places, share, pool)

    def batches(self) -> Iterator[NDArray[np.int64]]:
        return (self.places[i : i + self.share] for i in range(0, len(self.places), self.share))

    def restored(self, sink: Sink) -> Sink:
        """Return a sink that hands on each pool's trials in their first order."""
        if (self.places == np.arange(len(self.places))).all():
            return sink
        held: list[SessionOutput] = []
        done = 0

        def add(output: SessionOutput) -> None:
            nonlocal done
            held.append(output)
            n = sum(len(one.factors) for one in held)
            if n == len(pool := self.places[done : done + self.pool]):
                back, joined = torch.from_numpy(pool.argsort()), _cat(held)._asdict()
                sink(SessionOutput(**{name: field[back] for name, field in joined.items()}))
                held.clear()
                done += n

        return add


@torch.no_grad()
def _average(
    model: LFADS, session: int, batches: Iterable[SessionBatch], draws: Draws, sink: Sink
) -> None:
    """Average over samples, batch by batch; the model's mode and the generators are restored."""
    sample = bool(model.hparams["variational"])
    # Without a variational posterior all samples are the same one.
    num_samples = draws.num_samples if sample else 1
    at_once = _rows_at_once(model, draws)
    was_training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        model.eval()
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(draws.seed)
            for raw in batches:
                batch = model.infer_aug_stack.process_batch(raw)
                encoding = model.encode({session: batch})
                n_trials = batch.encod_data.shape[0]
                n_bins = bins_of({session: batch}, model.hparams["recon_seq_len"])
                share = max(1, at_once // n_trials)
                # Added up as they come, so that memory does not grow with the number of samples.
                sums: dict[str, Tensor] = {}
                for start in range(0, num_samples, share):
                    n_now = min(share, num_samples - start)
                    decoding = model.decode(
                        encoding, batch.ext_input, sample=sample, n_samples=n_now, n_bins=n_bins
                    )
                    read = _read_out(model, session, decoding)
                    more = {k: x.unflatten(0, (n_now, -1)).sum(dim=0) for k, x in read.items()}
                    sums = {k: sums[k].add_(x) for k, x in more.items()} if sums else more
                fields = {name: (x / num_samples).cpu() for name, x in sums.items()}
                ends = None if batch.lengths is None else batch.lengths.cpu()
                posterior = {"ic_mean": encoding.ic_mean.cpu(), "ic_std": encoding.ic_std.cpu()}
                output = SessionOutput(**posterior, **fields)
                sink(output.ended(ends, model.hparams["recon_seq_len"]))
                model.infer_aug_stack.reset()
    finally:
        model.train(was_training)


def _read_out(model: LFADS, session: int, decoding: Decoding) -> dict[str, Tensor]:
    """Return what was decoded with the means of the observations, and behaviour, by name."""
    fields: dict[str, Tensor] = decoding._asdict()
    params = model.read_out(session, decoding.factors, output_means=False)
    fields["output_params"] = model.recon[session].compute_means(params)
    if model.behavior is not None:
        read = model.read_behavior(session, decoding, params)
        fields["behavior"] = model.behavior.in_units(read)
    return fields


def _joined(infer: Callable[..., None]) -> SessionOutput:
    """Return all that `infer` gives to its `sink`."""
    outputs: list[SessionOutput] = []
    infer(sink=outputs.append)
    return _cat(outputs)


def _cat(outputs: Sequence[SessionOutput]) -> SessionOutput:
    """Return the trials of some outputs together."""
    names = outputs[0]._asdict()
    return SessionOutput(**{name: torch.cat([getattr(o, name) for o in outputs]) for name in names})


def _bytes_per_row(model: LFADS) -> int:
    """Return the memory that decoding one trial once takes, in bytes.

    It counts the buffers of the decoder and of the read-out.
    """
    # An estimate of the arrays per bin that the decoder's loop and the read-out keep. It decides
    # how much goes through at a time, so a wrong one costs memory or time but no accuracy.
    hp = model.hparams
    n_out = max(getattr(readout, "out_features", hp["fac_dim"]) for readout in model.readout)
    per_bin = 8 * hp["gen_dim"] + 8 * hp["con_dim"] + 4 * hp["fac_dim"] + 8 * hp["co_dim"]
    per_bin += 3 * n_out + 4 * hp["ext_input_dim"]
    return 4 * hp["recon_seq_len"] * per_bin


def output_bytes(model: LFADS, data: Any) -> int:
    """Estimate what the output files and three checkpoints of a run take on the disk."""
    hp = model.hparams
    per_bin = hp["gen_dim"] + hp["fac_dim"] + hp["con_dim"] + 4 * hp["co_dim"] + hp["ext_input_dim"]
    per_bin += hp["behavior_dim"]
    # A parameter has two numbers of the optimiser beside it.
    total = 3 * 3 * 4 * sum(p.numel() for p in model.parameters())
    for session, sizes in zip(
        getattr(data, "sessions", ()), getattr(data, "sizes", ()), strict=True
    ):
        n_trials = sizes.n_train + sizes.n_valid + sizes.n_test
        per_trial = sizes.recon_len * (per_bin + sizes.recon_dim) + 2 * hp["ic_dim"]
        total += 4 * n_trials * per_trial
        total += session.path.stat().st_size if session.in_file else 0
    return int(total)


def _trials_at_once(model: LFADS, draws: Draws) -> int:
    return max(1, _rows_at_once(model, draws) // max(1, draws.num_samples))


def _rows_at_once(model: LFADS, draws: Draws) -> int:
    # What a seed draws depends on the bound, so the memory of a machine does not raise it: half of
    # what is free lowers it, where sampling would fail otherwise.
    free = bytes_available(model.device)
    most = draws.max_bytes if free is None else min(draws.max_bytes, free // 2)
    return max(1, most // _bytes_per_row(model))


# ---- files, written as trials are inferred, so that no session has to fit into memory ----------
