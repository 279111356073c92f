"""Fixed points: of hand-built weights, and of a generator trained on a simulated system."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lfads_torch.errors import UserError
from lfads_torch.kernels import get_kernels
from lfads_torch.modules.decoder import Decoder
from lfads_torch.post_run.dynamics import Generator, find_fixed_points

OPEN = 50.0  # a gate's bias that leaves it at 1 to the last digit


def generator(candidate, update_bias, **options):
    """A generator whose reset gate is open and whose update gate is constant."""
    candidate = np.asarray(candidate, dtype=float)
    n = len(candidate)
    weight = np.concatenate([np.zeros((2 * n, n)), candidate])
    bias = np.concatenate([np.full(n, update_bias), np.full(n, OPEN), np.zeros(n)])
    return Generator(weight, bias, **options)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class TestHandBuilt:
    def test_one_stable_point_between_gates(self):
        # h' = z h + (1 - z) tanh(b): the fixed point is tanh(b), the Jacobian z.
        bias = np.array([0.3, -1.0, 0.0, 0.0, 0.7, -0.2])
        own = Generator(np.zeros((6, 2)), bias)
        found = find_fixed_points(own, np.random.default_rng(0).normal(size=(20, 2)))
        assert len(found.states) == 1
        assert np.allclose(found.states[0], np.tanh([0.7, -0.2]))
        assert np.allclose(found.eigenvalues[0], sigmoid(np.array([0.3, -1.0])))
        assert found.is_fixed[0]
        assert found.is_stable[0]
        assert found.n_starts.sum() == 20

    def test_bistable_switch(self):
        # h' = z h + (1 - z) tanh(3 h): 0 is unstable, +-h with h = tanh(3 h) are stable.
        own = generator([[3.0]], 0.0)
        found = find_fixed_points(own, np.linspace(-2, 2, 41)[:, None], n_starts=41)
        order = np.argsort(found.states[:, 0])
        up = found.states[order[-1], 0]
        assert np.allclose(found.states[order, 0], [-up, 0, up], atol=1e-9)
        assert np.isclose(up, np.tanh(3 * up))
        assert up > 0.9
        slopes = 0.5 + 0.5 * 3 * (1 - found.states[order, 0] ** 2)
        assert np.allclose(found.eigenvalues[order, 0], slopes)
        assert found.n_unstable[order].tolist() == [0, 1, 0]
        assert found.time_constants()[order[1], 0] < 0

    @settings(max_examples=20, deadline=None)
    @given(angle=st.floats(0.05, 3.0), radius=st.floats(0.1, 0.95), update=st.floats(-2, 2))
    def test_spiral_around_zero(self, angle, radius, update):
        # At 0 the Jacobian is z + (1 - z) times the rotation.
        turn = radius * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        found = find_fixed_points(generator(turn, update), np.full((3, 2), 0.2), n_starts=3)
        z = sigmoid(update)
        wanted = z + (1 - z) * radius * np.exp(1j * angle)
        assert np.allclose(found.states, 0, atol=1e-9)
        assert np.isclose(found.eigenvalues[0, 0].real, wanted.real)
        assert np.isclose(abs(found.eigenvalues[0, 0].imag), wanted.imag)
        assert np.isclose(found.frequencies()[0, 0], abs(np.angle(wanted)) / (2 * np.pi))
        assert np.isclose(found.time_constants()[0, 0], -1 / np.log(abs(wanted)))

    def test_a_constant_input_moves_the_point(self):
        weight_ih = np.array([[0.0], [0.0], [2.0]])
        own = Generator(np.zeros((3, 1)), np.zeros(3), weight_ih)
        found = find_fixed_points(own, [[0.1]], inputs=[0.4])
        assert np.isclose(found.states[0, 0], np.tanh(0.8))
        assert found.inputs.tolist() == [0.4]

    def test_clipped_states_do_not_move(self):
        # Without the clip the fixed point would be tanh(2): beyond it.
        own = Generator(np.zeros((3, 1)), [0.0, 0.0, 2.0], clip=0.5)
        found = find_fixed_points(own, [[0.1], [-0.3]])
        assert np.allclose(found.states, 0.5)
        assert np.allclose(found.eigenvalues, 0)

    def test_slow_points_are_told_from_fixed_ones(self):
        # tanh(1.02 h) - h + 0.001 has lost its fixed point below 0 but is nearly still there.
        own = generator([[1.02]], 0.0)
        own.bias[2] = 0.004
        starts = np.linspace(-1, 1, 21)[:, None]
        found = find_fixed_points(own, starts, n_starts=21)
        slow = ~found.is_fixed
        assert found.is_fixed.sum() == 1
        assert slow.sum() == 1
        assert found.states[slow][0, 0] < 0 < found.states[~slow][0, 0]
        nothing_slow = find_fixed_points(own, starts, n_starts=21, slow=0.0)
        assert nothing_slow.is_fixed.all()

    def test_far_points_are_known_by_their_distance(self):
        found = find_fixed_points(generator([[3.0]], 0.0), np.full((10, 1), 0.05), noise=1e-4)
        assert len(found.near(0.5).states) <= len(found.states)
        assert (found.near(0.5).distances <= 0.5).all()


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 5), seed=st.integers(0, 99), clip=st.sampled_from([0.4, 5.0]))
def test_jacobian_agrees_with_automatic_differentiation(n, seed, clip):
    draw = torch.Generator().manual_seed(seed)
    weight, bias = (torch.randn(*s, generator=draw) for s in ((3 * n, n), (3 * n,)))
    own = Generator(weight, bias, clip=clip)
    states = torch.randn(4, n, generator=draw).double().clamp(-clip, clip)
    wanted = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda h: own.step(h[None], own.bias)[0], state)
            for state in states
        ]
    )
    assert torch.allclose(own.jacobian(states, own.bias), wanted, atol=1e-12)


class TestInput:
    def test_nothing_finite_gives_no_points(self):
        found = find_fixed_points(generator(np.eye(2), 0.0), np.full((3, 2), np.nan))
        assert found.states.shape == (0, 2)
        assert found.eigenvalues.shape == (0, 2)
        assert found.is_stable.shape == (0,)

    def test_rows_with_nan_are_left_out(self):
        found = find_fixed_points(Generator(np.zeros((3, 1)), np.zeros(3)), [[np.nan], [1.0]])
        assert found.n_starts.tolist() == [1]

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: Generator(np.zeros((4, 2)), np.zeros(4)), r"legal are \(3 n, n\)"),
            (lambda: find_fixed_points(generator([[1.0]], 0.0), np.zeros((2, 3))), "has 1"),
            (lambda: find_fixed_points(generator([[1.0]], 0.0), [[0.0]], [1.0]), "takes 0"),
        ],
    )
    def test_sizes_that_do_not_fit(self, build, message):
        with pytest.raises(UserError, match=message):
            build()


def double_well(n_trials, n_bins, step, rng):
    """Trajectories of dx = x - x^3, dy = -y, which has fixed points at x = -1, 0 and 1, y = 0."""
    state = rng.uniform([-1.6, -1], [1.6, 1], size=(n_trials, 2))
    state[::2] *= 0.3  # what sets apart the unstable point happens around it
    path = []
    for _ in range(n_bins):
        path.append(state)
        for _ in range(10):
            x, y = state.T
            state = state + step / 10 * np.stack([x - x**3, -y], axis=1)
    return np.stack(path, axis=1)


def test_finds_the_fixed_points_of_the_system_that_a_generator_was_trained_on():
    """The decoder's generator, taught a double well, has its three fixed points and stabilities."""
    n_bins, step, n_trials = 30, 0.25, 160
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(double_well(n_trials, n_bins, step, rng)).float()
    torch.manual_seed(0)
    decoder = Decoder(
        recon_seq_len=n_bins,
        ic_dim=2,
        ci_enc_dim=0,
        con_dim=0,
        co_dim=0,
        ext_input_dim=0,
        gen_dim=16,
        fac_dim=4,
        cell_clip=5.0,
        use_con=False,
    )
    readout = nn.Linear(4, 2)
    optimizer = torch.optim.Adam([*decoder.parameters(), *readout.parameters()], lr=0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    kernels, none = get_kernels("auto"), torch.zeros(n_trials, n_bins, 0)

    def decode():
        return decoder(
            truth[:, 0], None, none, sample_posteriors=False, dropout_rate=None, kernels=kernels
        )

    weight_hh = decoder.rnn.cell.gen_cell.weight_hh
    for _ in range(500):
        optimizer.zero_grad()
        loss = (readout(decode().factors) - truth).square().mean()
        (loss + 1e-5 * weight_hh.square().sum()).backward()
        optimizer.step()
        scheduler.step()
    assert loss.item() < 2e-3, "the generator has to know the system"

    with torch.no_grad():
        states = decode().gen_states
        cell = decoder.rnn.cell
        own = Generator(cell.gen_cell.weight_hh, cell.gen_cell.bias, clip=decoder.clip)
        found = find_fixed_points(own, states.numpy()).near(0.5)
        found = found.take(found.is_fixed)
        points = readout(torch.from_numpy(found.states).float() @ cell.fac_linear.unit_weight.T)
    points = points.numpy()
    for x, is_stable in ((-1, True), (0, False), (1, True)):
        k = int(np.abs(points - [x, 0]).sum(axis=1).argmin())
        assert np.allclose(points[k], [x, 0], atol=0.15)
        assert found.is_stable[k] == is_stable
        if not is_stable:  # deviations along x grow at the rate 1
            assert np.isclose(np.abs(found.eigenvalues[k, 0]), np.exp(step), atol=0.08)
    assert found.n_unstable.max() == 1
