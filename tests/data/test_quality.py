"""Windows of one recording that overlap are reported, trials are not."""

from __future__ import annotations

import numpy as np
import pytest

from lfads_torch.data import check_file, shared_ends, write_session
from lfads_torch.prep.chop import chop_recording
from tests.small import arrays


def windows(rate: float, channels: int, n: int = 200) -> np.ndarray:
    x = np.random.default_rng(0).poisson(rate, (n * 20 + 10, channels)).astype(np.float32)
    return np.stack([x[i * 20 : i * 20 + 30] for i in range(n)])


@pytest.mark.parametrize(("rate", "channels"), [(0.1, 30), (1.0, 3), (0.02, 100)])
def test_windows_drawn_at_random_overlap(rate: float, channels: int) -> None:
    shuffled = np.random.default_rng(1).permutation(windows(rate, channels))
    overlap, share = shared_ends(shuffled[40:], shuffled[:40])
    assert overlap == 10
    assert share > 0.5


@pytest.mark.parametrize(("rate", "channels"), [(0.1, 30), (1.0, 3), (0.02, 100), (0.3, 1)])
def test_trials_and_blocks_do_not(rate: float, channels: int) -> None:
    rng = np.random.default_rng(0)
    trials = rng.poisson(rate, (300, 30, channels)).astype(np.float32)
    assert shared_ends(trials[60:], trials[:60]) == (0, 0.0)
    recording = rng.poisson(rate, (6000, channels)).astype(np.float32)
    blocks, _ = chop_recording({"x": recording}, 30, 10)
    assert shared_ends(blocks["train_x"], blocks["valid_x"]) == (0, 0.0)


@pytest.mark.parametrize("channels", [1, 2])
def test_few_trials_of_a_single_unit_are_alike_by_chance(channels: int) -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        train, valid = rng.poisson(0.5, (20, 30, channels)), rng.poisson(0.5, (6, 30, channels))
        assert shared_ends(train, valid) == (0, 0.0)


def test_degenerate_sizes() -> None:
    one = np.ones((3, 1, 2), np.float32)
    assert shared_ends(one, one) == (0, 0.0)
    assert shared_ends(np.zeros((3, 4, 2), np.float32), np.zeros((3, 4, 2), np.float32))[0] == 0
    assert shared_ends(np.ones((3, 4, 2), np.float32), np.ones((3, 5, 2), np.float32))[0] == 0


def test_the_report_says_so(tmp_path) -> None:
    recording = windows(0.2, 20)
    data = arrays()
    for split, part in (("train", recording[::2]), ("valid", recording[1::2])):
        data[f"{split}_encod_data"] = data[f"{split}_recon_data"] = part
    report = check_file(write_session(tmp_path / "w.h5", data))
    assert any(
        "100% of the validation windows begin with the last 10 bins of a training" in text
        for text in report.warnings
    )
