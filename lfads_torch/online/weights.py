"""The weights of a causal model as arrays for `numpy_runner`, which reads them without torch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ConfigError
from ..modules import recons
from ..modules.aligner import AlignedReadin
from ..modules.readin_readout import FanInLinear
from ..modules.recurrent import ClippedGRUCell
from .graphs import StepGraph

Array = NDArray[np.float64]


class _Means(NamedTuple):
    """Parameters of the read-out that make a mean, whether its logarithm, and the least datum."""

    n_params: int
    is_log: bool
    least: float


_ANY = -3e38  # JSON has no infinity
_MEANS: dict[type, _Means] = {
    recons.Poisson: _Means(1, True, 0.0),
    recons.PoissonBPS: _Means(1, True, 0.0),
    recons.MSE: _Means(1, False, _ANY),
    recons.Gaussian: _Means(1, False, _ANY),
    recons.Gamma: _Means(1, True, 0.0),
    recons.ZeroInflatedGamma: _Means(3, False, 0.0),
}
_LINEAR = (nn.Linear, FanInLinear)


def weights_of(graph: StepGraph) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return arrays by name, and what `meta` says besides the properties."""
    model, number, step = graph.session.model, graph.session.number, graph.step
    readin, readout, recon = model.readin[number], model.readout[number], model.recon[number]
    for name, part, legal in (
        ("readin", readin, (nn.Identity, *_LINEAR, AlignedReadin)),
        ("readout", readout, _LINEAR),
        ("reconstruction", recon, tuple(_MEANS)),
    ):
        if type(part) not in legal:
            raise ConfigError(
                f"{name} is {type(getattr(part, 'part', part)).__name__}, which .npz cannot hold: "
                f"legal are {', '.join(kind.__name__ for kind in legal)}; write .onnx or .pt2"
            )
    means = _MEANS[type(recon)]
    encoder, cell = model.encoder, model.decoder.rnn.cell
    n_read, n_fac = graph.session.n_channels, step.w_fac.shape[1]
    read = _affine(readin) if isinstance(readin, _LINEAR) else None
    out = _affine(readout)
    n_out = len(out) // recon.n_params
    if isinstance(recon, recons.Gamma):
        # The mean of two logarithms; beyond +-40, where the model clips each, no data are.
        out = out[:n_out] - out[n_out:]
    out = out[: means.n_params * n_out]
    arrays = {"out": out[:, :-1], "out_bias": out[:, -1], "fac": _array(step.w_fac).T}
    if isinstance(readin, AlignedReadin):
        # What is read is align max(read x, floor): y passes, and the hidden units below it are cut.
        y, inner = _affine(readin.linear), _affine(readin.aligner.inner)
        hidden = inner[:, :-1] @ y
        hidden[:, -1] += inner[:, -1]
        arrays["read"] = np.r_[y, hidden]
        arrays["floor"] = np.r_[np.full(len(y), _ANY), np.zeros(len(hidden))]
        arrays["align"] = np.c_[np.eye(len(y)), _array(readin.aligner.outer.weight)]
        n_read = readin.out_features
    nets: dict[str, tuple[Array, Array]] = {
        "ci": (np.zeros((0, n_read + 1)),) * 2,
        "con": (np.zeros((0, n_fac + 1)),) * 2,
    }
    arrays |= {"co": np.zeros((0, 1)), "initial/state_lag": np.zeros((1, 0))}
    if model.use_con:
        nets |= {"ci": _fused(encoder.ci_enc.fwd_gru.cell, read), "con": _fused(cell.con_cell)}
        first = _array(step.ci_h0)[0]
        arrays |= {
            "co": np.c_[_array(step.w_co).T, _array(step.b_co)],
            "initial/state_ci": first,
            "initial/state_con": _array(step.con_h0)[0],
            "initial/state_lag": np.zeros((1 + step.n_lag, len(first))),
        }
    nets["gen"] = _fused(cell.gen_cell)
    if step.first_bins:
        both = encoder.ic_enc.fwd_gru.cell, encoder.ic_enc.bwd_gru.cell
        nets |= {"ic_fwd": _fused(both[0], read), "ic_bwd": _fused(both[1], read)}
        to_g0, ic = _affine(model.decoder.ic_to_g0), _affine(encoder.ic_linear)
        g0 = to_g0[:, :-1] @ ic[: len(ic) // 2]
        g0[:, -1] += to_g0[:, -1]
        arrays |= {"g0": g0, "ic_h0": _array(encoder.ic_enc_h0)[:, 0]}
    else:
        state = step.initial()
        arrays |= {
            "initial/state_gen": _array(state.gen)[0],
            "initial/state_fac": _array(state.fac)[0],
        }
    for name, (gates, candidate) in nets.items():
        arrays |= {f"{name}_zr": gates, f"{name}_n": candidate}
    if isinstance(recon, recons.ZeroInflatedGamma):
        arrays |= {"scale": _array(recon.scale).clip(1e-5), "loc": np.array(recon.gamma_loc)}
    arrays["dec"], features = np.zeros((0, n_fac + 1)), "factors"
    if graph.decoder is not None:
        weights, features = dict(graph.decoder.named_buffers()), graph.decoder.field
        none = weights[f"weight_{graph.decoder.n_kept}"] * 0
        lags = range(graph.decoder.n_kept + 1)
        blocks = [_array(weights.get(f"weight_{lag}", none)) for lag in lags]
        arrays["dec"] = np.c_[np.concatenate(blocks).T, _array(weights["bias"])]
    arrays["beh"], read_from = np.zeros((0, n_fac + 1)), "factors"
    if (behavior := model.behavior) is not None:
        # In the units of the data at once.
        beh, read_from = _affine(behavior) * _array(behavior.std)[:, None], behavior.source
        beh[:, -1] += _array(behavior.mean)
        if read_from == "rates" and getattr(recon, "for_counts", False):
            # Log rates are the factors, mapped.
            beh, read_from = np.c_[beh[:, :-1] @ out[:, :-1], beh @ np.r_[out[:, -1], 1]], "factors"
        arrays["beh"] = beh
    clip = float(cell.gen_cell.clip_value)
    return arrays, {
        "nets": list(nets),
        "clip": clip if np.isfinite(clip) else None,
        "features": features,
        "behavior_from": read_from,
        "sizes": {"rates": n_out, "decoded": len(arrays["dec"]), "behavior": len(arrays["beh"])},
        "support": recon.support,
        **means._asdict(),
    }


def _fused(cell: ClippedGRUCell, read: Array | None = None) -> tuple[Array, Array]:
    """Return half the weights of both gates, and the candidate's: of inputs, state and 1."""
    w_x, bias = _array(cell.weight_ih), _array(cell.bias)
    if read is not None:  # the read-in, too
        w_x, bias = w_x @ read[:, :-1], bias + w_x @ read[:, -1]
    weights = np.c_[w_x, _array(cell.weight_hh), bias]
    n_gates = 2 * cell.hidden_size
    return weights[:n_gates] / 2, weights[n_gates:]


def _affine(layer: Any) -> Array:
    """Return weight and bias of a linear layer as one matrix."""
    weight = _array(layer.weight)
    return np.c_[weight, np.zeros(len(weight)) if layer.bias is None else _array(layer.bias)]


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().double().numpy()
