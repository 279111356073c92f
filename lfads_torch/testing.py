"""Contracts of your own priors, observation models and augmentations, to call from your tests.

Each check calls your class as the model does, and raises `ConfigError` at the first rule that is
broken. The message names the rule and what to do. Values are checked with a few dozen trials of
random numbers: a check takes some milliseconds.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call, vmap

from .consent import EVERYTHING
from .errors import ConfigError
from .modules.augmentations import AugmentationStack, as_batch, with_observed
from .modules.priors import kl_over_bins
from .modules.recons import observed_loss
from .modules.spec import from_spec, to_spec
from .search.population.draws import StackedCalls
from .tuples import SessionBatch

__all__ = ["check_augmentation", "check_likelihood", "check_prior"]

# So many trials that one posterior sample estimates a KL well enough to see a wrong sum or sign.
_N_TRIALS = 64


def check_prior(prior: Any, dim: int, *, n_bins: int | None = 6, stacked: bool = True) -> None:
    """Check the contract of a prior.

    Parameters
    ----------
    prior : Module
        Yours, with ``make_posterior(mean, std)`` and ``forward(mean, std)``.
    dim : int
        Dimensions that it was built for: `co_dim` or `ic_dim`.
    n_bins : int, optional
        Bins, 2 or more, of a prior over inferred inputs; None for one over initial conditions.
    stacked : bool
        Whether it must also work for a whole population at once, under `torch.func.vmap`. Without,
        a population trains its members one after the other.

    Raises
    ------
    ConfigError
        At the first broken rule, with what to do.

    Examples
    --------
    >>> from lfads_torch.modules.priors import AutoregressiveMultivariateNormal
    >>> check_prior(AutoregressiveMultivariateNormal(tau=10.0, nvar=0.1, shape=3), dim=3)
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        name = type(prior).__name__
        shape = (_N_TRIALS, dim) if n_bins is None else (_N_TRIALS, n_bins, dim)
        # Means far from any prior: the divergence is then large and positive.
        mean = (5 * torch.randn(shape)).requires_grad_()
        std = (torch.rand(shape) + 0.1).requires_grad_()

        if n_bins is None:
            posterior = prior.make_posterior(mean, std)
            if not isinstance(posterior, Distribution) or posterior.event_shape != (dim,):
                raise ConfigError(
                    f"{name}.make_posterior must return a Distribution over the last axis; wrap it "
                    "in torch.distributions.Independent(..., 1)"
                )
            draw = posterior.rsample((2,))
            _check_array(f"rsample of {name}.make_posterior", draw, (2, *shape))
            _check_gradient(f"rsample of {name}.make_posterior", draw, mean)

        kl = prior(mean, std)
        _check_array(f"{name}.forward", kl, ())
        # A divergence of 0 for all posteriors is that of no prior at all.
        if kl.requires_grad or kl.item() != 0:
            _check_gradient(f"{name}.forward", kl, mean, std)
            if kl.item() <= 0:
                raise ConfigError(
                    f"{name}.forward is {kl.item():g} for a posterior far from the prior; return "
                    "E_q[log q - log p], which is positive there"
                )
            for axis, factor in ((0, 1), (1, 2))[: 1 if n_bins is None else 2]:
                ratio = (prior(torch.cat([mean] * 2, axis), torch.cat([std] * 2, axis)) / kl).item()
                if abs(ratio - factor) > 0.5:
                    raise ConfigError(
                        f"{name}.forward grows {ratio:.2f} times with twice the "
                        f"{('trials', 'bins')[axis]}, not {factor} times; sum over bins and "
                        "dimensions, and average over trials"
                    )
        if n_bins is not None and "mask" in inspect.signature(prior.forward).parameters:
            mask = torch.arange(n_bins).expand(_N_TRIALS, -1) < n_bins - 1
            torch.manual_seed(1)
            masked = kl_over_bins(prior, mean, std, mask)
            torch.manual_seed(1)
            other = kl_over_bins(prior, mean.where(mask.unsqueeze(-1), 9.0), std, mask)
            if not torch.allclose(masked, other):
                raise ConfigError(
                    f"{name}.forward depends on bins where `mask` is False; leave them out of the "
                    "sum, or remove the argument `mask` to count all bins"
                )
        _check_description(prior)
        if stacked:
            _check_stacked(name, prior, lambda one, *args: one(*args), mean, std)


