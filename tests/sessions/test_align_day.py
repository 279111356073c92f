"""`lfads align`: only the day's maps are trained, the result is an ordinary run, bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lfads_torch import cli
from lfads_torch.checkpoint import load_model
from lfads_torch.data import DataWarning, write_session
from lfads_torch.data.smoothing import gaussian_smooth
from lfads_torch.data.synthetic import days
from lfads_torch.errors import UserError
from lfads_torch.folder import RunFolder
from lfads_torch.modules.aligner import AlignedReadin, NormalizedReadin
from lfads_torch.run_model import run_model
from lfads_torch.search.population import Population
from lfads_torch.sessions.align_day import AlignOptions, align_day, resume_alignment
from lfads_torch.sessions.day_result import rivals_of
from lfads_torch.sessions.day_start import start_kinds
from tests.small import batch_of

SMALL: dict[str, Any] = {
    "model": "alignable",
    **dict.fromkeys((f"model.{n}_dim" for n in ("ic_enc", "ci_enc", "con", "ic", "gen")), 6),
    **{"model.fac_dim": 4, "model.co_dim": 1, "model.encod_data_dim": 5, "model.lr_init": 0.01},
    "trainer": {"max_epochs": 2, "enable_progress_bar": False, "accelerator": "cpu"},
    "datamodule.batch_size": 16,
    "callbacks": {"raster_plot": None, "trajectory_plot": None},
    "posterior_sampling.fn.num_samples": 1,
}
QUICK = AlignOptions(epochs=2, seeds=2, num_samples=1)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of day 0, and files of two days."""
    place = tmp_path_factory.mktemp("days")
    for k, day in enumerate(days(2, 8, 60, n_bins=10, seed=1)):
        write_session(place / f"day{k}.h5", day, {"bin_ms": 20.0})
    run_model(
        {**SMALL, "datamodule.datafile_pattern": str(place / "day0.h5")}, run_dir=place / "run"
    )
    return place


@pytest.fixture(scope="module")
def aligned(folder: Path) -> Path:
    align_day(folder / "run", folder / "day1.h5", folder / "aligned", QUICK)
    return folder / "aligned"


def changed(path: Path, target: Path, **changes: Any) -> Path:
    """Copy a file with other arrays or attributes."""
    with h5py.File(path) as file:
        arrays = {key: file[key][()] for key in file}
    attrs = {"bin_ms": changes.pop("bin_ms", 20.0)}
    arrays = changes.pop("every", lambda a: a)(arrays)
    return write_session(target, arrays, attrs)


def test_an_aligner_changes_nothing_at_the_start_and_folds() -> None:
    torch.manual_seed(0)
    plain = AlignedReadin(7, 4)
    x = torch.randn(3, 5, 7) * 2 + 30
    assert torch.allclose(plain(x), plain.linear(x), atol=1e-6)
    torch.nn.init.normal_(plain.aligner.outer.weight)
    normalised = NormalizedReadin(plain)
    normalised.mean.fill_(30.0)
    normalised.scale.copy_(torch.tensor([0.5] * 6 + [0.0]))
    folded = normalised.folded()
    assert type(folded) is AlignedReadin
    assert torch.allclose(folded(x), normalised(x), atol=1e-4)
    by_hand = plain.linear((x - 30) * torch.tensor([0.5] * 6 + [0.0]))
    inner, outer = plain.aligner.inner, plain.aligner.outer
    by_hand = by_hand + torch.relu(by_hand @ inner.weight.T + inner.bias) @ outer.weight.T
    assert torch.allclose(normalised(x), by_hand, atol=1e-5)


def test_only_the_days_maps_are_trained(folder: Path, aligned: Path) -> None:
    old, new = load_model(folder / "run"), load_model(aligned)
    before, after = old.state_dict(), new.state_dict()
    shared = [k for k in before if not k.startswith(("readin", "readout"))]
    assert len(shared) > 20
    for name in shared:
        assert torch.equal(before[name], after[name]), name
    assert {k for k in after if k not in shared} == {
        *("readin.0.linear.weight", "readin.0.linear.bias", "readin.0.aligner.inner.weight"),
        *("readin.0.aligner.inner.bias", "readin.0.aligner.outer.weight"),
        *("readout.0.weight", "readout.0.bias"),
    }
    trained = {name for name, p in new.named_parameters() if p.requires_grad}
    assert trained == {k for k in after if k not in shared}
    assert bool((after["readin.0.aligner.outer.weight"] != 0).any())
    assert new.session_names == ["day1"]


