"""LFADS in the manner of scikit-learn: arrays in, factors and rates out, no files and no YAML."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from .checkpoint import find_checkpoint, load_model, read_checkpoint, write_checkpoint
from .data import SPLITS, as_array, list_some, write_session
from .errors import UserError, number, unknown, whole
from .files import expanded
from .folder import RunFolder
from .metrics import BitsPerSpikeSums
from .post_run.analysis import sample_posterior
from .prep.splits import draw_splits
from .prep.units import choose_heldout
from .run_model import run_model
from .search.run import run_search

if TYPE_CHECKING:
    from .tuples import SessionOutput

Array = NDArray[Any]

_SIZES = ("gen_dim", "fac_dim", "ic_dim", "co_dim")
_DIMENSIONS = (
    ("trial", "trials", "epoch"),
    ("time", "bin", "bins"),
    ("channel", "channels", "unit", "units", "neuron", "neurons"),
)
_ONLY = "session"  # name of the only session
_KEY = "estimator"  # of a saved estimator in its checkpoint
_LEAST_RATE = 1e-9  # spikes per bin; the logarithm of 0 would make one spike cost everything


class LFADSEstimator(TransformerMixin, BaseEstimator):
    """LFADS as an estimator of scikit-learn, for arrays of spike counts.

    Sizes that are None are those of the packaged configuration. Behind the estimator stands an
    ordinary run: every key of the configuration can be set with `overrides`, and the commands of
    ``lfads`` work on ``folder/run``.

    Parameters
    ----------
    gen_dim : int, optional
        Units of the generator.
    fac_dim : int, optional
        Factors.
    ic_dim : int, optional
        Dimensions of the initial condition.
    co_dim : int, optional
        Inferred inputs; 0 for an autonomous generator.
    max_epochs : int
        Most epochs; training stops earlier where the validation loss no longer improves.
    batch_size : int
        Trials per step.
    valid : float
        Fraction of the trials that validates and chooses the best epoch.
    held_out : int, float or sequence of int
        Channels that are predicted but not read: their number, a fraction (drawn by
        `random_state`), or their indices.
    search : bool
        Train a population (AutoLFADS) and keep its best model.
    num_samples : int
        Samples of the posterior that `transform` and `predict` average.
    bin_ms : float, optional
        Bin width in ms, for figures and reports.
    folder : str or Path, optional
        Where data and run are kept; by default a temporary folder that goes with the estimator.
    overrides : mapping, optional
        Further keys of the configuration, dotted: ``{"model.kl_co_scale": 1e-5}``.
    random_state : int
        Seed of the split, the initial weights, the training and the samples.
    verbose : bool
        Show the progress of the training.

    Attributes
    ----------
    model_ : LFADS
        The trained model, of its best epoch.
    checkpoint_ : Path
        Its file, an ordinary checkpoint.
    result_ : RunResult
        Run folder, checkpoints and last logged numbers.
    held_out_ : dict of str to ndarray of int
        Held-out channels of each session.
    n_features_in_ : int or dict of str to int
        Channels.
    n_bins_ : int
        Bins of the longest trial.

    Examples
    --------
    >>> from lfads_torch import LFADSEstimator
    >>> lfads = LFADSEstimator(fac_dim=8).fit(spikes)  # doctest: +SKIP
    >>> rates, factors = lfads.predict(spikes), lfads.transform(spikes)  # doctest: +SKIP
    >>> lfads.score(new_spikes)  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        gen_dim: int | None = None,
        fac_dim: int | None = None,
        ic_dim: int | None = None,
        co_dim: int | None = None,
        max_epochs: int = 1000,
        batch_size: int = 64,
        valid: float = 0.2,
        held_out: int | float | Sequence[int] = 0,
        search: bool = False,
        num_samples: int = 50,
        bin_ms: float | None = None,
        folder: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        random_state: int = 0,
        verbose: bool = False,
    ) -> None:
        self.gen_dim = gen_dim
        self.fac_dim = fac_dim
        self.ic_dim = ic_dim
        self.co_dim = co_dim
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.valid = valid
        self.held_out = held_out
        self.search = search
        self.num_samples = num_samples
        self.bin_ms = bin_ms
        self.folder = folder
        self.overrides = overrides
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self, X: Any, y: Any = None, *, behavior: Any = None, resume: bool = False
    ) -> LFADSEstimator:
        """Train on spike counts.

        Parameters
        ----------
        X : array of shape (trials, bins, channels), sequence of arrays (bins, channels), or dict
            Spikes per bin, NaN where something is missing. Trials of different lengths come as a
            sequence, several sessions as a dict of either, by name. An xarray.DataArray may have
            its dimensions ``trial``, ``time`` and ``channel`` in any order.
        y : None
            Ignored.
        behavior : as X, optional
            Behaviour of the same trials, (trials, bins, dimensions), NaN where it was not observed.
            With it, the model learns to read it out (`predict_behavior`); overrides such as
            ``model.behavior_scale`` say how.
        resume : bool
            Go on with the run in `folder`, which was interrupted or is to have more epochs.

        Returns
        -------
        LFADSEstimator
            Itself.

        Raises
        ------
        UserError
            For data and settings that do not fit.
        DivergedError
            If the loss turns NaN or infinite.
        """
        if resume and self.folder is None:
            raise UserError("resume=True goes on with the run in `folder`; give its folder")
        sessions = _sessions(X)
        _check(sessions)
        number("valid", self.valid, above=0, below=1)
        if not isinstance(self.overrides or {}, Mapping):
            raise UserError(
                f"overrides is {self.overrides!r}; legal is a dict, such as "
                "{'model.kl_co_scale': 1e-5}"
            )
        observed = {} if behavior is None else _matching(behavior, sessions)
        held_out = {name: self._choose(data.shape[2]) for name, data in sessions.items()}
        n_bins = max(data.shape[1] for data in sessions.values())
        place = self._place()
        with RunFolder(place).owned("training"):
            if not resume and (place / "run").exists():
                raise UserError(
                    f"{place} holds a run already; go on with it by fit(..., resume=True), or give "
                    "another folder"
                )
            files = {name: place / "data" / f"{_stem(name)}.h5" for name in sessions}
            if not resume:  # a run goes on with the trials that it was begun with
                for name, data in sessions.items():
                    padded = {"recon_data": _padded(data, n_bins)}
                    if name in observed:
                        padded["behavior"] = _padded(observed[name], n_bins)
                    self._write(files[name], padded, held_out[name])
            train: Any = run_search if self.search else run_model
            extra: Any = {"resume": resume}
            if not self.search:
                config = "multi.yaml" if len(sessions) > 1 else "single.yaml"
                extra |= {"config_path": config, "do_posterior_sample": False}
            overrides: dict[str, Any] = {
                "trainer.max_epochs": whole("max_epochs", self.max_epochs, least=1)
            }
            if not resume:
                overrides |= {"model.behavior_dim": None} if observed else {}
                overrides |= self._overrides(list(files.values()))
            self.result_ = train(overrides, run_dir=place / "run", **extra)
        channels = {name: data.shape[2] for name, data in sessions.items()}
        return self._set(self.result_.run_dir, channels, held_out)

    def transform(self, X: Any) -> Any:
        """Infer factors.

        Parameters
        ----------
        X : as in `fit`
            Trials of at most `n_bins_` bins.

        Returns
        -------
        ndarray of shape (trials, bins, factors), list of arrays (bins, factors), or dict
            Posterior means, in the form of `X`.
        """
        return self._infer(X, lambda name, output: output.factors)

    def predict(self, X: Any) -> Any:
        """Infer rates, in expected spikes per bin.

        Parameters
        ----------
        X : as in `fit`
            Trials of at most `n_bins_` bins. Held-out channels of it are not read.

        Returns
        -------
        ndarray of shape (trials, bins, channels), list of arrays (bins, channels), or dict
            Posterior means, for all channels in the order of `X`, and in its form.
        """

        def rates(name: str, output: SessionOutput) -> Any:
            return output.output_params[..., np.argsort(self._order[name])]

        return self._infer(X, rates)

    def predict_behavior(self, X: Any) -> Any:
        """Infer behaviour, in the units in which it was given to `fit`.

        Parameters
        ----------
        X : as in `fit`
            Trials of at most `n_bins_` bins.

        Returns
        -------
        ndarray of shape (trials, bins, dimensions), list of arrays (bins, dimensions), or dict
            Posterior means, in the form of `X`.

        Raises
        ------
        UserError
            Where the estimator was fitted without behaviour.
        """
        check_is_fitted(self)
        if self.model_.behavior is None:
            raise UserError("the estimator reads out no behaviour; fit it by fit(X, behavior=...)")

        def read_out(name: str, output: SessionOutput) -> Any:
            return output.behavior

        return self._infer(X, read_out)

    def score(self, X: Any, y: Any = None) -> float:
        """Return bits per spike over the mean rate of each channel, of all sessions together.

        Where channels are held out, only these count (co-smoothing).
        """
        sums = BitsPerSpikeSums()
        rates = _sessions(self.predict(X))
        for name, counts in _sessions(X).items():
            held = self.held_out_[name]
            channels = held if len(held) else slice(None)
            log_rates = torch.as_tensor(rates[name][..., channels]).clamp(min=_LEAST_RATE).log()
            sums.update(log_rates, torch.as_tensor(counts[..., channels]), key=name)
        return float(sums.compute())

    def save(self, path: str | Path) -> Path:
        """Save the trained estimator as one file, which is a checkpoint of the model, too."""
        check_is_fitted(self)
        target = expanded(path)
        if target.is_dir():
            raise UserError(f"{target} is a folder; name a file, such as {target / 'lfads.ckpt'}")
        settings = {name: getattr(self, name) for name in self.get_params() if name != "folder"}
        held_out = {name: held.tolist() for name, held in self.held_out_.items()}
        channels = {name: len(order) for name, order in self._order.items()}
        checkpoint = read_checkpoint(self.checkpoint_)
        checkpoint[_KEY] = {"settings": settings, "held_out": held_out, "channels": channels}
        write_checkpoint(target, checkpoint)
        return target

    @classmethod
    def load(cls, path: str | Path, *, trust: bool = False) -> LFADSEstimator:
        """Load an estimator that `save` wrote.

        `trust` consents to code outside this package that the file names, as of `load_model`.
        """
        file = expanded(path)
        if not file.is_file():
            raise UserError(f"{file} is no file; name one that LFADSEstimator.save wrote")
        content = read_checkpoint(file).get(_KEY)
        if content is None:
            raise UserError(f"{file} was not saved by LFADSEstimator; load_model reads it")
        estimator = cls(**content["settings"])
        estimator._set(file, content["channels"], content["held_out"], trust)
        return estimator

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        tags.input_tags.allow_nan = True
        return tags

    # ---- arrays to a run, and back -------------------------------------------------------------

    def _place(self) -> Path:
        if self.folder is not None:
            return expanded(self.folder).absolute()
        # It is removed with the estimator, or with the next fit.
        self._temporary = tempfile.TemporaryDirectory(prefix="lfads_")
        return Path(self._temporary.name)

    def _choose(self, n_channels: int) -> NDArray[np.int64]:
        """Return the held-out channels, in ascending order."""
        how = np.asarray(self.held_out)
        held = np.unique(how)
        is_legal = how.dtype.kind in "iuf" or not how.size
        if is_legal and how.ndim == 0 and 0 <= how < (n_channels if how.dtype.kind != "f" else 1):
            return np.flatnonzero(choose_heldout(n_channels, how.item(), self.random_state))
        is_legal &= how.ndim == 1 and how.dtype.kind != "f" and len(held) < n_channels
        if not is_legal or (len(held) and not 0 <= held[0] <= held[-1] < n_channels):
            raise UserError(
                f"held_out is {self.held_out!r}; legal are a number of channels below "
                f"{n_channels}, a fraction below 1, or a list of some of the channels 0 to "
                f"{n_channels - 1}"
            )
        return held.astype(np.int64)

    def _write(self, path: Path, given: dict[str, Array], held: NDArray[np.int64]) -> None:
        data = given["recon_data"]
        seed = whole("random_state", self.random_state, least=0)
        labels = draw_splits(len(data), valid_fraction=self.valid, seed=seed)
        # LFADS reads the first channels of what it reconstructs, so held-out ones come last.
        recon = data[..., _order(data.shape[2], held)]
        arrays = {}
        for label, split in enumerate(SPLITS[:2]):
            arrays[f"{split}_recon_data"] = recon[labels == label]
            arrays[f"{split}_encod_data"] = recon[labels == label, :, : data.shape[2] - len(held)]
            if "behavior" in given:
                arrays[f"{split}_behavior"] = given["behavior"][labels == label]
        width = {} if self.bin_ms is None else {"bin_ms": number("bin_ms", self.bin_ms, above=0)}
        write_session(path, arrays, width)

    def _overrides(self, files: Sequence[Path]) -> dict[str, Any]:
        sizes = {f"model.{name}": getattr(self, name) for name in _SIZES}
        if self.co_dim == 0:  # without inputs there is nothing to control
            sizes |= {"model.con_dim": 0, "model.ci_enc_dim": 0}
        return {
            "datamodule.datafile_pattern": [str(file) for file in files],
            "datamodule.batch_size": self.batch_size,
            "seed": self.random_state,
            "trainer.enable_progress_bar": self.verbose,
            "ignore_warnings": not self.verbose,
            **{name: size for name, size in sizes.items() if size is not None},
            **(self.overrides or {}),
        }

    def _set(
        self,
        source: Path,
        channels: Mapping[str, int],
        held_out: Mapping[str, Iterable[int]],
        trust: bool = False,
    ) -> LFADSEstimator:
        """Take over a trained model: from a run folder, or from a checkpoint."""
        self.model_ = load_model(source, trust=trust)
        # `load_model` has refused a place without one.
        self.checkpoint_ = find_checkpoint(source, best=True) or source
        self._order = {name: _order(n, held_out[name]) for name, n in channels.items()}
        self.held_out_ = {name: np.asarray(list(held), np.int64) for name, held in held_out.items()}
        self.n_bins_ = int(self.model_.hparams["encod_seq_len"])
        self.n_features_in_ = channels[_ONLY] if list(channels) == [_ONLY] else dict(channels)
        return self

    def _infer(self, X: Any, choose: Callable[[str, SessionOutput], torch.Tensor]) -> Any:
        """Sample the posterior of trials, and return what `choose` takes of it in the form of X."""
        check_is_fitted(self)
        result = {}
        for name, data in _sessions(X).items():
            if name not in self._order:
                raise unknown("The estimator", f"session {name!r}", self._order)
            order, n_channels = self._order[name], data.shape[2]
            if n_channels != len(order):
                raise UserError(f"X has {n_channels} channels; the model has {len(order)} ({name})")
            n_read = n_channels - len(self.held_out_[name])
            read = _padded(data, self.n_bins_)[..., order[:n_read]]
            output = sample_posterior(
                self.model_, read, self.num_samples, session=_stem(name), seed=self.random_state
            )
            result[name] = choose(name, output).numpy()[:, : data.shape[1]]
        return _like(X, result)


