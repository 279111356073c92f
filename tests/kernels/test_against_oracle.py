"""Every kernel agrees with the oracle's cell-by-cell loop in float64, forward and backward."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from lfads_torch.kernels import DecoderInputs, DecoderStates, Kernels, get_kernels
from tests import oracle
from tests.kernels import RUN_HERE

# The random sizes are the same in every run, so that a failure can be repeated.
few_examples = settings(max_examples=15, deadline=None, derandomize=True, database=None)
CLIPS = {"clipped": 0.2, "free": 5.0}
# Along random directions; the oracle's gradients are compared entry by entry.
gradcheck = partial(torch.autograd.gradcheck, fast_mode=True)


@pytest.fixture(params=RUN_HERE)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return get_kernels(request.param)


def randn(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64)


def dropout_mask(*shape: int, rate: float = 0.4) -> Tensor:
    return (torch.rand(*shape, dtype=torch.float64) > rate).double() / (1 - rate)


def gradients(
    outputs: dict[str, Tensor], weights: dict[str, Tensor], leaves: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients for `leaves` of the outputs' sum weighted by `weights`."""
    total = torch.stack([(outputs[name] * w).sum() for name, w in weights.items()]).sum()
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-11, msg=partial(add, name))


def add(name: str, message: str) -> str:
    return f"{name}: {message}"


# ------------------------------------------------------------------ clipped GRU


def gru_leaves(k: int, t: int, b: int, n_in: int, n: int) -> dict[str, Tensor]:
    leaves = {
        "x": randn(k, b, t, n_in),
        "h0": randn(k, b, n, scale=0.3),
        "w_ih": randn(k, 3 * n, n_in),
        "w_hh": randn(k, 3 * n, n),
        "b_ih": randn(k, 3 * n),
    }
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def gru_by_oracle(leaves: dict[str, Tensor], clip: float) -> Tensor:
    """States (K, T, B, n), one net at a time."""
    states = []
    for x, h0, w_ih, w_hh, b_ih in zip(*leaves.values(), strict=True):
        states.append(oracle.gru(x, h0, (w_ih, w_hh, b_ih, torch.zeros_like(b_ih)), clip))
    return torch.stack(states).transpose(1, 2)


def gru_by_kernel(kernels: Kernels, leaves: dict[str, Tensor], clip: float) -> Tensor:
    x, h0, w_ih, w_hh, b_ih = leaves.values()
    x_proj = torch.einsum("kbti,koi->ktbo", x, w_ih) + b_ih[:, None, None]
    return kernels.clipped_gru(x_proj, h0, w_hh, clip).states


def check_gru(kernels: Kernels, clip: float, sizes: tuple[int, ...]) -> Tensor:
    k, t, b, n_in, n = sizes
    leaves = gru_leaves(k, t, b, n_in, n)
    expected = {"states": gru_by_oracle(leaves, clip)}
    got = {"states": gru_by_kernel(kernels, leaves, clip)}
    assert_same(got, expected)
    weights = {"states": randn(k, t, b, n)}
    assert_same(gradients(got, weights, leaves), gradients(expected, weights, leaves))
    return got["states"].detach()


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("sizes", [(1, 7, 3, 2, 4), (2, 1, 3, 2, 5), (3, 6, 1, 1, 1)], ids=str)
def test_gru(kernels: Kernels, sizes: tuple[int, ...], clip: float) -> None:
    check_gru(kernels, clip, sizes)


@pytest.mark.parametrize("name", RUN_HERE)
@few_examples
@given(sizes=st.tuples(*[st.integers(1, 5)] * 5), clip=st.sampled_from(list(CLIPS.values())))
def test_gru_of_any_size(name: str, sizes: tuple[int, ...], clip: float) -> None:
    torch.manual_seed(sum(sizes))
    check_gru(get_kernels(name), clip, sizes)


def test_gru_clips_and_passes_no_gradient_through_a_clipped_state(kernels: Kernels) -> None:
    states = check_gru(kernels, CLIPS["clipped"], (2, 8, 4, 3, 5))
    clipped = states.abs() == CLIPS["clipped"]
    assert clipped.any()
    assert not clipped.all()
    # One bin, every unit at the clip: nothing reaches the inputs.
    leaves = gru_leaves(1, 1, 2, 3, 4)
    states = gru_by_kernel(kernels, leaves, clip=1e-6)
    assert (states.abs() == 1e-6).all()
    for name, grad in gradients(
        {"states": states}, {"states": randn(*states.shape)}, leaves
    ).items():
        assert not grad.any(), name


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_gru_gradcheck(kernels: Kernels, clip: float) -> None:
    inputs = (randn(2, 3, 2, 9), randn(2, 2, 3, scale=0.1), randn(2, 9, 3))
    for x in inputs:
        x.requires_grad_()
    for two_way in (False, True):
        assert gradcheck(
            lambda x, h0, w, both=two_way: tuple(kernels.clipped_gru(x, h0, w, clip, both)), inputs
        )