def check_likelihood(recon: Any, data: Float[Tensor, "B T N"], *, stacked: bool = True) -> None:
    """Check the contract of an observation model.

    Parameters
    ----------
    recon : Module
        Yours, with ``n_params``, ``reshape_output_params``, ``compute_loss`` and
        ``compute_means``.
    data : Tensor, shape (trials, bins, channels)
        Legal data, for example some trials of yours; no entry is missing.
    stacked : bool
        Whether it must also work for a whole population at once, under `torch.func.vmap`. Without,
        a population trains its members one after the other.

    Raises
    ------
    ConfigError
        At the first broken rule, with what to do.

    Examples
    --------
    >>> from lfads_torch.modules.recons import Poisson
    >>> check_likelihood(Poisson(), torch.ones(4, 10, 3))
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        name, k = type(recon).__name__, getattr(recon, "n_params", None)
        if not isinstance(k, int) or k < 1:
            raise ConfigError(f"{name}.n_params is {k!r}; set it to the parameters per channel")
        shape = tuple(data.shape)
        flat = torch.randn(*shape[:2], k * shape[2], requires_grad=True)
        params = recon.reshape_output_params(flat)
        _check_array(f"{name}.reshape_output_params", params, (*shape, k))

        loss = recon.compute_loss(data, params)
        _check_array(f"{name}.compute_loss", loss, shape)
        _check_gradient(f"{name}.compute_loss", loss, flat)
        means = recon.compute_means(params)
        _check_array(f"{name}.compute_means", means, shape)
        if getattr(recon, "for_counts", False) and not torch.allclose(means, params[..., 0].exp()):
            raise ConfigError(
                f"{name}.for_counts is true, but compute_means is not the exponential of the first "
                "parameter; make the first parameter the log rate, or set for_counts to False"
            )

        observed = torch.rand(shape) < 0.7
        loss = observed_loss(recon, torch.where(observed, data, torch.nan), observed, params)
        what = f"the loss of {name} with missing data"
        _check_array(what, loss, shape)
        _check_gradient(what, loss, flat)
        if loss[~observed].any():
            raise ConfigError(f"{what} is not 0 where an entry is missing; mask it there")
        _check_description(recon)
        if stacked:
            _check_stacked(
                name, recon, lambda one, *args: one.compute_loss(*args), data, params.detach()
            )


def check_augmentation(transform: Any, *, stacked: bool = True) -> None:
    """Check the contract of an augmentation, on 64 trials of 8 bins x 5 channels of counts.

    Parameters
    ----------
    transform : object
        Yours, with ``process_batch``, ``process_losses`` or both.
    stacked : bool
        Whether it must also work for a whole population at once, under `torch.func.vmap`. Without,
        a population augments the batches of its members one after the other.

    Raises
    ------
    ConfigError
        At the first broken rule, with what to do.

    Examples
    --------
    >>> from lfads_torch.modules.augmentations import CoordinatedDropout
    >>> check_augmentation(CoordinatedDropout(cd_rate=0.3))
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        name = type(transform).__name__
        methods = [hasattr(transform, key) for key in ("process_batch", "process_losses")]
        if not any(methods):
            raise ConfigError(f"{name} has neither process_batch nor process_losses; add one")
        counts = torch.poisson(torch.full((_N_TRIALS, 8, 5), 1.5))
        complete = SessionBatch(
            encod_data=counts,
            recon_data=counts.clone(),
            ext_input=torch.zeros(_N_TRIALS, 8, 0),
            truth=torch.zeros(_N_TRIALS, 0, 0),
            sv_mask=torch.rand(counts.shape) < 0.8,
        )
        _check_trials(transform, name, complete, torch.ones(counts.shape, dtype=torch.bool))

        lengths = torch.randint(4, 9, (_N_TRIALS,))
        inside = (torch.arange(8) < lengths.unsqueeze(1)).unsqueeze(-1).expand(counts.shape)
        ended = counts.masked_fill(~inside, torch.nan)
        batch = complete._replace(encod_data=ended, recon_data=ended.clone(), lengths=lengths)
        _check_trials(transform, f"{name} with trials of different lengths", batch, inside)
        _check_description(transform)
        if stacked:
            stack = AugmentationStack([transform], *([0] * method for method in methods))
            _check_stacked(name, stack, _augmented_loss, *complete)


def _check_trials(transform: Any, name: str, batch: SessionBatch, inside: Tensor) -> None:
    """Check what a transform makes of a batch whose entries are finite where `inside` is true."""
    after = batch
    if hasattr(transform, "process_batch"):
        before = [values.clone() for values in batch[:2]]
        after = transform.process_batch(batch)
        after = as_batch(after, batch)
        for key, values in zip(("encod_data", "recon_data"), before, strict=True):
            if not torch.equal(getattr(batch, key).nan_to_num(), values.nan_to_num()):
                raise ConfigError(
                    f"{name}: process_batch changes {key} in place; change a copy of it"
                )
            array = getattr(after, key)
            _check_array(f"{name}: {key} of process_batch", array, values.shape, inside)
    if hasattr(transform, "process_losses"):
        loss = torch.rand(inside.shape).requires_grad_()
        after = with_observed(after)
        result = transform.process_losses(loss * inside, after, lambda *_: None, "train")
        _check_array(f"{name}: process_losses", result, inside.shape)
        _check_gradient(f"{name}: process_losses", result, loss)