def _order(n_channels: int, held_out: Iterable[int]) -> NDArray[np.int64]:
    """Return all channels, those that are read first."""
    held = np.asarray(list(held_out), np.int64)
    return np.concatenate([np.setdiff1d(np.arange(n_channels), held), held])


def _stem(name: str) -> str:
    """Return the name of a session's file, by which the model knows the session."""
    return re.sub(r"[^\w-]", "_", name)


def _check(sessions: Mapping[str, Array]) -> None:
    """Refuse what would be refused later by the number that a trial has in its split."""
    stems = [_stem(name) for name in sessions]
    if len(set(stems)) < len(stems):
        raise UserError(
            f"the sessions {', '.join(map(repr, sessions))} cannot be told apart by their letters "
            "and digits; rename one"
        )
    for name, data in sessions.items():
        where = "X" if name == _ONLY else f"X[{name!r}]"
        for what, wrong in (
            ("infinite values", np.isinf(data).any(axis=(1, 2))),
            ("nothing but NaN", np.isnan(data).all(axis=(1, 2))),
        ):
            if wrong.any():
                trials = list_some(np.flatnonzero(wrong).tolist())
                raise UserError(
                    f"{where} holds {what} in trials {trials} (counted from 0); legal are finite "
                    "numbers, and NaN for missing bins: mend these trials, or leave them out"
                )


