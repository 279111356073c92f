"""Synthetic recordings: spikes of a population driven by a chaotic attractor, and of many days."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError, number, whole

Array = NDArray[Any]

SIGMA, RHO, BETA = 10.0, 28.0, 8.0 / 3.0
_MAX_STEP = 0.005  # RK4 is accurate to about 1e-7 per trial at this step
_BURN_IN = 15.0  # units of Lorenz time until a random state is on the attractor

A, B, C = 0.2, 0.2, 5.7
_ROESSLER_STEP = 0.02  # the attractor's turn takes about 5.9
_ROESSLER_BURN_IN = 200.0


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
    n_valid = _n_valid(total, valid_fraction, "trials")
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


def days(
    n_days: int = 2,
    n_units: int = 30,
    n_windows: int = 400,
    redrawn: float = 0.5,
    gain: tuple[float, float] = (0.5, 2.0),
    permuted: bool = True,
    seed: int = 0,
    *,
    n_bins: int = 30,
    mean_rate: float = 0.3,
    valid_fraction: float = 0.2,
    time_per_bin: float = 0.17,
) -> list[dict[str, Array]]:
    """Draw spikes of several days: the same dynamics, seen through other neurons each day.

    The latent state obeys dx = -y - z, dy = x + a y, dz = b + z (x - c) with a = b = 0.2, c = 5.7
    (Roessler 1976); the latents are x, y and log z, standardised over all days. Each day is one
    continuous trajectory of its own, cut into windows. A unit's log rate is a random projection of
    the latents with standard deviation 1, and its mean rate is `mean_rate` times a gain. From one
    day to the next a share of the units is drawn anew, all gains are, and the order is permuted.

    The Lorenz system maps to itself under (x, y) -> (-x, -y), so that a day's latents could be
    recovered only up to that mirror image; this system has no such symmetry.

    Parameters
    ----------
    n_days, n_units, n_windows, n_bins : int
        Days, units of each day, windows of each day (train and valid together), bins of a window.
    redrawn : float
        Share of the units that are other ones than on the day before, 0 to 1.
    gain : pair of float
        Limits of the gains, which are drawn uniformly in their logarithm.
    permuted : bool
        Whether the order of the units changes from day to day.
    seed : int
        The same seed and options give the same data.
    mean_rate : float
        Mean rate of a unit of gain 1, in spikes per bin.
    valid_fraction : float
        Fraction of a day's windows, the last ones, in the validation split.
    time_per_bin : float
        Time of the system per bin; a turn takes about 5.9.

    Returns
    -------
    list of dict of str to ndarray
        For each day, in the schema of `lfads_torch.data`, ready for `write_session`, for split in
        train and valid: ``{split}_encod_data`` and ``{split}_recon_data`` (spike counts, small
        unsigned integers), ``{split}_truth`` (float32, n x n_bins x n_units, rates per bin),
        ``{split}_latents`` (float32, n x n_bins x 3) and ``{split}_behavior`` (float32,
        n x n_bins x 2), two random linear combinations of the latents, the same on all days.
        Windows are in order of time.

    Raises
    ------
    UserError
        If an option is out of range.

    References
    ----------
    Roessler 1976, Phys. Lett. A 57 (doi:10.1016/0375-9601(76)90101-8).
    """
    for name, size, least in (
        *(("n_days", n_days, 1), ("n_units", n_units, 1), ("n_windows", n_windows, 2)),
        *(("n_bins", n_bins, 2), ("seed", seed, 0)),
    ):
        whole(name, size, least=least)
    number("redrawn", redrawn, least=0, most=1)
    number("mean_rate", mean_rate, above=0)
    number("time_per_bin", time_per_bin, above=0)
    low, high = gain
    number("gain[0]", low, above=0)
    number("gain[1]", high, least=low)
    n_valid = _n_valid(n_windows, valid_fraction, "windows")
    rng = np.random.default_rng(seed)
    paths = np.stack([_roessler(rng, n_windows * n_bins, time_per_bin) for _ in range(n_days)])
    paths[..., 2] = np.log(paths[..., 2])
    paths = (paths - paths.mean(axis=(0, 1))) / paths.std(axis=(0, 1))
    to_behavior = rng.normal(size=(3, 2))
    weights = rng.normal(size=(3, n_units))
    recordings = []
    for day, path in enumerate(paths):
        if day:
            new = rng.permutation(n_units)[: round(redrawn * n_units)]
            weights[:, new] = rng.normal(size=(3, len(new)))
            weights = weights[:, rng.permutation(n_units)] if permuted else weights
        gains = np.exp(rng.uniform(np.log(low), np.log(high), n_units))
        log_rates = path @ weights
        rates = np.exp(log_rates / log_rates.std(axis=0))
        truth = rates * (mean_rate * gains / rates.mean(axis=0))
        counts = rng.poisson(truth)
        arrays = {
            "encod_data": counts.astype(np.min_scalar_type(int(counts.max()))),
            "truth": truth.astype(np.float32),
            "latents": path.astype(np.float32),
            "behavior": (path @ to_behavior).astype(np.float32),
        }
        arrays["recon_data"] = arrays["encod_data"]
        edge = n_windows - n_valid
        data = {}
        for split, windows in (("train", slice(edge)), ("valid", slice(edge, None))):
            for name, array in arrays.items():
                data[f"{split}_{name}"] = array.reshape(n_windows, n_bins, -1)[windows]
        recordings.append(data)
    return recordings


def _n_valid(total: int, fraction: float, what: str) -> int:
    """Return the size of the validation split, or refuse one that leaves a split empty."""
    n_valid = round(total * fraction)
    if not 0 < n_valid < total:
        raise UserError(
            f"valid_fraction={fraction} of {total} {what} leaves {total - n_valid} for training "
            f"and {n_valid} for validation; both need at least one."
        )
    return n_valid


def _roessler(rng: np.random.Generator, n_bins: int, time_per_bin: float) -> Array:
    """Return one trajectory on the attractor, shape (n_bins, 3)."""
    # In plain numbers: for a single state, NumPy costs ten times as much.
    x, y, z = rng.normal(size=3).tolist()
    x, y, z = x + 1.0, y + 1.0, abs(z)
    n_steps = max(1, int(np.ceil(time_per_bin / _ROESSLER_STEP)))
    h = time_per_bin / n_steps

    def flow(x: float, y: float, z: float) -> tuple[float, float, float]:
        return -y - z, x + A * y, B + z * (x - C)

    path = np.empty((n_bins, 3))
    burn_in = int(np.ceil(_ROESSLER_BURN_IN / time_per_bin))
    for i in range(-burn_in, n_bins):
        if i >= 0:
            path[i] = x, y, z
        for _ in range(n_steps):
            a1, b1, c1 = flow(x, y, z)
            a2, b2, c2 = flow(x + h / 2 * a1, y + h / 2 * b1, z + h / 2 * c1)
            a3, b3, c3 = flow(x + h / 2 * a2, y + h / 2 * b2, z + h / 2 * c2)
            a4, b4, c4 = flow(x + h * a3, y + h * b3, z + h * c3)
            x += h / 6 * (a1 + 2 * a2 + 2 * a3 + a4)
            y += h / 6 * (b1 + 2 * b2 + 2 * b3 + b4)
            z += h / 6 * (c1 + 2 * c2 + 2 * c3 + c4)
    return path


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