def _augmented_loss(stack: Any, *fields: Any) -> Tensor:
    batch = stack.process_batch(SessionBatch(*fields))
    loss = (batch.recon_data - batch.encod_data) ** 2
    return stack.process_losses(loss, batch, lambda *_: None, "train")


def _check_array(what: str, value: Any, shape: Any, where: Tensor | None = None) -> None:
    """Refuse what is no tensor of a shape, or not finite (where `where` is true)."""
    if not isinstance(value, Tensor) or value.shape != torch.Size(shape):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"{what} is {got}; return a tensor of shape {tuple(shape)}")
    finite = value.isfinite() if where is None else value.isfinite() | ~where
    if not finite.all():
        raise ConfigError(
            f"{what} has {int((~finite).sum())} values that are NaN or infinite; bound what you "
            "divide by, exponentiate or take the logarithm of, and let no missing entry spread"
        )


def _check_gradient(what: str, value: Tensor, *sources: Tensor) -> None:
    """Refuse a value whose gradient is missing, zero everywhere or not finite."""
    grads: Any = [None]
    if value.requires_grad:
        grads = torch.autograd.grad(value.sum(), sources, allow_unused=True, retain_graph=True)
    if any(g is None or not g.any() for g in grads):
        raise ConfigError(f"{what} passes no gradient on; use no detach, item or NumPy")
    if not all(g.isfinite().all() for g in grads):
        raise ConfigError(
            f"{what} has gradients that are NaN or infinite; torch.where passes the gradient of "
            "the unused branch on, too, so give that branch a legal number"
        )


def _check_description(component: Any) -> None:
    """Refuse a component that a checkpoint cannot describe and rebuild."""
    spec = to_spec(component)
    parameters = inspect.signature(type(component)).parameters.values()
    missing = [
        p.name
        for p in parameters
        if p.name not in spec and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if missing:
        raise ConfigError(
            f"{type(component).__name__} does not keep {', '.join(missing)}; keep each constructor "
            "argument as an attribute of the same name, a plain number, string or list of these"
        )
    again = from_spec(spec, EVERYTHING)
    if to_spec(again) != spec or _shapes(again) != _shapes(component):
        raise ConfigError(
            f"{type(component).__name__} is another one when built from {spec}; keep each "
            "constructor argument as it was given"
        )


def _shapes(component: Any) -> dict[str, torch.Size]:
    state = component.state_dict() if isinstance(component, nn.Module) else {}
    return {key: values.shape for key, values in state.items()}


class _Caller(nn.Module):
    """Make any function of a module a forward pass, for `functional_call`."""

    def __init__(self, component: nn.Module, work: Callable[..., Tensor]) -> None:
        super().__init__()
        self.component, self.work = component, work

    def forward(self, *args: Tensor) -> Tensor:
        """Call the function with the module."""
        return self.work(self.component, *args)


def _check_stacked(
    name: str, component: nn.Module, work: Callable[..., Tensor], *args: Tensor
) -> None:
    """Run two members at once, as a population does, and compare shapes with one alone."""
    component = copy.deepcopy(component)
    # The model sets it after a look at the whole data set, before any step.
    if hasattr(component, "data_checked"):
        component.data_checked = True  # type: ignore[assignment]
    caller = _Caller(component, work)
    args = tuple(value.detach() for value in args)
    alone = caller(*args)
    state = {**dict(caller.named_parameters()), **dict(caller.named_buffers())}
    tensors = {key: torch.stack([value.detach()] * 2) for key, value in state.items()}

    def one(tensors: dict[str, Tensor], args: tuple[Tensor, ...]) -> Tensor:
        with StackedCalls(args[0]):
            return functional_call(caller, tensors, args)

    try:
        result = vmap(one, randomness="different")(
            tensors, tuple(torch.stack([v, v]) for v in args)
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{name} does not work for a population at once: {reason}. Avoid item, int(), `if` on "
            "values, and changes in place (torch.where does the same), or check it with "
            "stacked=False; its members then train one after the other"
        ) from error
    _check_array(f"{name} for a population of two", result, (2, *alone.shape))