@pytest.mark.parametrize("used", ["states", "last", "both"])
def test_odd_nets_run_backward(kernels: Kernels, used: str) -> None:
    """As nets that run forward over turned bins do, gradients included."""
    leaves = [randn(4, 5, 3, 12), randn(4, 3, 4), randn(4, 12, 4)]
    weights = randn(4, 5, 3, 4), randn(4, 3, 4)

    def turned(x: Tensor) -> Tensor:
        return torch.stack([x[k].flip(0) if k % 2 else x[k] for k in range(4)])

    def both(two_way: bool) -> list[Tensor]:
        x, h0, w = (leaf.clone().requires_grad_() for leaf in leaves)
        computed = kernels.clipped_gru(x if two_way else turned(x), h0, w, 1.0, two_way)
        states, last = (computed.states if two_way else turned(computed.states)), computed.last
        total = [(states * weights[0]).sum(), (last * weights[1]).sum()]
        chosen = {"states": total[:1], "last": total[1:], "both": total}[used]
        return [states, last, *torch.autograd.grad(sum(chosen), (x, h0, w))]

    for got, expected in zip(both(True), both(False), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_gru_takes_expanded_and_strided_inputs(kernels: Kernels) -> None:
    """Initial states shared by the trials, and sequences run backwards, are views."""
    x_proj, h0, w_hh = randn(2, 5, 3, 12), randn(2, 1, 4), randn(2, 12, 4)
    strided = x_proj.transpose(1, 2).contiguous().transpose(1, 2)
    before = x_proj.clone(), h0.clone(), w_hh.clone()
    got = kernels.clipped_gru(strided, h0.expand(2, 3, 4), w_hh, 5.0).states
    expected = kernels.clipped_gru(x_proj, h0.repeat(1, 3, 1), w_hh, 5.0).states
    torch.testing.assert_close(got, expected)
    for x, was in zip((x_proj, h0, w_hh), before, strict=True):
        assert torch.equal(x, was)


# ------------------------------------------------------------------ decoder

SIZES = {"K": 2, "T": 5, "B": 3, "CI": 2, "C": 4, "G": 5, "F": 3, "U": 2, "E": 1}
ALL_NOISE = ("noise", "fac_mask", "gen_mask")


def decoder_leaves(s: dict[str, int]) -> dict[str, Tensor]:
    k, con_in, gen_in = s["K"], 2 * s["CI"] + s["F"], s["U"] + s["E"]
    leaves = {
        "ci": randn(k, s["B"], s["T"], 2 * s["CI"]),
        "ext": randn(k, s["B"], s["T"], s["E"]),
        "gen_init": randn(k, s["B"], s["G"], scale=0.5),
        "con_h0": randn(k, 1, s["C"], scale=0.5),
        "con_cell.weight_ih": randn(k, 3 * s["C"], con_in),
        "con_cell.weight_hh": randn(k, 3 * s["C"], s["C"]),
        "con_cell.bias_ih": randn(k, 3 * s["C"]),
        "co_linear.weight": randn(k, 2 * s["U"], s["C"]),
        "co_linear.bias": randn(k, 2 * s["U"]),
        "gen_cell.weight_ih": randn(k, 3 * s["G"], gen_in),
        "gen_cell.weight_hh": randn(k, 3 * s["G"], s["G"]),
        "gen_cell.bias_ih": randn(k, 3 * s["G"]),
        "fac_linear.weight": randn(k, s["F"], s["G"]),
    }
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def decoder_noise(s: dict[str, int], which: tuple[str, ...]) -> dict[str, Tensor]:
    k, t, b = s["K"], s["T"], s["B"]
    drawn = {
        "noise": randn(k, t, b, s["U"]),
        "fac_mask": dropout_mask(k, t, b, s["F"]),
        "gen_mask": dropout_mask(k, t + 1, b, s["G"]),
    }
    return {name: drawn[name] for name in which}


def decoder_by_kernel(
    kernels: Kernels, s: dict[str, int], p: dict[str, Tensor], noise: dict[str, Tensor], clip: float
) -> dict[str, Tensor]:
    w_con_ci, w_con_fac = p["con_cell.weight_ih"].split([2 * s["CI"], s["F"]], dim=-1)
    w_gen_u, w_gen_ext = p["gen_cell.weight_ih"].split([s["U"], s["E"]], dim=-1)
    con_bias, gen_bias = p["con_cell.bias_ih"], p["gen_cell.bias_ih"]
    inputs = DecoderInputs(
        con_proj=torch.einsum("kbti,koi->ktbo", p["ci"], w_con_ci) + con_bias[:, None, None],
        gen_proj=torch.einsum("kbti,koi->ktbo", p["ext"], w_gen_ext) + gen_bias[:, None, None],
        con_h0=p["con_h0"].expand(-1, s["B"], -1),
        gen_h0=p["gen_init"],
        w_con_fac=w_con_fac,
        w_con_hh=p["con_cell.weight_hh"],
        w_co=p["co_linear.weight"],
        b_co=p["co_linear.bias"],
        w_gen_u=w_gen_u,
        w_gen_hh=p["gen_cell.weight_hh"],
        w_fac=normalize(p["fac_linear.weight"], dim=-1),
        **noise,
    )
    return kernels.decoder(inputs, clip)._asdict()


def decoder_by_oracle(
    s: dict[str, int], p: dict[str, Tensor], noise: dict[str, Tensor], clip: float
) -> dict[str, Tensor]:
    """The kernels' outputs, one net at a time, by the oracle's loop."""
    hps: dict[str, Any] = {"recon_seq_len": s["T"], "co_dim": s["U"], "cell_clip": clip}
    nets = []
    for k in range(s["K"]):
        params = {f"decoder.rnn.cell.{name}": value[k] for name, value in p.items() if "." in name}
        params["decoder.con_h0"] = p["con_h0"][k]
        for cell in ("con_cell", "gen_cell"):
            bias = p[f"{cell}.bias_ih"][k]
            params[f"decoder.rnn.cell.{cell}.bias_hh"] = torch.zeros_like(bias)
        mine = {name: value[k].transpose(0, 1) for name, value in noise.items()}
        drop_con = None
        if "fac_mask" in mine:
            drop_con = torch.cat([torch.ones_like(p["ci"][k]), mine["fac_mask"]], dim=-1)
        gen_mask = mine.get("gen_mask")
        out = oracle.decode(
            p["gen_init"][k],
            p["ci"][k],
            p["ext"][k],
            params,
            hps,
            oracle.Noise(
                co_eps=mine.get("noise"),
                drop_con=drop_con,
                drop_gen_init=None if gen_mask is None else gen_mask[:, 0],
                drop_gen=None if gen_mask is None else gen_mask[:, 1:],
            ),
        )
        logvars = 2 * torch.log(out["co_stds"])
        nets.append(
            {
                "factors": out["factors"],
                "gen_states": out["gen_states"],
                "con_states": out["con_states"],
                "co_params": torch.cat([out["co_means"], logvars], dim=-1),
                "inputs": out["gen_inputs"][..., : s["U"]],
            }
        )
    return {name: torch.stack([net[name] for net in nets]).transpose(1, 2) for name in nets[0]}


def check_decoder(
    kernels: Kernels,
    s: dict[str, int],
    which_noise: tuple[str, ...] = ALL_NOISE,
    clip: float = 5.0,
    used: tuple[str, ...] = DecoderStates._fields,
) -> dict[str, Tensor]:
    """Compare outputs, and gradients of a random sum over the outputs in `used`."""
    leaves, noise = decoder_leaves(s), decoder_noise(s, which_noise)
    expected = decoder_by_oracle(s, leaves, noise, clip)
    got = decoder_by_kernel(kernels, s, leaves, noise, clip)
    assert_same(got, expected)
    weights = {name: randn(*got[name].shape) for name in used}
    assert_same(gradients(got, weights, leaves), gradients(expected, weights, leaves))
    return {name: value.detach() for name, value in got.items()}


@pytest.mark.parametrize(
    "which_noise", [(), ("noise",), ("fac_mask",), ("gen_mask",), ALL_NOISE], ids="+".join
)
def test_decoder_with_noise_and_masks(kernels: Kernels, which_noise: tuple[str, ...]) -> None:
    check_decoder(kernels, SIZES, which_noise)


@pytest.mark.parametrize(
    "changed",
    [{"T": 1}, {"B": 1}, {"K": 1}, {"E": 0}, {"E": 3}, {"T": 1, "B": 1, "K": 1}],
    ids=str,
)
def test_decoder_of_odd_sizes(kernels: Kernels, changed: dict[str, int]) -> None:
    check_decoder(kernels, SIZES | changed)


@pytest.mark.parametrize("name", RUN_HERE)
@few_examples
@given(
    sizes=st.fixed_dictionaries({n: st.integers(0 if n == "E" else 1, 4) for n in SIZES}),
    which_noise=st.sets(st.sampled_from(ALL_NOISE)).map(sorted).map(tuple),
    clip=st.sampled_from(list(CLIPS.values())),
)
def test_decoder_of_any_size(
    name: str, sizes: dict[str, int], which_noise: tuple[str, ...], clip: float
) -> None:
    torch.manual_seed(sum(sizes.values()))
    check_decoder(get_kernels(name), sizes, which_noise, clip)


@pytest.mark.parametrize("used", DecoderStates._fields)
def test_decoder_gradient_of_each_output_alone(kernels: Kernels, used: str) -> None:
    check_decoder(kernels, SIZES, used=(used,))


def test_decoder_with_clipping_active(kernels: Kernels) -> None:
    out = check_decoder(kernels, SIZES | {"T": 8}, clip=CLIPS["clipped"])
    for name in ("gen_states", "con_states"):
        clipped = out[name].abs() == CLIPS["clipped"]
        assert clipped.any(), name
        assert not clipped.all(), name


def test_generator_without_controller(kernels: Kernels) -> None:
    """An autonomous generator is a clipped GRU over the external input, or over its bias alone."""
    for n_ext in (0, 2):
        s = SIZES | {"U": 0, "E": n_ext}
        p = decoder_leaves(s)
        states = kernels.clipped_gru(
            torch.einsum("kbti,koi->ktbo", p["ext"], p["gen_cell.weight_ih"])
            + p["gen_cell.bias_ih"][:, None, None],
            p["gen_init"],
            p["gen_cell.weight_hh"],
            5.0,
        ).states
        hps = {"recon_seq_len": s["T"], "co_dim": 0, "cell_clip": 5.0}
        for k in range(s["K"]):
            params = {f"decoder.rnn.cell.{name}": v[k] for name, v in p.items() if "." in name}
            params["decoder.con_h0"] = p["con_h0"][k]
            params["decoder.rnn.cell.gen_cell.bias_hh"] = torch.zeros(3 * s["G"]).double()
            out = oracle.decode(p["gen_init"][k], None, p["ext"][k], params, hps, oracle.NO_NOISE)
            torch.testing.assert_close(states[k].transpose(0, 1), out["gen_states"])


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_decoder_gradcheck(kernels: Kernels, clip: float) -> None:
    s = {"K": 2, "T": 2, "B": 2, "CI": 1, "C": 2, "G": 3, "F": 2, "U": 1, "E": 1}
    leaves, noise = decoder_leaves(s), decoder_noise(s, ALL_NOISE)

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        p = dict(zip(leaves, values, strict=True))
        return tuple(decoder_by_kernel(kernels, s, p, noise, clip).values())

    assert gradcheck(run, tuple(leaves.values()))


def test_decoder_leaves_its_inputs_as_they_are(kernels: Kernels) -> None:
    leaves, noise = decoder_leaves(SIZES), decoder_noise(SIZES, ALL_NOISE)
    before = {name: value.detach().clone() for name, value in (leaves | noise).items()}
    out = decoder_by_kernel(kernels, SIZES, leaves, noise, 5.0)
    values = {name: value.detach().clone() for name, value in out.items()}
    gradients(out, {name: randn(*value.shape) for name, value in out.items()}, leaves)
    for name, value in (leaves | noise).items():
        assert torch.equal(value, before[name]), name
    for name, value in out.items():
        assert torch.equal(value, values[name]), name


# ------------------------------------------------------------------ all of them


def test_mapped_gradients_are_those_of_each_member(kernels: Kernels) -> None:
    """`torch.func` maps a loss over a population as a loop over its members would."""
    sizes = SIZES | {"K": 1}
    members = [decoder_leaves(sizes) for _ in range(3)]
    noise = decoder_noise(sizes, ALL_NOISE)
    weights = randn(*decoder_by_kernel(kernels, sizes, members[0], noise, 5.0)["factors"].shape)

    def loss(p: dict[str, Tensor]) -> Tensor:
        return (decoder_by_kernel(kernels, sizes, p, noise, 5.0)["factors"] * weights).sum()

    stacked = {n: torch.stack([m[n].detach() for m in members]) for n in members[0]}
    mapped = torch.func.vmap(torch.func.grad(loss))(stacked)
    for i, member in enumerate(members):
        alone = torch.autograd.grad(loss(member), list(member.values()), allow_unused=True)
        for (name, leaf), grad in zip(member.items(), alone, strict=True):
            expected = torch.zeros_like(leaf) if grad is None else grad
            torch.testing.assert_close(mapped[name][i], expected, msg=name)