def test_the_record(folder: Path, aligned: Path) -> None:
    record = json.loads((aligned / "alignment.json").read_text())
    rows = record["seeds"]
    assert [row["init"] for row in rows] == ["day0", "random"]
    assert all(len(row["by_epoch"]["divergence"]) == 2 for row in rows)
    best = min(rows, key=lambda row: row["criterion"])
    assert record["chosen"] == best["seed"]
    for row in rows:  # measured anew from the checkpoint, and as logged in its epoch
        logged = row["by_epoch"]["criterion"]
        assert row["criterion"] == pytest.approx(min(logged), rel=1e-4)
        assert row["criterion"] == pytest.approx(row["divergence"] + 10 * row["nll"], rel=1e-4)
    assert len(record["moments"]["after"]["spectrum"]) == record["q"]
    assert np.shape(record["likeness"]) == (2, 2)
    assert record["origin"]["run"] == str(folder / "run")


def test_seeds_with_other_answers_as_good_are_named() -> None:
    before, likeness = dict.fromkeys(range(4), 7.6), {0: 1.0, 1: -0.9, 2: 0.9, 3: -0.3}
    # The mirror image of the best, the same answer again, and a wrong start: of data of seed 0.
    after = {0: 6.1842, 1: 6.20, 2: 6.19, 3: 6.3628}
    assert rivals_of(before, after, likeness) == [1]
    assert rivals_of(after, after, likeness) == [], "without training"


