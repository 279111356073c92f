"""Which device computes, where a machine has GPUs of NVIDIA or Apple, or none."""

from __future__ import annotations

import pytest
import torch

from lfads_torch.runs.build import pick_device


@pytest.mark.parametrize(
    ("accelerator", "meant"),
    [
        ("auto", {"cuda", "mps"}),
        ("gpu", {"cuda", "mps"}),
        ("cuda", {"cuda"}),
        ("mps", {"mps"}),
        ("cpu", set()),
    ],
)
@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_what_the_accelerator_means_is_used_where_the_machine_has_it(
    accelerator: str, meant: set[str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
    assert pick_device({"accelerator": accelerator}) == (kind if kind in meant else "cpu")
    alone = kind if kind in meant - {"mps"} else "cpu"
    assert pick_device({"accelerator": accelerator}, is_stacked=True) == alone