def _sessions(X: Any) -> dict[str, Array]:
    """Return trials x bins x channels by session; bins past a trial's end are NaN."""
    if hasattr(X, "time_support") and isinstance(X, Mapping):  # pynapple.TsGroup
        raise UserError(
            "X holds times of spikes; give counts in bins, a row per trial: "
            "[X.count(0.02, trial).values for trial in trials]"
        )
    if isinstance(X, Mapping):
        if not X:
            raise UserError("X is an empty dict; give at least one session")
        return {str(name): _trials(data, f"X[{name!r}]") for name, data in X.items()}
    return {_ONLY: _trials(X, "X")}


def _matching(behavior: Any, sessions: Mapping[str, Array]) -> dict[str, Array]:
    """Return behaviour by session, or refuse what has other sessions, trials or bins than X."""
    if isinstance(behavior, Mapping):
        given = {str(name): _trials(y, f"behavior[{name!r}]") for name, y in behavior.items()}
    else:
        given = {_ONLY: _trials(behavior, "behavior")}
    if given.keys() != sessions.keys():
        raise UserError(
            f"behavior is of the sessions {', '.join(given)}, X of {', '.join(sessions)}; they "
            "must agree"
        )
    for name, y in given.items():
        if y.shape[:2] != sessions[name].shape[:2]:
            raise UserError(
                f"behavior has {y.shape[0]} trials x {y.shape[1]} bins, X {sessions[name].shape[0]}"
                f" x {sessions[name].shape[1]} ({name}); they must agree"
            )
    return given


