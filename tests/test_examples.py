"""The scripts of `examples/`: on small stand-ins always, on the recordings where they lie."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lfads_torch.data import check_file, write_session
from lfads_torch.errors import UserError
from lfads_torch.metrics import bits_per_spike
from lfads_torch.post_run.outputs import output_files
from lfads_torch.run_model import run_model

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
RECORDINGS = ROOT.parent / "shared" / "data"
TINY = {
    **{f"model.{name}": 8 for name in ("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim")},
    "model.fac_dim": 4,
    "posterior_sampling.fn.num_samples": 2,
    "callbacks": "demo",
    "trainer.accelerator": "cpu",
}


def recording(name: str) -> Path:
    path = RECORDINGS / name
    if not path.is_file():
        pytest.skip(f"{path} is not there: real recordings are no part of the project")
    return path


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a script as ``python examples/NAME.py`` would find it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str) -> ModuleType:
        for module in (name, "example_tools"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        return __import__(name)

    return load


@pytest.fixture
def run_script(
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    def run(name: str, *arguments: Any) -> str:
        module = example(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        capsys.readouterr()
        module.main()
        return capsys.readouterr().out

    return run


def markdown_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# Windows of a continuous recording ----------------------------------------------------------------


def chopped(n_windows: int = 60, n_bins: int = 30, overlap: int = 6) -> dict[str, np.ndarray]:
    """Windows laid out as those of the wrist recording: every fifth one is for validation."""
    rng = np.random.default_rng(0)
    step = n_bins - overlap
    time = np.arange(step * n_windows + overlap)
    phase = np.cumsum(rng.normal(0.2, 0.1, len(time)))
    latents = np.column_stack([np.cos(phase), np.sin(phase)])
    rates = 0.4 * np.exp(latents @ rng.normal(size=(2, 12)))
    continuous = {
        "encod_data": rng.poisson(rates).astype(np.uint8),
        "behavior": np.column_stack([latents, np.gradient(latents, axis=0)]).astype(np.float32),
        "bins": time[:, None],
    }
    inds = np.arange(n_windows) + 2
    is_valid = inds % 5 == 0
    arrays = {}
    for split, chosen in (("train", ~is_valid), ("valid", is_valid)):
        for name, values in continuous.items():
            windows = np.stack([values[i * step : i * step + n_bins] for i in range(n_windows)])
            arrays[f"{split}_{name}"] = windows[chosen]
        arrays[f"{split}_recon_data"] = arrays[f"{split}_encod_data"]
        arrays[f"{split}_inds"] = inds[chosen]
    return arrays


@pytest.fixture(scope="module")
def wrist_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrist")
    write_session(folder / "wrist.h5", chopped(), {"bin_ms": 20.0})
    overrides = {
        **TINY,
        "model": "isometric_wrist",
        "datamodule": "isometric_wrist",
        "datamodule.datafile_pattern": str(folder / "wrist.h5"),
        "datamodule.batch_size": 16,
        "trainer.max_epochs": 2,
    }
    run_model(overrides, run_dir=folder / "run")
    return folder / "run"


def test_wrist_decoding_prints_every_score(wrist_run: Path, run_script: Callable[..., str]) -> None:
    text = run_script("wrist_decoding", wrist_run, "--markdown")
    header, dashes, *rows = markdown_rows(text)[:6]
    assert header[1:] == ["force x", "force y", "d(force x)/dt", "d(force y)/dt", "mean"]
    assert dashes[0].strip("-") == "" and all(re.fullmatch("-+:", cell) for cell in dashes[1:])
    baselines = ["smoothed spikes", "smoothed, several widths"]
    assert [row[0] for row in rows] == [*baselines, "LFADS rates", "LFADS factors"]
    scores = np.array([[float(cell) for cell in row[1:]] for row in rows])
    np.testing.assert_allclose(scores[:, :4].mean(axis=1), scores[:, 4], atol=1e-3)
    # The spikes follow the behaviour closely, which two epochs cannot have taught the model.
    assert (scores[:2] > 0.5).all()
    assert len(markdown_rows(text)) == 12
    with h5py.File(output_files(wrist_run)[0]) as file:
        rates = torch.from_numpy(file["valid_output_params"][()]).double()
        counts = torch.from_numpy(file["valid_recon_data"][()]).double()
    assert f"validation windows: {bits_per_spike(rates.log(), counts):.3f};" in text


def test_wrist_decoding_says_how_much_is_shared(
    wrist_run: Path, run_script: Callable[..., str]
) -> None:
    text = run_script("wrist_decoding", wrist_run)
    assert "12 of these share bins with training windows (40% of their bins)" in text


def test_shared_bins_are_those_that_training_windows_hold(
    example: Callable[[str], ModuleType],
) -> None:
    data = chopped(n_windows=24)  # nothing follows the last validation window
    module = example("wrist_decoding")
    marked = module.shared_bins(data["train_inds"], data["valid_inds"], 30, module.OVERLAP)
    actual = np.isin(data["valid_bins"][..., 0], data["train_bins"])
    np.testing.assert_array_equal(marked, actual)


def test_decoding_chooses_by_training_windows_alone(
    example: Callable[[str], ModuleType],
) -> None:
    module = example("wrist_decoding")
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 10, 3)) for n in (40, 20))
    weight = rng.normal(size=(3, 2))
    noise = [rng.normal(size=a.shape) for a in (x, y)]
    unseen = np.zeros((20, 10), dtype=bool)
    unseen[:, 3:] = True
    behavior = (x @ weight, y @ weight)
    # The second candidate is as good as the first on training windows but for a little noise; on
    # validation windows the first is worthless.
    candidates = [(x, noise[1]), (x + 0.1 * noise[0], y)]
    result = module.decode(candidates, behavior, unseen)
    assert result.chosen.tolist() == [0, 0]
    assert (result.r2 < 0.2).all()
    exact = module.decode([candidates[1], (x, y)], behavior, unseen)
    assert exact.chosen.tolist() == [1, 1]
    np.testing.assert_allclose([exact.r2, exact.r2_unseen], 1, atol=1e-6)


def test_decoding_is_not_lured_by_a_fit_to_noise(example: Callable[[str], ModuleType]) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 10, 1)) for n in (40, 20))
    behavior = (x, y)
    noise = tuple(rng.normal(size=(len(a), 10, 380)) for a in (x, y))  # 400 bins to fit
    weak = tuple(a + rng.normal(size=a.shape) for a in (x, y))
    result = example("wrist_decoding").decode([noise, weak], behavior, np.ones((20, 10), bool))
    assert result.chosen.tolist() == [1]
    assert result.r2[0] == pytest.approx(0.5, abs=0.15)


def test_scores_of_unseen_bins_leave_the_others_out(example: Callable[[str], ModuleType]) -> None:
    module = example("wrist_decoding")
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 10, 3)) for n in (40, 20))
    spoilt = y.copy()
    spoilt[:, :3] = rng.normal(size=(20, 3, 3))
    unseen = np.zeros((20, 10), dtype=bool)
    unseen[:, 3:] = True
    result = module.decode([(x, spoilt)], (x, y), unseen)
    assert (result.r2 < 0.9).all()
    np.testing.assert_allclose(result.r2_unseen, 1, atol=1e-6)


def test_wrist_decoding_refuses_other_behaviour(
    tmp_path: Path, run_script: Callable[..., str]
) -> None:
    data = chopped(10)
    for split in ("train", "valid"):
        data[f"{split}_behavior"] = data[f"{split}_behavior"][..., :2]
        data[f"{split}_output_params"] = data[f"{split}_factors"] = data[f"{split}_encod_data"]
    path = write_session(tmp_path / "out.h5", data)
    with pytest.raises(UserError, match=r"out\.h5: behavior has 2 columns, not 4"):
        run_script("wrist_decoding", path)


def test_wrist_decoding_needs_some_unshared_bins(
    tmp_path: Path, run_script: Callable[..., str]
) -> None:
    data = chopped(30, n_bins=12)
    for split in ("train", "valid"):
        data[f"{split}_output_params"] = data[f"{split}_factors"] = data[f"{split}_encod_data"]
    path = write_session(tmp_path / "out.h5", data)
    with pytest.raises(UserError, match="every bin of the validation windows lies in a training"):
        run_script("wrist_decoding", path)


# Trials with held-out channels --------------------------------------------------------------------


def reaches(n_trials: int = 80, n_ms: int = 205, n_units: int = 14) -> dict[str, np.ndarray]:
    """Spikes in bins of 1 ms whose rates depend on the target, and on a gain of the trial."""
    rng = np.random.default_rng(1)
    target = np.repeat(np.arange(4), n_trials // 4)
    tuning = rng.normal(size=(4, n_units))
    gain = rng.normal(size=(n_trials, 1)) * rng.normal(size=n_units)
    course = np.linspace(0, 1, n_ms)[None, :, None]
    rates = 0.03 * np.exp((0.7 * tuning[target] + 0.5 * gain)[:, None] * course)
    return {"spikes": (rng.random(rates.shape) < rates).astype(np.uint8), "target": target}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_session(tmp_path_factory.mktemp("reach") / "recorded.h5", reaches())


def read(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {key: np.asarray(item[()]) for key, item in file.items()}


def test_binning_loses_no_spike(
    recorded: Path, tmp_path: Path, run_script: Callable[..., str]
) -> None:
    out = tmp_path / "binned.h5"
    text = run_script("bin_delayed_reach", recorded, out, "--held-out", 4)
    assert "64 training and 16 validation trials x 20 bins of 10 ms x 14 channels" in text
    raw, data = read(recorded), read(out)
    trials = np.concatenate([data["train_trial"], data["valid_trial"]])
    assert sorted(trials) == list(range(80))
    for split in ("train", "valid"):
        chosen = raw["spikes"][data[f"{split}_trial"]][:, :200, data["units"]]
        counts = chosen.reshape(len(chosen), 20, 10, 14).sum(axis=2)
        np.testing.assert_array_equal(data[f"{split}_recon_data"], counts)
        np.testing.assert_array_equal(data[f"{split}_encod_data"], counts[..., :10])
        np.testing.assert_array_equal(
            data[f"{split}_target"], raw["target"][data[f"{split}_trial"]]
        )
    assert np.bincount(data["valid_target"]).tolist() == [4, 4, 4, 4]
    report = check_file(out)
    assert not report.errors
    with h5py.File(out) as file:
        assert file.attrs["bin_ms"] == 10


def test_binning_is_seeded(recorded: Path, tmp_path: Path, run_script: Callable[..., str]) -> None:
    outs = [tmp_path / f"{name}.h5" for name in "abc"]
    for out, seed in zip(outs, (3, 3, 4), strict=True):
        run_script("bin_delayed_reach", recorded, out, "--held-out", 4, "--seed", seed)
    one, again, other = map(read, outs)
    assert all(np.array_equal(one[key], again[key]) for key in one)
    assert not np.array_equal(one["valid_trial"], other["valid_trial"])
    assert not np.array_equal(one["units"], other["units"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bin-ms", 0), r"--bin-ms is 0; legal are 1 to 205"),
        (("--bin-ms", 206), r"--bin-ms is 206; legal are 1 to 205"),
        (("--held-out", 14), r"--held-out is 14; legal are 1 to 13"),
        (("--held-out", 0), r"--held-out is 0; legal are 1 to 13"),
        (("--held-out", 4, "--valid-fraction", 1), r"--valid-fraction 1.0, .* of the 20 trials"),
        (
            ("--held-out", 4, "--valid-fraction", 0.01),
            r"--valid-fraction 0.01, .* of the 20 trials",
        ),
    ],
)
def test_binning_refuses_what_leaves_nothing(
    arguments: tuple[Any, ...],
    message: str,
    recorded: Path,
    tmp_path: Path,
    run_script: Callable[..., str],
) -> None:
    with pytest.raises(UserError, match=message):
        run_script("bin_delayed_reach", recorded, tmp_path / "out.h5", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def reach_run(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reach_run")
    command = [sys.executable, EXAMPLES / "bin_delayed_reach.py", recorded, folder / "binned.h5"]
    subprocess.run([*map(str, command), "--held-out", "4"], check=True, cwd=ROOT)
    overrides = {
        **TINY,
        "model": "delayed_reach",
        "datamodule": "delayed_reach",
        "datamodule.datafile_pattern": str(folder / "binned.h5"),
        "datamodule.batch_size": 16,
        "trainer.max_epochs": 2,
    }
    run_model(overrides, run_dir=folder / "run")
    return folder / "run"


def test_heldout_bps_prints_every_prediction(
    reach_run: Path, run_script: Callable[..., str]
) -> None:
    text = run_script("heldout_bps", reach_run, "--markdown")
    _, _, *rows = markdown_rows(text)
    assert [row[0] for row in rows] == ["LFADS", "smoothed spikes", "PSTH of the target"]
    data = read(output_files(reach_run)[0])
    held_out = [
        torch.from_numpy(data[f"valid_{name}"][..., 10:]).double()
        for name in ("output_params", "recon_data")
    ]
    expected = bits_per_spike(held_out[0].log(), held_out[1])
    assert float(rows[0][1]) == pytest.approx(float(expected), abs=6e-4)
    assert "4 held-out channels, 16 validation trials x 20 bins" in text


def test_baselines_find_what_was_put_into_the_spikes(example: Callable[[str], ModuleType]) -> None:
    binned = example("bin_delayed_reach").split_and_bin(*reaches(240).values(), 10, 4, 0.25, 0)
    module = example("heldout_bps")
    train, valid = binned["train_recon_data"], binned["valid_recon_data"]
    smoothed, width, _ = module.predict_from_smoothed(
        (train[..., :10], valid[..., :10]), train[..., 10:], seed=0
    )
    average, _ = module.predict_from_psth(
        train[..., 10:], binned["train_target"], binned["valid_target"], seed=0
    )
    assert smoothed.shape == average.shape == valid[..., 10:].shape
    assert width > 1  # rates change slowly
    assert module.co_bps(smoothed, valid[..., 10:]) > 0.02
    assert module.co_bps(average, valid[..., 10:]) > 0.02


def test_a_silent_channel_gets_a_rate(example: Callable[[str], ModuleType]) -> None:
    module = example("heldout_bps")
    rng = np.random.default_rng(0)
    read_counts, counts = rng.poisson(1.0, (10, 5, 3)), rng.poisson(1.0, (10, 5, 2))
    counts[..., 1] = 0
    rates = module.poisson_regression(read_counts, counts, read_counts, 1e-2)
    assert (rates[..., 1] == module.FLOOR).all() and (rates[..., 0] > 0.1).all()
    assert np.isfinite(module.co_bps(np.zeros((10, 5, 2)), counts))


def test_heldout_bps_needs_heldout_channels(
    reach_run: Path, tmp_path: Path, run_script: Callable[..., str]
) -> None:
    data = read(output_files(reach_run)[0])
    for split in ("train", "valid"):
        data[f"{split}_encod_data"] = data[f"{split}_recon_data"]
    path = write_session(tmp_path / "all_read.h5", data)
    with pytest.raises(UserError, match="all 14 channels are read; there is none held out"):
        run_script("heldout_bps", path)


# What the scripts share ---------------------------------------------------------------------------


def test_mistakes_are_told_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "wrist_decoding.py"), str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("wrist_decoding.py: ") and "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_key_is_named(tmp_path: Path, run_script: Callable[..., str]) -> None:
    path = write_session(tmp_path / "other.h5", {"spike": np.zeros((2, 3, 4))})
    with pytest.raises(UserError, match=r"other\.h5 lacks spikes, target; it has spike"):
        run_script("bin_delayed_reach", path, tmp_path / "out.h5")


def test_tables_line_up(example: Callable[[str], ModuleType]) -> None:
    tools = example("example_tools")
    rows = [["a long name", "1.0"], ["b", "-10.25"]]
    markdown = tools.format_table(["what", "R2"], rows, markdown=True).splitlines()
    assert len({len(line) for line in markdown}) == 1
    assert markdown[1] == "| ----------- | -----: |"
    plain = tools.format_table(["what", "R2"], rows, markdown=False).splitlines()
    assert plain[1:] == ["a long name     1.0", "b            -10.25"]


# The recordings -----------------------------------------------------------------------------------


def test_every_validation_window_of_the_wrist_recording_shares_bins(
    example: Callable[[str], ModuleType],
) -> None:
    data = read(recording("isometric_wrist_day0.h5"))
    module = example("wrist_decoding")
    shared = module.shared_bins(data["train_inds"], data["valid_inds"], 30, module.OVERLAP)
    assert (shared.sum(axis=1) == 12).all()  # as docs/real_data.md says
    row_of = {int(index): row for row, index in enumerate(data["train_inds"])}
    for row, index in enumerate(data["valid_inds"]):
        before = data["train_encod_data"][row_of[index - 1], -module.OVERLAP :]
        np.testing.assert_array_equal(data["valid_encod_data"][row, : module.OVERLAP], before)


def test_the_delayed_reach_recording_is_binned(
    tmp_path: Path, run_script: Callable[..., str]
) -> None:
    source, out = recording("delayed_reach.h5"), tmp_path / "delayed_reach_10ms.h5"
    run_script("bin_delayed_reach", source, out)
    with h5py.File(out) as file:
        assert file["train_encod_data"].shape == (584, 70, 73)
        assert file["valid_recon_data"].shape == (144, 70, 97)
        total = file["train_recon_data"][()].sum() + file["valid_recon_data"][()].sum()
    with h5py.File(source) as file:
        assert total == file["spikes"][()].sum()
    assert not check_file(out).errors


def train_shortly(name: str, data: Path, folder: Path, epochs: int) -> SimpleNamespace:
    overrides = {
        "model": name,
        "datamodule": name,
        "datamodule.datafile_pattern": str(data),
        "callbacks": "demo",
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": epochs,
        "posterior_sampling.fn.num_samples": 2,
    }
    result = run_model(overrides, run_dir=folder)
    return SimpleNamespace(run=folder, bps=result.metrics["valid/bps"])


@pytest.mark.slow
def test_the_wrist_recording_trains(tmp_path: Path, run_script: Callable[..., str]) -> None:
    trained = train_shortly(
        "isometric_wrist", recording("isometric_wrist_day0.h5"), tmp_path / "run", epochs=4
    )
    assert trained.bps > 0
    rows = markdown_rows(run_script("wrist_decoding", trained.run, "--markdown"))
    scores = {row[0]: float(row[-1]) for row in rows[2:6]}
    assert scores["smoothed spikes"] == pytest.approx(0.515, abs=0.005)  # docs/real_data.md
    assert scores["LFADS rates"] > 0.2


@pytest.mark.slow
def test_the_delayed_reach_recording_trains(tmp_path: Path, run_script: Callable[..., str]) -> None:
    source, binned = recording("delayed_reach.h5"), tmp_path / "delayed_reach_10ms.h5"
    run_script("bin_delayed_reach", source, binned)
    trained = train_shortly("delayed_reach", binned, tmp_path / "run", epochs=10)
    assert trained.bps > 0
    rows = markdown_rows(run_script("heldout_bps", trained.run, "--markdown"))
    scores = {row[0]: float(row[1]) for row in rows[2:]}
    assert scores["LFADS"] > 0
    assert scores["smoothed spikes"] == pytest.approx(0.233, abs=0.005)  # docs/real_data.md
    assert scores["PSTH of the target"] == pytest.approx(0.203, abs=0.005)
