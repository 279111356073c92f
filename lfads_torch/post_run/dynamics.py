"""Fixed points of a trained generator, and the linear dynamics around them.

At a constant input u the generator is a map g -> F(g, u) from one bin to the next. Its fixed
points, and the points where it is slow, are the minima of the speed ``q(g) = |F(g) - g|^2 / 2``;
the eigenvalues of the Jacobian of F there say what becomes of small deviations (Sussillo & Barak
2013, Neural Computation 25; for speed with whole batches of starts: Golub & Sussillo 2018, JOSS 3).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import UserError
from ..kernels.reference import clipped_gru_cell

FloatArray = NDArray[np.float64]

_AT_ONCE = 1 << 24  # entries of the Jacobians that are held at a time: 128 MB
# Beside squared slopes of order 1: at first nearly a full Gauss-Newton step, at last next to none.
_DAMPING, _MAX_DAMPING = 1e-3, 1e12
_STALLED = 1e-5  # of the speed, gained in a step: a slow point is reached, no fixed one


class Generator:
    """The generator's step from one bin to the next, in float64.

    Parameters
    ----------
    weight_hh : array, shape (3 * states, states)
        Recurrent weights; rows in the order update gate, reset gate, candidate.
    bias : array, shape (3 * states,)
    weight_ih : array, shape (3 * states, inputs), optional
    clip : float
        States stay within [-clip, clip].
    """

    def __init__(
        self,
        weight_hh: ArrayLike | Tensor,
        bias: ArrayLike | Tensor,
        weight_ih: ArrayLike | Tensor | None = None,
        clip: float = float("inf"),
    ) -> None:
        self.weight_hh, self.bias = _double(weight_hh), _double(bias).reshape(-1)
        rows, n_states = self.weight_hh.shape
        self.weight_ih = (
            torch.zeros(rows, 0, dtype=torch.float64) if weight_ih is None else _double(weight_ih)
        )
        self.clip = float(clip)
        if rows != 3 * n_states or len(self.bias) != rows or len(self.weight_ih) != rows:
            raise UserError(
                f"weight_hh is {tuple(self.weight_hh.shape)}, bias {tuple(self.bias.shape)}, "
                f"weight_ih {tuple(self.weight_ih.shape)}; legal are (3 n, n), (3 n,) and "
                "(3 n, inputs)"
            )

    @classmethod
    def of_model(cls, model: Any) -> Generator:
        """Return the generator of a trained `lfads_torch.model.LFADS`."""
        cell = model.decoder.rnn.cell.gen_cell
        return cls(cell.weight_hh, cell.bias, cell.weight_ih, model.decoder.clip)

    @property
    def n_states(self) -> int:
        """Number of states."""
        return self.weight_hh.shape[1]

    @property
    def n_inputs(self) -> int:
        """Number of inputs, inferred and external."""
        return self.weight_ih.shape[1]

    def drive(self, inputs: ArrayLike | None) -> Tensor:
        """Return what a constant input, shape (inputs,), adds to the gates; zero input if None."""
        if inputs is None:
            return self.bias
        u = _double(inputs).reshape(-1)
        if len(u) != self.n_inputs:
            raise UserError(f"inputs has {len(u)} entries; the generator takes {self.n_inputs}")
        return self.bias + self.weight_ih @ u

    def step(self, states: Tensor, drive: Tensor) -> Tensor:
        """Return states, shape (n, states), one bin later."""
        # The very cell that the model is defined by, so that both cannot differ.
        rows = drive.expand(1, len(states), -1)
        return clipped_gru_cell(rows, states[None], self.weight_hh[None], self.clip)[0]

    def jacobian(self, states: Tensor, drive: Tensor) -> Tensor:
        """Compute the step's derivatives, (n, states, states): rows are the next bin's states."""
        # By hand: automatic differentiation takes a backward pass for each of the states.
        n = self.n_states
        w_z, w_r, w_n = self.weight_hh.split(n)
        x_z, x_r, x_n = drive.split(n)
        z = (states @ w_z.T + x_z).sigmoid()
        r = (states @ w_r.T + x_r).sigmoid()
        c = ((r * states) @ w_n.T + x_n).tanh()
        # d(r h) = diag(r) + diag(h r (1 - r)) W_r, and the same chain for z and the candidate.
        d_reset = (states * r * (1 - r))[:, :, None] * w_r
        d_reset.diagonal(dim1=1, dim2=2).add_(r)
        jacobian = ((1 - z) * (1 - c**2))[:, :, None] * (w_n @ d_reset)
        jacobian += ((states - c) * z * (1 - z))[:, :, None] * w_z
        jacobian.diagonal(dim1=1, dim2=2).add_(z)
        clipped = (z * states + (1 - z) * c).abs() > self.clip
        return jacobian.masked_fill_(clipped[:, :, None], 0.0)


class FixedPoints(NamedTuple):
    """Where the generator stands still or is slow, the most visited first.

    Attributes
    ----------
    states : ndarray, shape (points, states)
    speeds : ndarray, shape (points,)
        ``q = |F(g) - g|^2 / 2``.
    is_fixed : ndarray of bool, shape (points,)
        Whether the speed is zero within the tolerance; the others are slow points.
    eigenvalues : ndarray of complex, shape (points, states)
        Of the Jacobian, those of largest modulus first.
    n_starts : ndarray of int, shape (points,)
        How many starts ended here.
    distances : ndarray, shape (points,)
        From the nearest start, in units of the starts' spread (root mean square distance from
        their mean); far beyond 1, a point lies where the model has never been.
    inputs : ndarray, shape (inputs,)
        The constant input.
    """

    states: FloatArray
    speeds: FloatArray
    is_fixed: NDArray[np.bool_]
    eigenvalues: NDArray[np.complex128]
    n_starts: NDArray[np.int64]
    distances: FloatArray
    inputs: FloatArray

    @property
    def n_unstable(self) -> NDArray[np.int64]:
        """Number of directions in which small deviations grow, for each point."""
        return (np.abs(self.eigenvalues) > 1).sum(axis=1)

    @property
    def is_stable(self) -> NDArray[np.bool_]:
        """Whether all small deviations from a point shrink."""
        return self.n_unstable == 0

    def time_constants(self) -> FloatArray:
        """Return the bins in which a deviation along each eigenvector changes by a factor e.

        Negative where it grows; infinite where it neither grows nor shrinks.
        """
        with np.errstate(divide="ignore"):
            return -1.0 / np.log(np.abs(self.eigenvalues))

    def frequencies(self) -> FloatArray:
        """Return the turns per bin of each eigenvalue, between 0 and 0.5."""
        return np.abs(np.angle(self.eigenvalues)) / (2 * np.pi)

    def near(self, distance: float | int = 1.0) -> FixedPoints:
        """Return the points within a number of spreads of a start."""
        return self.take(self.distances <= distance)

    def take(self, chosen: Any) -> FixedPoints:
        """Return the points of an index, a slice or a mask."""
        return FixedPoints._make([*(field[chosen] for field in self[:-1]), self.inputs])


def find_fixed_points(
    generator: Generator,
    starts: ArrayLike,
    inputs: ArrayLike | None = None,
    *,
    n_starts: int = 128,
    noise: float = 0.1,
    max_steps: int = 200,
    tolerance: float = 1e-20,
    merge_within: float = 1e-3,
    slow: float = 0.1,
    merge_slow: float = 0.1,
    seed: int = 0,
) -> FixedPoints:
    """Find fixed and slow points by minimising the speed from many starts.

    Every start goes downhill by damped Gauss-Newton steps (Levenberg-Marquardt) with the exact
    Jacobian. Fixed points that lie within `merge_within` spreads of each other are one, slow ones
    within `merge_slow`: along a valley of slow states the minimiser stops anywhere.

    Parameters
    ----------
    generator : Generator
    starts : array, shape (..., states)
        States that the model visits, such as `gen_states`; rows with NaN are left out.
    inputs : array, shape (inputs,), optional
        The constant input; 0 if None.
    n_starts : int
        States drawn from `starts` (all, where there are fewer).
    noise : float
        Standard deviation of the noise that is added to half of the starts, in spreads per root
        of the number of states.
    max_steps : int
        Steps of the minimiser at most.
    tolerance : float
        Speed below which a point counts as fixed.
    merge_within, merge_slow : float
        Distance within which fixed points, and slow ones, are one, in spreads.
    slow : float
        A minimum that is not fixed is kept where the generator moves less than this fraction of
        the median step of the starts.
    seed : int

    Returns
    -------
    FixedPoints
        Without any where there is no finite start.

    Raises
    ------
    UserError
        Where the sizes are not the generator's.
    """
    visited = np.asarray(starts, dtype=np.float64).reshape(-1, np.shape(starts)[-1])
    if visited.shape[1] != generator.n_states:
        raise UserError(
            f"starts have {visited.shape[1]} states; the generator has {generator.n_states}"
        )
    visited = visited[np.isfinite(visited).all(axis=1)]
    drive = generator.drive(inputs)
    constant = np.zeros(generator.n_inputs) if inputs is None else np.ravel(np.asarray(inputs))
    spread = float(np.sqrt(visited.var(axis=0).sum())) if len(visited) else 0.0
    spread = spread or 1.0
    # Half of the starts are moved off the trials: a point that repels is in between them, and no
    # trial stays near it.
    rng = np.random.default_rng(seed)
    chosen = visited[rng.permutation(len(visited))[:n_starts]]
    jitter = rng.normal(size=chosen.shape) * noise * spread / np.sqrt(generator.n_states)
    jitter[::2] = 0
    share = max(1, _AT_ONCE // generator.n_states**2)
    starts_at_once = torch.from_numpy(chosen + jitter).split(share)
    ends = torch.cat(
        [_descend(generator, some, drive, max_steps, tolerance) for some in starts_at_once]
    )
    speeds = _speed(generator, ends, drive).numpy()
    still = speeds < tolerance
    steps = _speed(generator, torch.from_numpy(chosen), drive).numpy()
    typical = np.median(steps) if len(steps) else 0
    # Squared, as the speed is the square of the distance that the generator moves in a bin.
    slow_points = np.flatnonzero(still | (speeds < slow**2 * typical))
    radii = np.where(still, merge_within, merge_slow)[slow_points] * spread
    kept, counts = _merge(ends.numpy()[slow_points], speeds[slow_points], radii)
    kept = slow_points[kept]
    states = ends[kept]
    values = np.zeros((0, generator.n_states), np.complex128)
    if len(kept):
        values = torch.linalg.eigvals(generator.jacobian(states, drive)).numpy()
        values = np.take_along_axis(values, np.argsort(-np.abs(values), axis=1), axis=1)
    distances = (
        torch.cdist(states, torch.from_numpy(visited)).amin(1) if len(kept) else states[:, 0]
    )
    return FixedPoints(
        states.numpy(),
        speeds[kept],
        still[kept],
        values,
        counts,
        distances.numpy() / spread,
        constant.astype(np.float64),
    )


def _speed(generator: Generator, states: Tensor, drive: Tensor) -> Tensor:
    return 0.5 * (generator.step(states, drive) - states).square().sum(dim=1)


def _descend(
    generator: Generator, starts: Tensor, drive: Tensor, max_steps: int, tolerance: float
) -> Tensor:
    """Minimise the residual F(g) - g by Levenberg-Marquardt, with a damping for each start."""
    # Marquardt (1963, doi:10.1137/0111030). Near a fixed point it converges quadratically, which
    # descent along the gradient of the speed does not; and a population of starts is one batch.
    states = starts.clamp(-generator.clip, generator.clip)
    speeds = _speed(generator, states, drive)
    damping = torch.full_like(speeds, _DAMPING)
    going = torch.ones(len(states), dtype=torch.bool)
    eye = torch.eye(generator.n_states, dtype=torch.float64)
    for _ in range(max_steps):
        rows = going.nonzero().squeeze(1)
        if not len(rows):
            break
        before = states[rows]
        residual = generator.step(before, drive) - before
        slope = generator.jacobian(before, drive) - eye
        normal = slope.mT @ slope + damping[rows, None, None] * eye
        gradient = (slope.mT @ residual[:, :, None]).squeeze(2)
        moved = before - torch.linalg.solve(normal, gradient)
        moved = moved.clamp(-generator.clip, generator.clip)
        reached = _speed(generator, moved, drive)
        better = reached < speeds[rows]
        gain = (speeds[rows] - reached) / speeds[rows]
        states[rows[better]] = moved[better]
        speeds[rows[better]] = reached[better]
        damping[rows] *= torch.where(better, 0.2, 8.0).double()
        # Far below the tolerance, or at a minimum that no step improves: there is no more to gain.
        done = (speeds[rows] < 1e-6 * tolerance) | (damping[rows] > _MAX_DAMPING)
        done |= better & (gain < _STALLED) & (speeds[rows] > tolerance)
        going[rows] = ~done
    return states


def _merge(
    states: FloatArray, speeds: FloatArray, radii: FloatArray
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return indices of distinct points, the most visited first, and how many ended at each."""
    kept: list[int] = []
    counts: list[int] = []
    # The slowest first, so that of several that are one the best converged is kept.
    for k in np.argsort(speeds, kind="stable").tolist():
        gaps = np.linalg.norm(states[kept] - states[k], axis=1) if kept else np.empty(0)
        if gaps.size and gaps.min() <= radii[k]:
            counts[int(gaps.argmin())] += 1
        else:
            kept.append(k)
            counts.append(1)
    order = np.argsort(-np.asarray(counts, np.int64), kind="stable")
    return np.asarray(kept, np.intp)[order], np.asarray(counts, np.int64)[order]


def _double(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu().double()
    return torch.from_numpy(np.array(values, dtype=np.float64))
