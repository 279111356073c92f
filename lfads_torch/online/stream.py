"""A trained model bin by bin: counts in; rates, factors and behaviour of that bin out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, UserError, one_of, whole
from ..files import expanded
from ..metrics.decoder import Decoder, DecoderState
from ..model import LFADS
from .engines import State, StepEngine, WindowEngine
from .session import open_session, session_number
from .step import Step
from .window import Window

Array = NDArray[Any]

# Calls of which `Stream.latency` knows the time: the last ten minutes at bins of 5 ms.
_TIMES = 120_000

_FIELDS = ("rates", "factors", "gen_states", "inputs")
# What a decoder calls its features, and the field that holds them.
FEATURES = {name: name for name in _FIELDS} | {"output_params": "rates", "co_means": "inputs"}


class StreamOutput(NamedTuple):
    """What a stream infers of one bin, posterior means.

    With ``batch=B``, arrays have a leading axis of B streams. `Stream.run` adds a leading axis of
    bins.

    Attributes
    ----------
    t : int
        Number of the bin since the stream began, from 0.
    fresh : bool
        Whether the model ran at this bin; between, outputs are those of the last time.
    rates : ndarray of float32, shape (N_r,)
        Expected number of spikes in the bin, or the observation model's mean.
    factors : ndarray of float32, shape (fac_dim,)
    gen_states : ndarray of float32, shape (gen_dim,)
    inputs : ndarray of float32, shape (co_dim,)
        Inferred inputs.
    decoded : ndarray of float32, shape (targets,), optional
        What the decoder makes of them.
    ahead : ndarray of float32, shape (horizon, N_r), optional
        Rates of the bins to come.
    behavior : ndarray of float32, shape (D,), optional
        Behaviour that the model reads out itself (`behavior_dim`), in the units of its data.
    """

    t: Any
    fresh: Any
    rates: Array
    factors: Array
    gen_states: Array
    inputs: Array
    decoded: Array | None = None
    ahead: Array | None = None
    behavior: Array | None = None


def stream(run: str | Path | LFADS, mode: str = "auto", **options: Any) -> Stream:
    """Return a trained model that takes one bin of counts after another.

    Parameters
    ----------
    run : str, Path or LFADS
        A run folder, a checkpoint, or a model.
    mode : {"auto", "window", "step"}
        ``window``: the whole model on the last T_e bins at every bin, for any model. ``step``: one
        step of each net, for models trained with ``causal: true``; ``auto`` takes it where it can.
    **options
        Those of `Stream`, and of `load_model` (``best``, ``trust``).

    Returns
    -------
    Stream

    Raises
    ------
    UserError
        For a run or options that cannot be used; it is a `ValueError`.

    Examples
    --------
    >>> import lfads_torch
    >>> live = lfads_torch.stream("runs/wrist", decoder="decoder.json")  # doctest: +SKIP
    >>> live.step(counts).decoded  # doctest: +SKIP
    array([0.12, -0.4], dtype=float32)
    """
    return Stream(run, mode, **options)


class Stream:
    """A trained model bin by bin; see `stream`.

    Parameters
    ----------
    run, mode
        As in `stream`.
    session : int or str
        Number or name of the session whose channels are read.
    decoder : str, Path or Decoder, optional
        File of ``lfads decode --save``, or what `lfads_torch.metrics.decoding.fit_decoder` gave.
    threads : int
        Threads of torch within a call; the setting of your program is put back.
    device : str
        Where the model computes.
    warmup : {"nan", "repeat", "zeros"}
        Of a window: outputs are NaN until T_e bins were seen, or the bins before the first one are
        taken to be like it, or to be 0.
    every : int
        Run a window at every so many bins only.
    horizon : int
        Bins to come whose rates are inferred, at most T_r - T_e.
    batch : int, optional
        Streams side by side; all arrays get a leading axis.
    bin_ms : float, optional
        The bin width of your stream, to be compared with the run's.
    restart : int
        Of steps: bins after which a new state, from the learned initial condition, replaces the
        old one; 0: never.
    blend : int, optional
        Bins over which it does; by default twice the IC segment, or 20.
    best, trust
        As in `lfads_torch.load_model`.

    Attributes
    ----------
    mode : str
        "window" or "step".
    t : int
        Bins so far.
    bin_ms : float or None
        Bin width of the run in milliseconds, where its data or outputs say it, or yours.
    window : int
        Bins of a training window.
    n_channels : int
        Channels of a bin.
    for_counts : bool
        Whether the model is one of spike counts.
    channel_names : list of str or None
        Rows of the recording's units, where data or outputs say them, else numbers; None where a
        model was given.

    Raises
    ------
    UserError
        For a run or options that cannot be used.
    """

    def __init__(
        self,
        run: str | Path | LFADS,
        mode: str = "auto",
        *,
        session: int | str = 0,
        decoder: str | Path | Decoder | None = None,
        threads: int = 1,
        device: str | torch.device = "cpu",
        warmup: str = "nan",
        every: int = 1,
        horizon: int = 0,
        batch: int | None = None,
        bin_ms: float | None = None,
        restart: int = 0,
        blend: int | None = None,
        best: bool = True,
        trust: bool = False,
    ) -> None:
        self.bin_ms = bin_ms
        self.channel_names: list[str] | None = None
        if isinstance(run, LFADS):
            model, self._run = run, "the model"
            self._session = session_number(session, model, self._run)
            if model.training or model.device != torch.device(device):
                # A model of yours is left as it is.
                where = "in training mode" if model.training else f"on {model.device}"
                raise UserError(
                    f"the model is {where}; call model.eval().to({str(device)!r}) first"
                )
        else:
            opened = open_session(run, session, bin_ms=bin_ms, best=best, trust=trust)
            model, self._run, self._session = opened.model, str(run), opened.number
            self.bin_ms, self.channel_names = opened.bin_ms, list(opened.channel_names)
        model = model.to(device)
        hp = model.hparams
        one_of("mode", mode, ("auto", "window", "step"))
        self.mode = ("step" if model.causal else "window") if mode == "auto" else mode
        self._threads = whole("threads", threads, least=1)
        self._batch = None if batch is None else whole("batch", batch, least=1)
        n = self._batch or 1
        readout, self._recon = model.readout[self._session], model.recon[self._session]
        n_read = getattr(model.readin[self._session], "in_features", hp["encod_data_dim"])
        self.n_channels, self._n_ext = int(n_read), int(hp["ext_input_dim"])
        n_ahead = hp["recon_seq_len"] - hp["encod_seq_len"]
        horizon = whole("horizon", horizon, least=0)
        if horizon > n_ahead:
            raise UserError(
                f"horizon is {horizon}; legal are 0 to {n_ahead}, the bins that the model was "
                "trained to predict (recon_seq_len - encod_seq_len)"
            )
        every = whole("every", every, least=1)
        if self.mode == "step":
            for name, value, default in (("every", every, 1), ("warmup", warmup, "nan")):
                if value != default:
                    raise ConfigError(
                        f"{name} is {value!r}; a causal model steps at every bin and needs no "
                        "window: leave it out, or use mode='window'"
                    )
            self._engine: StepEngine | WindowEngine = StepEngine(
                Step(model, self._session), n, device, horizon, restart, blend
            )
        else:
            one_of("warmup", warmup, ("nan", "repeat", "zeros"))
            if restart or blend:
                raise ConfigError(
                    "restart and blend are for mode='step'; a window starts anew at every bin"
                )
            self._engine = WindowEngine(
                Window(model, self._session), n, device, warmup, every, horizon
            )
        n_out = getattr(readout, "out_features", None)
        if n_out is None:  # a read-out of your own that does not say its size
            n_out = readout(torch.zeros(1, 1, hp["fac_dim"], device=device)).shape[-1]
        n_out = int(n_out) // getattr(self._recon, "n_params", 1)
        sizes: dict[str, tuple[int, ...]] = {
            "rates": (n_out,),
            "factors": (hp["fac_dim"],),
            "gen_states": (hp["gen_dim"],),
        }
        sizes |= {"inputs": (hp["co_dim"],), "ahead": (horizon, n_out)}
        self._fields: tuple[str, ...] = _FIELDS
        if model.behavior is not None:
            self._fields, sizes["behavior"] = (*_FIELDS, "behavior"), (hp["behavior_dim"],)
        self._arrays = {k: np.full((n, *v), np.nan, np.float32) for k, v in sizes.items()}
        self._counts = np.zeros((n, self.n_channels), np.float32)
        self._ext = np.zeros((n, self._n_ext), np.float32)
        self._decoder: DecoderState | None = None
        if decoder is not None:
            widths = {name: array.shape[1] for name, array in self._arrays.items()}
            used, self._read = checked_decoder(decoder, widths, self.bin_ms, self._run)
            if every > 1 and used.lags != (0,):
                raise UserError(
                    f"the decoder has lags {used.lags}, which need every bin, but every is "
                    f"{every}; fit it with --lags 0, or leave every out"
                )
            self._decoder = used.state(n)
            self._arrays["decoded"] = np.full((n, len(used.bias)), np.nan, np.float32)
        # Tensors and arrays that share their memory: nothing is made anew at a bin.
        self._tensors = {k: torch.from_numpy(v) for k, v in self._arrays.items()}
        self._x, self._e = torch.from_numpy(self._counts), torch.from_numpy(self._ext)
        self._device, self._horizon = torch.device(device), horizon
        self._times, self._n_calls = np.zeros(_TIMES, np.float32), 0
        self.t, self.window = 0, int(hp["encod_seq_len"])
        self.for_counts = bool(getattr(self._recon, "for_counts", False))

    # ---- bins ------------------------------------------------------------------------------------

    def step(
        self, counts: ArrayLike, ext: ArrayLike | None = None, *, copy: bool = False
    ) -> StreamOutput:
        """Take the next bin.

        Parameters
        ----------
        counts : array, shape (N,) or (B, N)
            Of any numeric type; NaN where a channel is missing.
        ext : array, shape (E,) or (B, E), optional
            External inputs of the model, where it has any.
        copy : bool
            Return arrays that later calls leave alone; else they are valid until the next call.

        Returns
        -------
        StreamOutput

        Raises
        ------
        UserError
            For counts that no bin can hold. The stream is as it was before, and goes on.
        """
        began = time.perf_counter_ns()
        self._take(counts, ext)
        with torch.inference_mode(), limited_to(self._threads):
            x = self._x if self._device.type == "cpu" else self._x.to(self._device)
            e = self._e if self._device.type == "cpu" else self._e.to(self._device)
            output = self._engine.push(self.t, x, e if self._n_ext else None)
            fresh = output is not None
            if output is not None:
                for name in self._fields:
                    self._tensors[name].copy_(getattr(output, name))
                if self._horizon:
                    self._tensors["ahead"].copy_(output.ahead)
        if self._decoder is not None and (fresh or not self._engine.started):
            self._arrays["decoded"][...] = self._decoder.step(self._arrays[self._read])
        result = self._output(fresh, copy)
        self.t += 1
        self._times[self._n_calls % _TIMES] = (time.perf_counter_ns() - began) / 1e6
        self._n_calls += 1
        return result

    def run(self, counts: ArrayLike, ext: ArrayLike | None = None) -> StreamOutput:
        """Take many bins, one after another, as `step` does.

        Parameters
        ----------
        counts : array, shape (bins, N) or (bins, B, N)
        ext : array, shape (bins, E) or (bins, B, E), optional

        Returns
        -------
        StreamOutput
            Each field with a leading axis of bins.
        """
        rows = np.asarray(counts)
        outputs = [
            self.step(row, None if ext is None else np.asarray(ext)[i], copy=True)
            for i, row in enumerate(rows)
        ]
        if not outputs:
            raise UserError("counts hold no bin; give an array (bins, channels)")
        columns: Any = zip(*outputs, strict=True)
        stacked: list[Any] = [None if c[0] is None else np.stack(c) for c in columns]
        return StreamOutput(*stacked)

    # ---- state -----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget all bins: a new trial begins, or a gap has ended."""
        self.t = 0
        self._engine.reset()
        for array in self._arrays.values():
            array.fill(np.nan)
        if self._decoder is not None:
            self._decoder.reset()

    def state(self) -> State:
        """Return what `load_state` goes on from: arrays and numbers, which can be pickled."""
        state: State = {"t": self.t, "mode": self.mode, "session": self._session}
        state |= {f"output_{k}": v.copy() for k, v in self._arrays.items()}
        if self._decoder is not None:
            state |= {f"decoder_{k}": v for k, v in self._decoder.state().items()}
        return state | self._engine.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, bit for bit, also in another process.

        Raises
        ------
        UserError
            Where it is of another kind of stream; this one is then as it was.
        """
        mine = self.state()
        for name, value in mine.items():
            other = state.get(name)
            is_same = other is not None and np.shape(other) == np.shape(value)
            if name in ("mode", "session"):
                is_same = other == value
            if not is_same:
                raise UserError(
                    f"the state's {name} is {_shown(other)}, this stream's {_shown(value)}; load "
                    "it into a stream of the same run and options"
                )
        self._engine.load_state(state)
        self.t = int(state["t"])
        for name, array in self._arrays.items():
            array[...] = state[f"output_{name}"]
        if self._decoder is not None:
            names = ("ring", "position")
            self._decoder.load_state({name: state[f"decoder_{name}"] for name in names})

    def latency(self) -> dict[str, float]:
        """Return the number of calls and the percentiles of their time, in milliseconds.

        Returns
        -------
        dict
            ``calls``, and ``p50``, ``p95``, ``p99``, ``p99.9`` and ``max`` of the last 120 000.
        """
        times = self._times[: min(self._n_calls, _TIMES)]
        if not len(times):
            return {"calls": 0}
        shares = {"p50": 50, "p95": 95, "p99": 99, "p99.9": 99.9, "max": 100}
        return {
            "calls": self._n_calls,
            **{name: float(np.percentile(times, share)) for name, share in shares.items()},
        }

    # ---- inside ----------------------------------------------------------------------------------

    def _take(self, counts: ArrayLike, ext: ArrayLike | None) -> None:
        """Check a bin and copy it into the stream's own arrays."""
        for name, values, room in (("counts", counts, self._counts), ("ext", ext, self._ext)):
            if name == "ext" and values is None:
                room.fill(0.0)
                continue
            array = np.asarray(values)
            legal: tuple[int, ...] = room.shape if self._batch else room.shape[1:]
            if array.shape != legal:
                what = f"session {self._session} of {self._run} reads {legal[-1]}"
                if name == "ext":
                    what = f"{self._run} takes {legal[-1]} (ext_input_dim)"
                if array.ndim == len(legal) and array.shape[:-1] == legal[:-1]:
                    raise UserError(f"{name} has {array.shape[-1]} channels; {what}")
                raise UserError(f"{name} has shape {array.shape}; legal is {legal}: {what}")
            if array.dtype.kind not in "buif":
                raise UserError(f"{name} is of type {array.dtype}; legal are numbers")
            # float64 beyond float32 becomes infinite here, and is refused as such.
            with np.errstate(over="ignore"):
                room[...] = array
        missing = self._x.isnan()
        legal_x = self._recon.is_legal(self._x) if hasattr(self._recon, "is_legal") else ~missing
        bad = ~((legal_x & self._x.isfinite()) | missing)
        if bad.any():
            row, channel = bad.nonzero()[0].tolist()
            of = f" of stream {row}" if self._batch else ""
            raise UserError(
                f"channel {channel}{of} is {self._counts[row, channel]:g}; legal are "
                f"{getattr(self._recon, 'support', 'finite numbers')} "
                f"({type(self._recon).__name__}), and NaN where it is missing"
            )
        if not np.isfinite(self._ext).all():
            raise UserError("ext holds NaN or infinite numbers; legal are finite numbers")

    def _output(self, fresh: bool, copy: bool) -> StreamOutput:
        fields: dict[str, Any] = {}
        for name, array in self._arrays.items():
            if name == "ahead" and not self._horizon:
                continue
            array = array if self._batch else array[0]
            fields[name] = array.copy() if copy else array
        return StreamOutput(self.t, fresh, **fields)


@contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """Compute with this number of threads, and put the setting of the program back."""
    before = torch.get_num_threads()
    if before == threads:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def checked_decoder(
    decoder: str | Path | Decoder, sizes: Mapping[str, int], bin_ms: float | None, run: str
) -> tuple[Decoder, str]:
    """Return a decoder and the field that it reads, or refuse it; `sizes` are those of fields."""
    name = "the decoder"
    if not isinstance(decoder, Decoder):
        name, decoder = str(decoder), Decoder.load(expanded(decoder))
    field = FEATURES.get(decoder.features)
    if field is None:
        raise UserError(
            f"{name} was fitted to {decoder.features!r}; legal are {', '.join(FEATURES)}"
        )
    size = sizes[field]
    if decoder.n_features != size:
        raise UserError(
            f"{name} reads {decoder.n_features} features ({decoder.features}), the model has "
            f"{size}; fit it on outputs of this run"
        )
    if decoder.bin_ms and bin_ms and not math.isclose(decoder.bin_ms, bin_ms):
        raise UserError(
            f"{name} was fitted to bins of {decoder.bin_ms:g} ms, {run} has bins of "
            f"{bin_ms:g} ms; fit it on outputs of this run"
        )
    if decoder.smooth_ms:
        raise UserError(
            f"{name} reads features that were smoothed over {decoder.smooth_ms:g} ms; fit one "
            "to what the model infers, without --smooth-ms"
        )
    return decoder, field


def _shown(value: Any) -> str:
    return f"of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)
