"""Synthetic recordings: spikes of a population driven by a chaotic attractor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError, number, whole

Array = NDArray[Any]

SIGMA, RHO, BETA = 10.0, 28.0, 8.0 / 3.0
_MAX_STEP = 0.005  # RK4 is accurate to about 1e-7 per trial at this step
_BURN_IN = 15.0  # units of Lorenz time until a random state is on the attractor


def lorenz(
    n_conditions: int = 65,
    n_trials: int = 16,
    n_units: int = 30,
    n_bins: int = 50,
    mean_rate: float = 0.3,
    *,
    seed: int = 0,
    valid_fraction: float = 0.2,
    heldout_units: int = 0,
    forward_bins: int = 0,
    log_rate_std: float = 1.0,
    time_per_bin: float = 0.02,
) -> dict[str, Array]:
    """Draw spikes of units whose log rates follow a Lorenz system.

    The latent state obeys dx = sigma (y - x), dy = x (rho - z) - y, dz = x y - beta z with
    sigma = 10, rho = 28, beta = 8/3 (Lorenz 1963), integrated by RK4 from an initial condition on
    the attractor that is random per condition; the trials of a condition share the trajectory. Each
    unit's log rate is a random projection of the standardised state, with standard deviation
    `log_rate_std`, offset so that its mean rate is `mean_rate`; spike counts are Poisson.

    Parameters
    ----------
    n_conditions, n_trials : int
        Conditions, and trials of each condition (train and valid together).
    n_units, n_bins : int
        Units and bins that are reconstructed.
    mean_rate : float
        Mean rate of each unit, in spikes per bin.
    seed : int
        The same seed and options give the same data.
    valid_fraction : float
        Fraction of trials in the validation split, spread evenly over the conditions.
    heldout_units, forward_bins : int
        The last units and bins that are reconstructed but not read.
    log_rate_std : float
        Standard deviation over time and conditions of each unit's log rate.
    time_per_bin : float
        Lorenz time per bin; a turn around one wing takes about 0.7.

    Returns
    -------
    dict of str to ndarray
        In the schema of `lfads_torch.data`, ready for `write_session`, for split in train
        and valid: ``{split}_encod_data`` and ``{split}_recon_data`` (spike counts, small unsigned
        integers), ``{split}_truth`` (float32, n x n_bins x n_units, rates per bin),
        ``{split}_latents`` (float32, n x n_bins x 3, zero mean and unit variance over all trials)
        and ``{split}_cond_idx`` (int64, n). Trials of a split are in random order.

    Raises
    ------
    UserError
        If an option is out of range.

    References
    ----------
    Lorenz 1963, J. Atmos. Sci. 20. Sussillo et al. 2016, arXiv:1608.06315, as a test of LFADS.
    """
    sizes = {"n_conditions": n_conditions, "n_trials": n_trials, "n_units": n_units}
    for least, options in (
        (1, sizes),
        (2, {"n_bins": n_bins}),
        (0, {"heldout_units": heldout_units, "forward_bins": forward_bins, "seed": seed}),
    ):
        for name, value in options.items():
            whole(name, value, least=least)
    scales = {"mean_rate": mean_rate, "log_rate_std": log_rate_std, "time_per_bin": time_per_bin}
    for name, scale in scales.items():
        number(name, scale, above=0)
    if heldout_units >= n_units or forward_bins >= n_bins:
        raise UserError(
            f"Nothing is left to read: heldout_units={heldout_units} of {n_units} units, "
            f"forward_bins={forward_bins} of {n_bins} bins; hold out fewer."
        )
    total = n_conditions * n_trials
    n_valid = round(total * valid_fraction)
    if not 0 < n_valid < total:
        raise UserError(
            f"valid_fraction={valid_fraction} of {total} trials leaves {total - n_valid} for "
            f"training and {n_valid} for validation; both need at least one."
        )
    rng = np.random.default_rng(seed)
    latents = _trajectories(rng, n_conditions, n_bins, time_per_bin)
    rates = _rates(rng, latents, n_units, mean_rate, log_rate_std)

    # Spread evenly, so that every condition has its share of validation trials.
    trial = np.arange(total)
    in_valid = (trial + 1) * n_valid // total > trial * n_valid // total
    cond_idx = np.repeat(np.arange(n_conditions), n_trials)
    data: dict[str, Array] = {}
    for split, chosen in (("train", ~in_valid), ("valid", in_valid)):
        # In random order, or the trials of a condition would follow one another.
        conditions = rng.permutation(cond_idx[chosen])
        truth = rates[conditions]
        counts = rng.poisson(truth)
        # Most counts fit into a byte, where int64 takes eight.
        counts = counts.astype(np.min_scalar_type(int(counts.max())))
        data[f"{split}_encod_data"] = counts[:, : n_bins - forward_bins, : n_units - heldout_units]
        data[f"{split}_recon_data"] = counts
        data[f"{split}_truth"] = truth.astype(np.float32)
        data[f"{split}_latents"] = latents[conditions].astype(np.float32)
        data[f"{split}_cond_idx"] = conditions.astype(np.int64)
    return data


def _flow(state: Array) -> Array:
    x, y, z = state[..., 0], state[..., 1], state[..., 2]
    return np.stack([SIGMA * (y - x), x * (RHO - z) - y, x * y - BETA * z], axis=-1)


def _advance(state: Array, duration: float) -> Array:
    steps = max(1, int(np.ceil(duration / _MAX_STEP)))
    dt = duration / steps
    for _ in range(steps):
        k1 = _flow(state)
        k2 = _flow(state + dt / 2 * k1)
        k3 = _flow(state + dt / 2 * k2)
        k4 = _flow(state + dt * k3)
        state = state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


def _trajectories(
    rng: np.random.Generator, n_conditions: int, n_bins: int, time_per_bin: float
) -> Array:
    """Return standardised Lorenz trajectories, shape (n_conditions, n_bins, 3)."""
    # Around the middle of the attractor, at z = 25; the burn-in takes every state onto it.
    start = rng.normal(size=(n_conditions, 3)) * 10 + np.array([0.0, 0.0, 25.0])
    states = [_advance(start, _BURN_IN)]
    for _ in range(n_bins - 1):
        states.append(_advance(states[-1], time_per_bin))
    path = np.stack(states, axis=1)
    return np.asarray((path - path.mean(axis=(0, 1))) / path.std(axis=(0, 1)))


def _rates(
    rng: np.random.Generator, latents: Array, n_units: int, mean_rate: float, log_rate_std: float
) -> Array:
    """Return rates per bin (n_conditions, n_bins, n_units); each unit's mean is `mean_rate`."""
    log_rates = latents @ rng.normal(size=(latents.shape[-1], n_units))
    log_rates *= log_rate_std / log_rates.std(axis=(0, 1))
    rates = np.exp(log_rates)
    return np.asarray(rates * (mean_rate / rates.mean(axis=(0, 1))))
