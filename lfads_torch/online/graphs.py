"""What an export writes: from counts to means and behaviour, tensors in and out by their names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..metrics.decoder import Decoder
from .session import TrainedSession
from .step import Step, StepOutput, StepState
from .stream import FEATURES
from .window import Window, WindowOutput


class LaggedDecoder(nn.Module):
    """A decoder of behaviour, for windows and for single bins."""

    bias: Tensor

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        weight, bias = decoder.matrices()
        self.field, self.lags = FEATURES[decoder.features], decoder.lags
        self.n_features, self.n_kept = decoder.n_features, max(decoder.lags)
        self.facts = {
            "targets": list(decoder.target_names),
            "lags": list(decoder.lags),
            "features": decoder.features,
        }
        self.register_buffer("bias", torch.tensor(bias, dtype=torch.float32))
        for lag, matrix in zip(decoder.lags, weight, strict=True):
            self.register_buffer(f"weight_{lag}", torch.tensor(matrix, dtype=torch.float32))

    def of_window(self, features: Tensor) -> Tensor:
        """Decode all bins (B, T, K); NaN where a lag reaches out of the window."""
        n_bins = features.shape[1]
        before = features.new_full((features.shape[0], self.n_kept, features.shape[2]), torch.nan)
        return self._decoded(torch.cat([before, features], dim=1), n_bins)

    def of_bin(self, features: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Decode one bin (B, K), given the bins before it (B, lags, K); return those kept, too."""
        seen = features.unsqueeze(1)
        if kept is None:
            return self._decoded(seen, 1).squeeze(1), None
        seen = torch.cat([kept, seen], dim=1)
        return self._decoded(seen, 1).squeeze(1), seen[:, 1:]

    def _decoded(self, seen: Tensor, n_bins: int) -> Tensor:
        """Decode the last bins of those seen."""
        decoded = self.bias
        for lag in self.lags:
            start = self.n_kept - lag
            decoded = decoded + seen[:, start : start + n_bins] @ getattr(self, f"weight_{lag}")
        return decoded


class Graph(nn.Module):
    """Shared by all graphs; `sizes` are those of the inputs, without the axis B."""

    mode: str
    sizes: dict[str, tuple[int, ...]]

    def __init__(self, session: TrainedSession, decoder: Decoder | None) -> None:
        super().__init__()
        self.session, self.network = session, session.model
        self.decoder = None if decoder is None else LaggedDecoder(decoder)

    def named(self, output: WindowOutput | StepOutput) -> dict[str, Tensor]:
        """Name rates, factors, and inferred inputs and behaviour where the model has them."""
        outputs = {"rates": output.rates, "factors": output.factors}
        if self.network.use_con:
            outputs["inputs"] = output.inputs
        if self.network.behavior is not None:
            outputs["behavior"] = output.behavior
        return outputs


class WindowGraph(Graph):
    """The whole model on a window: counts (B, T_e, N) to the outputs of every bin."""

    mode = "window"

    def __init__(self, session: TrainedSession, decoder: Decoder | None = None) -> None:
        super().__init__(session, decoder)
        self.window = Window(session.model, session.number)
        hp = session.model.hparams
        self.sizes = {"x": (hp.encod_seq_len, session.n_channels)}
        if hp.ext_input_dim:
            self.sizes["ext"] = (hp.recon_seq_len, hp.ext_input_dim)

    def forward(self, x: Tensor, ext: Tensor | None = None) -> dict[str, Tensor]:
        """Return the outputs by name."""
        output = self.window(x, ext)
        outputs = self.named(output)
        if self.decoder is not None:
            outputs["decoded"] = self.decoder.of_window(getattr(output, self.decoder.field))
        return outputs


class StepGraph(Graph):
    """One bin of a causal model: counts (B, N) and states to outputs and the states after."""

    mode = "step"

    def __init__(self, session: TrainedSession, decoder: Decoder | None = None) -> None:
        super().__init__(session, decoder)
        self.step = Step(session.model, session.number)
        hp = session.model.hparams
        self.sizes = {"x": (session.n_channels,)}
        if hp.ext_input_dim:
            self.sizes["ext"] = (hp.ext_input_dim,)
        if self.network.use_con:
            self.sizes["state_ci"] = (1 + hp.ci_lag, hp.ci_enc_dim)
            self.sizes["state_con"] = (hp.con_dim,)
        self.sizes |= {"state_gen": (hp.gen_dim,), "state_fac": (hp.fac_dim,)}
        if self.decoder is not None and self.decoder.n_kept:
            self.sizes["state_dec"] = (self.decoder.n_kept, self.decoder.n_features)

    def forward(
        self,
        x: Tensor,
        ext: Tensor | None = None,
        state_ci: Tensor | None = None,
        state_con: Tensor | None = None,
        state_gen: Tensor | None = None,
        state_fac: Tensor | None = None,
        state_dec: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the outputs and the states after, by name."""
        assert state_gen is not None and state_fac is not None  # every model has them
        state = StepState(state_ci, state_con, state_gen, state_fac)
        return self.with_states(self.step(x, ext, state), state_dec)

    def with_states(self, output: StepOutput, state_dec: Tensor | None) -> dict[str, Tensor]:
        """Name the outputs of a bin and the states after it."""
        outputs = self.named(output)
        states = output.state._asdict()
        if self.decoder is not None:
            features = getattr(output, self.decoder.field)
            outputs["decoded"], states["dec"] = self.decoder.of_bin(features, state_dec)
        return outputs | {f"state_{k}_out": v for k, v in states.items() if v is not None}

    def initial(self) -> dict[str, Tensor]:
        """Return the states before the first bin, (1, ...); none that the first bins decide."""
        states: dict[str, Any] = {}
        if not self.step.first_bins:
            states = {f"state_{k}": v for k, v in self.step.initial()._asdict().items()}
        if "state_dec" in self.sizes:
            states["state_dec"] = torch.full((1, *self.sizes["state_dec"]), torch.nan)
        return {name: state.detach() for name, state in states.items() if state is not None}


class StartGraph(Graph):
    """The first bins (B, S, N) of a causal model whose initial condition is inferred from them."""

    mode = "start"

    def __init__(self, of: StepGraph) -> None:
        super().__init__(of.session, None)
        self.of = of
        n_bins = of.step.first_bins
        self.sizes = {k: (n_bins, *v) for k, v in of.sizes.items() if k in ("x", "ext")}

    def forward(self, x: Tensor, ext: Tensor | None = None) -> dict[str, Tensor]:
        """Return the outputs of the last of these bins, and the states after it."""
        kept = self.of.sizes.get("state_dec")
        state_dec = None if kept is None else x.new_full((x.shape[0], *kept), torch.nan)
        return self.of.with_states(self.of.step.start(x, ext), state_dec)
