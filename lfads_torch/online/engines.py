"""What runs at each bin of a stream: the whole model on a window, or one step of each net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, whole
from .plan import plan
from .step import Step, StepOutput, StepState
from .window import Window

State = dict[str, Any]

# Bins of a restart without an IC segment, over which the old state is mixed with the new one.
_BLEND = 20


class BinOutput(NamedTuple):
    """Outputs of one bin, and rates of the bins to come (B, horizon, N_r)."""

    rates: Tensor
    factors: Tensor
    gen_states: Tensor
    inputs: Tensor
    behavior: Tensor
    ahead: Tensor


class WindowEngine:
    """The last T_e bins, and the model on all of them."""

    def __init__(
        self,
        window: Window,
        n_streams: int,
        device: Any,
        warmup: str,
        every: int,
        horizon: int,
    ) -> None:
        hp = window.model.hparams
        self._window, self._n_bins = window, int(hp["encod_seq_len"])
        self._warmup, self._every, self._horizon = warmup, every, horizon
        n_read = getattr(window.model.readin[window.session], "in_features", hp["encod_data_dim"])
        # Every bin is written twice, so that the last T_e are always one piece of memory.
        shape = n_streams, 2 * self._n_bins
        self._rings = {
            "ring": torch.zeros(*shape, int(n_read), device=device),
            "ring_ext": torch.zeros(*shape, int(hp["ext_input_dim"]), device=device),
        }
        self.started = False

    def push(self, t: int, x: Tensor, ext: Tensor | None) -> BinOutput | None:
        """Take a bin; return the outputs where the model ran."""
        place = t % self._n_bins
        for ring, values in zip(self._rings.values(), (x, ext), strict=True):
            if values is None:
                continue
            if t == 0 and self._warmup == "repeat":
                ring[...] = values.unsqueeze(1)
            ring[:, place], ring[:, place + self._n_bins] = values, values
        is_full = t >= self._n_bins - 1 or self._warmup != "nan"
        if not is_full or t % self._every:
            return None
        self.started = True
        bins = slice(place + 1, place + 1 + self._n_bins)
        x, e = (ring[:, bins] for ring in self._rings.values())
        output = self._window(x, e if ext is not None else None)
        last, end = self._n_bins - 1, self._n_bins
        ahead = output.rates[:, end : end + self._horizon]
        return BinOutput(*(field[:, last] for field in output), ahead)  # type: ignore[call-arg]

    def reset(self) -> None:
        """Forget all bins."""
        self.started = False
        for ring in self._rings.values():
            ring.zero_()

    def state(self) -> State:
        """Return copies of the bins."""
        rings = {name: ring.cpu().numpy().copy() for name, ring in self._rings.items()}
        return {"started": self.started, **rings}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.started = bool(state["started"])
        for name, ring in self._rings.items():
            ring.copy_(torch.as_tensor(state[name]))


class StepEngine:
    """One step of every net per bin, and the change to a new state at a restart."""

    def __init__(
        self,
        step: Step,
        n_streams: int,
        device: Any,
        horizon: int,
        restart: int,
        blend: int | None,
    ) -> None:
        steps = _PlannedStep(step, n_streams, device, horizon)
        self._tracks = [_Track(steps, n_streams, device) for _ in range(2)]
        self._fresh, self._has_second = self._tracks[0].arrays("first"), False
        segment = step.first_bins
        self._restart = whole("restart", restart, least=0)
        self._blend = whole("blend", (2 * segment or _BLEND) if blend is None else blend, least=1)
        # The first bin that the new state says anything about.
        self._silent = max(segment - 1, 0)
        if restart and not self._silent < self._blend < restart:
            raise ConfigError(
                f"restart is {restart} and blend {self._blend}; legal are blend from "
                f"{self._silent + 1} (the IC segment) to restart - 1"
            )

    @property
    def started(self) -> bool:
        """Whether there are outputs."""
        return self._tracks[0].age > self._silent

    def push(self, t: int, x: Tensor, ext: Tensor | None) -> BinOutput | None:
        """Take a bin; return the outputs, None within the IC segment."""
        first, second = self._tracks
        if self._restart and t and t % self._restart == 0:
            second.load("first", self._fresh)
            self._has_second = True
        result = first.push(x, ext)
        if not self._has_second:
            return result
        # The plan's outputs are those of its last call.
        result = None if result is None else BinOutput(*(a.clone() for a in result))
        other = second.push(x, ext)
        share = (second.age - self._silent) / (self._blend - self._silent)
        if second.age >= self._blend:
            self._tracks, self._has_second = [second, first], False
        if result is None or other is None:
            return result
        return BinOutput(*(a + share * (b - a) for a, b in zip(result, other, strict=True)))

    def reset(self) -> None:
        """Forget all bins."""
        self._tracks[0].load("first", self._fresh)
        self._has_second = False

    def state(self) -> State:
        """Return copies of the states."""
        first, second = (
            t.arrays(n) for t, n in zip(self._tracks, ("first", "second"), strict=True)
        )
        return {**first, **second, "has_second": self._has_second}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._has_second = bool(state["has_second"])
        for track, name in zip(self._tracks, ("first", "second"), strict=True):
            track.load(name, state)


class _Track:
    """One state of a causal model and the bins since it began."""

    def __init__(self, steps: _PlannedStep, n_streams: int, device: Any) -> None:
        self._run, step = steps, steps.step
        self.age = 0
        # The bins of the IC segment, until the initial condition is inferred from them.
        shape = n_streams, step.first_bins
        self.first = torch.zeros(*shape, step.n_read, device=device)
        self.first_ext = torch.zeros(*shape, step.n_ext, device=device)
        self.state: list[Tensor] = [x.clone() for x in steps.begin]

    def push(self, x: Tensor, ext: Tensor | None) -> BinOutput | None:
        """Take a bin; return the outputs, None within the IC segment."""
        bin_, self.age = self.age, self.age + 1
        n_first = self._run.step.first_bins
        if bin_ >= n_first:
            return self._run(x, ext, self.state)
        self.first[:, bin_] = x
        if ext is not None:
            self.first_ext[:, bin_] = ext
        if self.age < n_first:
            return None
        return self._run.start(self.first, None if ext is None else self.first_ext, self.state)

    def arrays(self, prefix: str) -> State:
        """Return copies of everything, under names with a prefix."""
        kept = {"first": self.first, "first_ext": self.first_ext}
        kept |= {f"state_{k}": v for k, v in enumerate(self.state)}
        named = {f"{prefix}_{k}": v.cpu().numpy().copy() for k, v in kept.items()}
        return {f"{prefix}_age": self.age, **named}

    def load(self, prefix: str, saved: Mapping[str, Any]) -> _Track:
        """Take what `arrays` gave."""
        self.age = int(saved[f"{prefix}_age"])
        kept = {"first": self.first, "first_ext": self.first_ext}
        for name, tensor in (kept | {f"state_{k}": v for k, v in enumerate(self.state)}).items():
            tensor.copy_(torch.as_tensor(saved[f"{prefix}_{name}"]))
        return self


class _PlannedStep:
    """One bin of a causal model and of those to come, planned once for all tracks of a stream."""

    def __init__(self, step: Step, n_streams: int, device: Any, horizon: int) -> None:
        self.step, self._horizon = step, horizon
        with torch.no_grad():
            # With an IC segment, the state of any bins serves: it is written before it is read.
            segment = n_streams, step.first_bins
            x, ext = (torch.zeros(*segment, n, device=device) for n in (step.n_read, step.n_ext))
            state = step.start(x, ext if step.n_ext else None).state if step.first_bins else None
            state = step.initial(n_streams) if state is None else state
        self._is_kept = [value is not None for value in state]
        self.begin = [value.clone() for value in state if value is not None]
        sizes = (step.n_read, step.n_ext) if step.n_ext else (step.n_read,)
        bins = [torch.zeros(n_streams, size, device=device) for size in sizes]
        self._plan = plan(self._of_tensors, [*bins, *(value.clone() for value in self.begin)])

    def __call__(self, x: Tensor, ext: Tensor | None, state: list[Tensor]) -> BinOutput:
        """Take a bin; the new state is written over the old one."""
        given = (x, *state) if ext is None else (x, ext, *state)
        for room, value in zip(self._plan.inputs, given, strict=True):
            room.copy_(value)
        self._plan.run()
        outputs = self._plan.outputs
        for old, new in zip(state, outputs[len(BinOutput._fields) :], strict=True):
            old.copy_(new)
        return BinOutput(*outputs[: len(BinOutput._fields)])

    def start(self, x: Tensor, ext: Tensor | None, state: list[Tensor]) -> BinOutput:
        """Take the bins of the IC segment."""
        result, *new = self._with_ahead(self.step.start(x, ext))
        for old, value in zip(state, new, strict=True):
            old.copy_(value)
        return result

    def _of_tensors(self, x: Tensor, *others: Tensor) -> list[Tensor]:
        values = iter(others)
        ext = next(values) if self.step.n_ext else None
        state = StepState._make(next(values) if kept else None for kept in self._is_kept)
        result, *new = self._with_ahead(self.step(x, ext, state))
        return [*result, *new]

    def _with_ahead(self, output: StepOutput) -> tuple[Any, ...]:
        """Return the result with the bins to come, and the tensors of the state."""
        rates, state = [], output.state
        for _ in range(self._horizon):
            later = self.step.ahead(state)
            rates.append(later.rates)
            state = later.state
        ahead = torch.stack(rates, dim=1) if rates else output.rates.unsqueeze(1)[:, :0]
        result = BinOutput(*output[:-1], ahead)
        return result, *(value for value in output.state if value is not None)
