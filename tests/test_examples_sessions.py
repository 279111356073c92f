"""The scripts on continuous recordings and on many sessions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest

from lfads_torch.data import write_session
from lfads_torch.errors import UserError
from lfads_torch.prep.chop import chop_recording
from lfads_torch.prep.merging import merge_file

EXAMPLES = Path(__file__).parents[1] / "examples"
RECORDINGS = EXAMPLES.parents[1] / "shared" / "data"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a script as ``python examples/NAME.py`` would find it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str) -> ModuleType:
        for module in (name, "example_tools", "continuous_decoding", "heldout_bps"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        return __import__(name)

    return load


# Continuous ---------------------------------------------------------------------------------------


def test_decoding_finds_lag_and_features(example: Callable[[str], ModuleType]) -> None:
    module = example("continuous_decoding")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 3))
    behavior = np.full((900, 2), np.nan)
    behavior[4:] = x[:-4] @ rng.normal(size=(3, 2))
    split = np.repeat([0, 1, 0, 2, -1, 0], 150)
    noise = rng.normal(size=x.shape)
    x[split == -1] = np.nan
    result = module.decode([noise, x], behavior, split)
    assert (result.chosen, result.lag) == (1, 4)
    np.testing.assert_allclose(result.r2, 1, atol=1e-4)
    known = (split == 2) & np.isfinite(result.predicted).all(axis=1)
    known[450:454] = False  # predicted from before the test time
    np.testing.assert_allclose(result.predicted[known], behavior[known], atol=1e-3)
    with pytest.raises(UserError, match="there must be time to train"):
        module.decode([x], behavior, np.where(split == 1, 0, split))


def test_a_merged_run_is_scored_and_drawn(
    example: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = example("continuous_decoding")
    rng = np.random.default_rng(0)
    phase = np.cumsum(rng.normal(0.2, 0.1, 1500))
    hand = np.column_stack([np.cos(phase), np.sin(phase), np.zeros(1500)])
    rates = 0.5 * np.exp(hand @ rng.normal(size=(3, 8)))
    counts = rng.poisson(rates)
    series = {"encod_data": counts, "recon_data": counts, "behavior": hand}
    series |= {"output_params": rates, "factors": hand[:, :2]}
    arrays, attributes = chop_recording(series, 20, 5, block=80, test_fraction=0.2, guard=3)
    path = write_session(tmp_path / "out.h5", arrays, {**attributes, "bin_ms": 50.0})
    merge_file(path, tmp_path / "lfads_merged_sess0.h5")
    figure = tmp_path / "test.png"
    arguments = ["x.py", str(tmp_path), "--markdown", "--figure", str(figure)]
    monkeypatch.setattr(sys, "argv", arguments)
    module.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["R2 on test time", "velocity x", "velocity y", "mean", "lag"]
    scores = {row[0]: float(row[3]) for row in cells[2:]}
    assert min(scores["LFADS factors"], scores["LFADS rates"]) > 0.99 > scores["smoothed spikes"]
    assert figure.stat().st_size > 10_000
    monkeypatch.setattr(sys, "argv", ["x.py", str(tmp_path / "none")])
    with pytest.raises(UserError, match="run `lfads merge"):
        module.main()


# Sessions -----------------------------------------------------------------------------------------


def reaches(n_trials: int = 160, n_units: int = 17) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.poisson(0.3, (n_trials, 10, n_units)), np.repeat(np.arange(4), n_trials // 4)


def test_units_and_trials_are_dealt_out(
    example: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    spikes, target = reaches()
    paths = example("stitching").make_sessions(tmp_path, spikes, target, 4, 2, seed=0)
    files: list[dict[str, Any]] = []
    for path in paths:
        with h5py.File(path) as file:
            files.append({key: file[key][()] for key in file})
    units = np.concatenate([data["units"] for data in files])
    assert len(units) == len(set(units)) == 16
    for data in files:
        assert data["train_encod_data"].shape == (16, 10, 3)
        assert data["valid_recon_data"].shape == (8, 10, 4)
        assert np.bincount(data["train_target"]).tolist() == [4] * 4
        np.testing.assert_array_equal(data["test_encod_data"], data["test_recon_data"][..., :3])
        np.testing.assert_array_equal(data["test_target"], files[0]["test_target"])
    # The test trials are the same trials: together they give the recording back.
    together = np.concatenate([data["test_recon_data"] for data in files], axis=-1)
    ours = {row.tobytes() for row in together.astype(np.int64)}
    assert len(ours) == 160 - 4 * 24
    assert ours <= {row.tobytes() for row in spikes[..., units]}
    with pytest.raises(UserError, match="40 trials to some target are too few"):
        example("stitching").make_sessions(tmp_path, spikes, target, 8, 2, seed=0)


def test_onsets_follow_rest(example: Callable[[str], ModuleType]) -> None:
    module = example("two_days")
    size = np.zeros(400)
    size[100:150] = size[200:250] = size[300:350] = 0.5
    size[260:280] = 0.3  # neither rest nor force
    behavior = np.column_stack([size * 0.6, size * 0.8])
    behavior[190] = np.nan  # something is missing before the second
    assert module.find_onsets(behavior).tolist() == [99, 299]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "files"),
    [
        ("stitching", ["delayed_reach.h5"]),
        ("two_days", ["isometric_wrist_day0.h5", "isometric_wrist_day95.h5"]),
    ],
)
def test_quick_runs_on_the_recordings(script: str, files: list[str], tmp_path: Path) -> None:
    paths = [RECORDINGS / name for name in files]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"{paths[0]} is not there: real recordings are no part of the project")
    command = [sys.executable, EXAMPLES / f"{script}.py", *paths, tmp_path / "out", "--quick"]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "added" in done.stdout


# Another day --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_days_runs_and_says_what_it_gives(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "days.py"), str(tmp_path), "--quick", "--markdown"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for row in ("day 0", "day 1, unaligned", "day 1, normalised", "day 1, aligned", "retrained"):
        assert row in done.stdout
    assert (tmp_path / "days.png").stat().st_size > 10_000