def _trials(data: Any, name: str) -> Array:
    if hasattr(data, "dims") and hasattr(data, "transpose"):  # xarray.DataArray
        axes = [next((dim for dim in data.dims if dim in names), None) for names in _DIMENSIONS]
        if len(data.dims) != 3 or None in axes:
            legal = ", ".join(names[0] for names in _DIMENSIONS)
            raise UserError(f"{name} has dimensions {tuple(data.dims)}; legal are {legal}")
        data = data.transpose(*axes)
    if isinstance(data, Sequence) and not isinstance(data, str):
        if not data:
            raise UserError(f"{name} is an empty list; give at least one trial")
        trials = [as_array(trial) for trial in data]
        wrong = [trial.shape for trial in trials if trial.ndim != 2]
        if wrong or len({trial.shape[1] for trial in trials}) != 1:
            shapes = wrong or sorted({trial.shape for trial in trials})
            raise UserError(
                f"{name} is a list of trials of shapes {shapes[:3]}; legal are arrays (bins, "
                "channels) of as many channels"
            )
        longest = max(len(trial) for trial in trials)
        data = np.concatenate([_padded(trial[None], longest) for trial in trials])
    array = as_array(data)
    if array.ndim != 3 or array.dtype.kind not in "buif" or not array.size:
        raise UserError(
            f"{name} has shape {array.shape} and type {array.dtype}; legal are numbers, trials x "
            "bins x channels, or a list of trials (bins, channels)"
        )
    return array.astype(np.float32)


def _padded(data: Array, n_bins: int) -> Array:
    """Return trials of `n_bins` bins, NaN past their end."""
    missing = n_bins - data.shape[1]
    if missing < 0:
        raise UserError(f"X has {data.shape[1]} bins; the model was trained on {n_bins}")
    if not missing:
        return data
    return np.pad(data.astype(np.float32), ((0, 0), (0, missing), (0, 0)), constant_values=np.nan)


def _like(X: Any, result: Mapping[str, Array]) -> Any:
    """Give results the form of X: dict of sessions, list of trials, or array."""
    if isinstance(X, Mapping):
        return {name: _like(data, {_ONLY: result[str(name)]}) for name, data in X.items()}
    only = result[_ONLY]
    if isinstance(X, Sequence):
        return [trial[: len(given)] for trial, given in zip(only, X, strict=True)]
    return only
