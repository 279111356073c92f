"""One training step of the package and of the textbook, ready to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shapes import Shape, build_batch, build_model
from torch import Tensor, nn
from torch.optim import Optimizer

CLIP = 200.0
"""Largest norm of the gradient, that of the default configuration."""


def stepper(
    model: nn.Module, objective: Callable[[], Tensor], optimizer: Optimizer
) -> Callable[[], None]:
    """Forward, backward, clipping and optimiser, as one call."""

    def run() -> None:
        optimizer.zero_grad()
        objective().backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return run


def package_step(shape: Shape, kernel: str) -> Callable[[], None]:
    """Return a step of `lfads_torch.LFADS` on a batch."""
    model, batch = build_model(shape, kernel), build_batch(shape)
    optimizer: Any = model.configure_optimizers()
    return stepper(model, lambda: model.training_step(batch, 0), optimizer)


def textbook_step(shape: Shape) -> Callable[[], None]:
    """Return a step of the textbook's LFADS on the same batch, from the same parameters."""
    from textbook import TextbookLFADS

    model, batch = TextbookLFADS(build_model(shape)).train(), {0: build_batch(shape)}
    return stepper(model, lambda: model.training_step(batch), model.configure_optimizers())