def test_the_result_is_an_ordinary_run(
    folder: Path, aligned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(aligned, folder / "moved")
    assert RunFolder(moved).status["stage"] == "complete"
    assert cli.main(["sample", str(moved), "--samples", "1"]) == 0
    decoder = folder / "run" / "decoder.json"
    given = ["--from", "gen_states", "--lags", "0:1", "--save", str(decoder)]
    assert cli.main(["decode", str(folder / "run"), *given]) == 0
    assert cli.main(["decode", str(moved), "--apply", str(decoder)]) == 0
    capsys.readouterr()
    assert cli.main(["train", "--resume", str(moved)]) == 2
    assert "lfads align --resume" in capsys.readouterr().err


@pytest.mark.slow
def test_the_report_shows_the_alignment(folder: Path, aligned: Path) -> None:
    run = folder / "run"
    given = ["--from", "gen_states", "--lags", "0:1", "--save", str(run / "decoder.json")]
    assert cli.main(["decode", str(run), *given]) == 0
    given = ["--quick", "--output", str(folder / "r.html")]
    assert cli.main(["report", str(aligned), *given]) == 0
    page = (folder / "r.html").read_text()
    for text in ("Alignment", "Behaviour by day 0&#39;s decoder", "lfads align"):
        assert text in page, text


def test_an_alignment_goes_back_to_day_0(folder: Path, aligned: Path) -> None:
    with pytest.warns(UserWarning, match="its origin .*run is aligned instead"):
        done = align_day(
            aligned, folder / "day1.h5", folder / "again", AlignOptions(epochs=0, num_samples=1)
        )
    assert done.record["origin"]["run"] == str(folder / "run")
    assert done.record["seeds"][0]["init"] == "day0"


def test_normalised_maps_of_day_0_are_the_run_itself_on_its_day(folder: Path) -> None:
    options = AlignOptions(epochs=0, init="day0", num_samples=1)
    align_day(folder / "run", folder / "day0.h5", folder / "same", options)
    old, new = load_model(folder / "run"), load_model(folder / "same")
    with h5py.File(folder / "day0.h5") as file:
        counts = file["valid_encod_data"][()]
    batch = {0: batch_of(torch.from_numpy(counts).float())}
    before, after = (model(batch)[0] for model in (old, new))
    for name in ("gen_states", "factors", "output_params"):
        assert torch.allclose(getattr(before, name), getattr(after, name), atol=1e-5)


def test_channels_are_normalised_by_their_own_moments(folder: Path, aligned: Path) -> None:
    with h5py.File(folder / "day1.h5") as file:
        counts = file["train_encod_data"][()].astype(float)
    model = load_model(aligned / "seeds" / "seed0" / "start" / "model.ckpt")
    readin: Any = model.readin[0]
    np.testing.assert_allclose(readin.mean.numpy(), counts.mean(axis=(0, 1)), rtol=1e-5)
    sd = gaussian_smooth(counts, 2.0).std(axis=(0, 1))
    np.testing.assert_allclose(1 / readin.scale.numpy(), sd, rtol=1e-5)


def test_it_goes_on_after_a_kill(
    folder: Path, aligned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = Population.train_epoch

    def stop(self: Any) -> Any:
        if self.epoch == 1:
            raise KeyboardInterrupt
        return epoch(self)

    place = folder / "killed"
    monkeypatch.setattr(Population, "train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        align_day(folder / "run", folder / "day1.h5", place, QUICK)
    monkeypatch.undo()
    with pytest.raises(UserError, match="lfads align --resume"):
        align_day(folder / "run", folder / "day1.h5", place, QUICK)
    moved = Path(shutil.move(place, folder / "resumed"))
    done = resume_alignment(moved)
    whole = json.loads((aligned / "alignment.json").read_text())
    assert done.record["chosen"] == whole["chosen"]
    for ours, theirs in zip(done.record["seeds"], whole["seeds"], strict=True):
        assert ours["by_epoch"]["criterion"] == pytest.approx(
            theirs["by_epoch"]["criterion"], rel=1e-3
        )
    with pytest.raises(UserError, match="complete"):
        resume_alignment(moved)


@pytest.mark.slow
def test_another_divergence_of_the_factors(folder: Path, tmp_path: Path) -> None:
    options: Any = {"divergence": "mmd", "states": "factors", "init": "random"}
    given = AlignOptions(epochs=1, seeds=1, num_samples=1, **options)
    done = align_day(folder / "run", folder / "day1.h5", tmp_path / "out", given)
    assert np.isfinite(done.record["moments"]["after"]["divergence"])


@pytest.mark.slow
def test_a_readout_of_behaviour_is_frozen_and_gives_that_of_the_day(
    folder: Path, tmp_path: Path
) -> None:
    changes = {"model.behavior_dim": 2, "datamodule.batch_keys": ["behavior"]}
    data = {"datamodule.datafile_pattern": str(folder / "day0.h5"), "trainer.max_epochs": 1}
    run_model({**SMALL, **changes, **data}, run_dir=tmp_path / "run")
    with h5py.File(folder / "day1.h5") as file:
        arrays = {key: file[key][()] for key in file if "behavior" not in key}
    write_session(tmp_path / "blind.h5", arrays, {"bin_ms": 20.0})
    options = AlignOptions(epochs=1, seeds=1, num_samples=1)
    done = align_day(tmp_path / "run", tmp_path / "blind.h5", tmp_path / "out", options)
    old, new = (load_model(tmp_path / name).state_dict() for name in ("run", "out"))
    for name in (key for key in old if key.startswith("behavior")):
        assert torch.equal(old[name], new[name]), name
    with h5py.File(done.result.outputs[0]) as file:
        assert file["valid_behavior_prediction"].shape == (12, 10, 2)


def test_starts_of_the_seeds() -> None:
    assert start_kinds("auto", 6, same_size=True, conditions=False).count("day0") == 2
    assert start_kinds("auto", 6, same_size=True, conditions=False).count("random") == 4
    assert start_kinds("auto", 3, same_size=False, conditions=True) == ["pcr", "random", "random"]
    assert start_kinds("auto", 2, same_size=False, conditions=False) == ["random"] * 2
    with pytest.raises(UserError, match="--conditions"):
        start_kinds("pcr", 2, same_size=True, conditions=False)
    with pytest.raises(UserError, match="same channels"):
        start_kinds("day0", 2, same_size=False, conditions=False)


def silent(arrays: Any) -> Any:
    return {k: v * 0 if k.endswith("_data") else v for k, v in arrays.items()}


def shorter(arrays: Any) -> Any:
    return {k: v[:, :8] for k, v in arrays.items()}


def few(arrays: Any) -> Any:
    return {k: v[:2] for k, v in arrays.items()}


def fewer_channels(arrays: Any) -> Any:
    return {k: v[..., :6] if k.endswith(("_data", "_truth")) else v for k, v in arrays.items()}


def dead_channels(arrays: Any) -> Any:
    for split in ("train", "valid"):
        for data in ("encod_data", "recon_data"):
            arrays[f"{split}_{data}"][..., [1, 4]] = 0
    return arrays


def no_training(arrays: Any) -> Any:
    return {k: v for k, v in arrays.items() if not k.startswith("train")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bin_ms": 10.0}, "has bins of 10 ms, day0.h5 of day 0 has bins of 20 ms"),
        ({"every": shorter}, "windows of 8 bins read and 8 reconstructed, the model is for 10"),
        ({"every": silent}, "no channel changes in any training window"),
        ({"every": few}, "training bins for .* whitened dimensions"),
        ({"every": no_training}, "train_encod_data"),
    ],
)
def test_bad_days_are_refused_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    bad = changed(folder / "day1.h5", tmp_path / "bad.h5", **change)
    code = cli.main(["align", str(folder / "run"), str(bad), "--run-dir", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert code == 2
    said = error[error.index("lfads align: ") :]
    assert re.search(message, said)
    assert "Traceback" not in error


def test_a_day_of_other_channels_starts_at_random_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    day = changed(folder / "day1.h5", tmp_path / "fewer.h5", every=fewer_channels)
    given = ["align", str(folder / "run"), str(day), "--run-dir", str(tmp_path / "out")]
    assert cli.main([*given, "--init", "day0"]) == 2
    assert "the same channels in the same order on both days" in capsys.readouterr().err
    done = align_day(folder / "run", day, tmp_path / "out", QUICK)
    assert [row["init"] for row in done.record["seeds"]] == ["random", "random"]
    assert load_model(tmp_path / "out").readin[0].in_features == 6


def test_few_windows_and_dead_channels_are_warned_of(folder: Path, tmp_path: Path) -> None:
    day = changed(folder / "day1.h5", tmp_path / "dead.h5", every=dead_channels)
    options = AlignOptions(epochs=1, seeds=1, num_samples=1)
    with pytest.warns(DataWarning) as warned:
        done = align_day(folder / "run", day, tmp_path / "out", options)
    said = {str(w.message) for w in warned}
    for text in (
        "dead.h5: 2 of 8 channels do not change in the training windows and read as 0",
        "dead.h5 has 48 training windows; below 200 an alignment is uncertain",
    ):
        assert text in said and text in done.record["warnings"]
    assert done.record["day"]["dead_channels"] == [1, 4]
    weight = load_model(tmp_path / "out").readin[0].linear.weight
    assert not weight[:, [1, 4]].any() and weight.isfinite().all()


def test_a_read_in_that_is_not_linear_is_refused(
    folder: Path, aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bent = shutil.copytree(aligned, tmp_path / "bent")
    status = RunFolder(bent).status
    RunFolder(bent).write_status(**{k: v for k, v in status.items() if k != "alignment"})
    given = [str(bent), str(folder / "day0.h5"), "--run-dir", str(tmp_path / "out")]
    assert cli.main(["align", *given]) == 2
    said = capsys.readouterr().err
    assert "is AlignedReadin, which is not linear; legal are FanInLinear" in said
    assert "Traceback" not in said


def test_bad_options_and_runs(folder: Path, tmp_path: Path) -> None:
    day, out = folder / "day1.h5", tmp_path / "out"
    for wrong, message in (
        ({"divergence": "wasserstein"}, "--divergence"),
        ({"seeds": 0}, "--seeds"),
        ({"weight_moments": 0.0, "weight_nll": 0.0}, "both 0"),
    ):
        with pytest.raises(UserError, match=message):
            AlignOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="mean nothing"):
        align_day(folder / "run", day, out, AlignOptions(epochs=0, init="random"))
    with pytest.raises(UserError, match="no session 'x'"):
        align_day(folder / "run", day, out, AlignOptions(session="x"))
    with pytest.raises(UserError, match="folder of its own"):
        align_day(folder / "run", day, folder / "run", QUICK)
    assert cli.main(["align", "--resume", str(folder / "run")]) == 2
    assert not out.exists()
