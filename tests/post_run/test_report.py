"""Reports: complete, self-contained, true to the run, and patient with whatever is missing."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lfads_torch import cli
from lfads_torch.data import write_session
from lfads_torch.errors import UserError
from lfads_torch.folder import POPULATION
from lfads_torch.post_run.evaluation import evaluate_run
from lfads_torch.post_run.evaluation.behavior import Keys
from lfads_torch.post_run.report import Wanted, compare_runs, pictures, read_run, report_run
from lfads_torch.post_run.report.comparison import differing_settings, distinct_names
from lfads_torch.post_run.report.page import number
from lfads_torch.post_run.report.pictures import session_pictures
from lfads_torch.post_run.report.single import commands, run_facts
from lfads_torch.run_model import run_model
from tests.post_run.outputs_of import arrays, write_run
from tests.post_run.pages import CHROMIUM, Page, in_browser, size_of

SMALL: dict[str, Any] = {
    "trainer": {"max_epochs": 2, "enable_progress_bar": False, "accelerator": "cpu"},
    "model": {
        **dict.fromkeys(("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim"), 6),
        **{"fac_dim": 3, "co_dim": 2, "kl_increase_epoch": 1, "l2_increase_epoch": 1},
    },
    "callbacks": {"raster_plot": None, "trajectory_plot": None},
    "posterior_sampling.fn.num_samples": 2,
}
N_FIGURES = 10 + 2 + 4  # of the first session, of the second as `report` draws it, of the run
DATA_KEYS = ("encod_data", "recon_data", "truth", "latents", "behavior", "cond_idx")


def session_data(seed: int) -> dict[str, Any]:
    found = arrays(seed=seed)
    names = [key for key in found if key.partition("_")[2] in DATA_KEYS]
    return {key: np.asarray(found[key]) for key in names}


@pytest.fixture(scope="module", autouse=True)
def _coarse() -> Iterator[None]:
    """Few pixels: most of the time goes into them, and no test looks at one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lfads_torch.post_run.report.page.DPI", 36)
        yield


@pytest.fixture
def _unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not rendered, as those of `report` are."""
    address = "data:image/png;base64,"
    monkeypatch.setattr("lfads_torch.post_run.report.page._data_address", lambda figure: address)


@pytest.fixture
def _sketched(monkeypatch: pytest.MonkeyPatch, _unrendered: None) -> None:
    """Only some figures of a session, not rendered."""
    monkeypatch.setattr(pictures, "MAKERS", pictures.MAKERS[:3])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two sessions, with all that a data file can hold."""
    folder = tmp_path_factory.mktemp("trained")
    for day in range(2):
        write_session(folder / f"day{day}.h5", session_data(day), {"bin_ms": 10.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        overrides = {"datamodule.datafile_pattern": str(folder / "day*.h5"), **SMALL}
        run_model(overrides, config_path="multi.yaml", run_dir=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def report(trained: Path) -> Path:
    """All figures of the first session, two of the second."""

    def chosen(record: Any, recording: Any) -> list[Any]:
        found = session_pictures(record, recording)
        if recording is record.recordings[0]:
            return found
        return [picture for picture in found if picture.key in ("rates", "psths")]

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr("lfads_torch.post_run.report.single.session_pictures", chosen)
        return report_run(trained, figures=trained / "talk").path


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report)


class TestPage:
    def test_is_well_formed(self, page: Page) -> None:
        assert page.faults == []
        assert len(page.ids) == len(set(page.ids))
        anchors = [r[1:] for r in page.references if r.startswith("#")]
        assert set(anchors) <= set(page.ids)
        assert len(anchors) > 20
        assert page.source.startswith("<!DOCTYPE html>")

    def test_loads_nothing_and_runs_nothing(self, page: Page) -> None:
        assert all(r.startswith(("#", "data:image/png;base64,")) for r in page.references)
        assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
        assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
        assert "@import" not in page.source
        assert "url(" not in page.source
        policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
        assert policy.startswith("default-src 'none'")

    def test_every_figure_is_there_for_light_and_dark(self, page: Page) -> None:
        assert "could not be drawn" not in page.text
        kinds = [kind for kind, _ in page.images]
        assert kinds.count("light") == kinds.count("dark") == N_FIGURES
        sizes = [size_of(png) for _, png in page.images]
        assert sizes[::2] == sizes[1::2], "the same figure twice"
        assert all(
            attrs["media"] == "screen and (prefers-color-scheme: dark)"
            for tag, attrs in page.tags
            if tag == "source"
        )
        assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")

    def test_holds_scores_sessions_settings_and_commands(self, trained: Path, page: Page) -> None:
        scores = json.loads((trained / "scores.json").read_text())
        for row in ("lfads", "smoothing", "factor_analysis"):
            for estimate in scores["scores"][row].values():
                assert number(estimate["value"]) in page.text
        for words in ("day0", "day1", "held out", "LFADS rates", "smoothed spikes", "co-bps"):
            assert words in page.text
        for heading in ("Spikes, rates and inferred inputs", "Responses by condition"):
            assert page.text.count(heading) >= 2 * 2
        assert (trained / "config.yaml").read_text() in page.text.replace("\xa0", " ") or all(
            line.strip() in page.text for line in (trained / "config.yaml").read_text().splitlines()
        )
        environment = json.loads((trained / "status.json").read_text())["environment"]
        assert environment["packages"]["torch"] in page.text
        assert "lfads train --config config.yaml" in page.text

    def test_figures_as_files(self, report: Path) -> None:
        files = sorted(path.name for path in (report.parent / "talk").iterdir())
        assert "day0_rates.png" in files
        assert "training.png" in files
        assert len(files) == N_FIGURES

    def test_scores_are_computed_once(self, trained: Path, report: Path) -> None:
        stamp = (trained / "scores.json").stat().st_mtime_ns
        assert read_run(trained).scores is not None
        assert (trained / "scores.json").stat().st_mtime_ns == stamp

    def test_the_command_that_it_gives_reproduces_the_run(
        self, trained: Path, tmp_path: Path
    ) -> None:
        shutil.copy(trained / "config.yaml", tmp_path)
        again = tmp_path / "again"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            command = ["train", "--config", str(tmp_path / "config.yaml"), "--run-dir", str(again)]
            assert cli.main(command) == 0
        first, second = (read_run(p, Wanted(quick=True)) for p in (trained, again))
        for name in ("train/loss", "valid/recon_smth"):
            assert np.array_equal(first.log[name][1], second.log[name][1])


@pytest.mark.usefixtures("_sketched")
@pytest.mark.parametrize("split", ["test", "select"])
def test_scores_of_other_trials(tmp_path: Path, split: str) -> None:
    """What `lfads evaluate --split` left is shown, and named."""
    run = write_run(tmp_path, arrays(splits=("train", "valid", split)))
    evaluate_run(run, split=split, n_draws=0, baselines=False).write(run)
    text = report_run(run, wanted=Wanted(quick=True)).path.read_text()
    assert f"<p>{split.capitalize()} trials" in text


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_opens_in_a_browser_without_errors(report: Path, tmp_path: Path, dark: bool) -> None:
    seen = in_browser(report, tmp_path, dark=dark, width=700 if dark else 1400)
    assert seen["errors"] == "[]"
    assert seen["console"] == ""
    assert seen["broken"] == "0"
    assert int(seen["images"]) == N_FIGURES
    assert seen["other"] == (seen["images"] if dark else "0"), "figures follow the reader's choice"
    assert seen["wide"] == "0", "nothing runs out of the page to the right"


class TestMissing:
    """Whatever a folder lacks is said, and the rest is shown."""

    @pytest.mark.usefixtures("_unrendered")
    def test_outputs_alone(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "<b>run</b>", arrays())
        page = Page(report_run(run, wanted=Wanted(quick=True)).path)
        assert page.faults == []
        assert "<b>run</b>" in page.text, "names are escaped"
        assert "The training log cannot be read" in page.text
        assert "There is no config.yaml" in page.text
        assert "could not be drawn" not in page.text
        assert "Responses by condition" in page.text

    def test_values_are_not_called_spikes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _unrendered: None
    ) -> None:
        monkeypatch.setattr(pictures, "MAKERS", pictures.MAKERS[:2])
        found = arrays()
        for key in [key for key in found if key.endswith(("recon_data", "encod_data"))]:
            found[key] = found[key] + 0.5
        text = Page(report_run(write_run(tmp_path / "run", found)).path).text
        assert "smoothed data" in text and "Data and means" in text
        assert "smoothed spikes" not in text and "single spike" not in text

    @pytest.mark.usefixtures("_unrendered")
    def test_behaviour_that_the_model_reads_out(self, tmp_path: Path) -> None:
        found = arrays()
        for split in ("train", "valid"):  # read out of all bins, observed in those that are read
            read_out = np.pad(found[f"{split}_behavior"], ((0, 0), (0, 3), (0, 0)))
            found[f"{split}_behavior_prediction"] = read_out
        record = read_run(write_run(tmp_path / "run", found, behavior="x (mm), y (mm)"))
        shown = {p.key: p for p in session_pictures(record, record.recordings[0])}
        figure = shown["readout"].draw()
        assert [axis.get_ylabel() for axis in figure.axes[::2]] == ["x (mm)", "y (mm)"]
        assert figure.axes[1].get_title() == "R² = 1.00"

    @pytest.mark.parametrize(
        ("method", "command"), [("pbt", "pbt"), ("random", "search"), ("halving", "search")]
    )
    def test_a_search_is_made_by_its_own_command_and_configuration(
        self, tmp_path: Path, method: str, command: str
    ) -> None:
        search = tmp_path / "two words"
        write_run(search / "best_model", arrays())
        (search / "best_model" / "config.yaml").write_text("seed: 5")
        (search / "config.yaml").write_text("seed: 1\nsearch: {}")
        (search / "status.json").write_text(
            json.dumps({"stage": "complete", "search": method, "seed": 1})
        )
        record = read_run(search, Wanted(quick=True))
        assert record.config_text == "seed: 1\nsearch: {}"
        what, line = commands(record)[0]
        assert line == f"lfads {command} --config config.yaml --run-dir 'runs/two words_again'"
        assert "the seed, 1," in what

    @pytest.mark.parametrize(("method", "by"), [("pbt", "epoch"), ("random", "lr_init")])
    def test_a_search_is_shown_by_the_score_that_chose(
        self, tmp_path: Path, method: str, by: str
    ) -> None:
        write_run(tmp_path / "best_model", arrays())
        score = "valid/co_bps_smth"
        (tmp_path / "best_model" / "config.yaml").write_text(f"select_by: {score}")
        (tmp_path / "status.json").write_text(json.dumps({"stage": "complete", "search": method}))
        (tmp_path / POPULATION).write_text(
            f"epoch,generation,member,parent,diverged,hp/lr_init,valid/recon_smth,{score}\n"
            "0,0,0,0,0,0.1,1.0,0.5\n0,0,1,1,0,0.2,0.5,0.25\n"
        )
        scores, paths = pictures.run_pictures(read_run(tmp_path, Wanted(quick=True)))
        for picture in (scores, paths):
            [axis] = picture.draw().axes
            drawn = [line.get_xydata()[-1, -1] for line in axis.lines if len(line.get_xydata())]
            drawn += [dots.get_offsets()[0, -1] for dots in axis.collections]
            if picture is scores or method == "random":
                assert 0.5 in drawn and 1.0 not in drawn, picture.title
        assert "held-out bits/spike" in scores.caption
        assert axis.get_xlabel() == by

    def test_an_ensemble_lacks_nothing_that_it_cannot_have(self, tmp_path: Path) -> None:
        folder = write_run(tmp_path / "mean", arrays())
        (folder / "status.json").write_text(json.dumps({"stage": "complete", "ensemble": 1}))
        members = [{"run": "/runs/a b", "name": "a b", "count": 3}]
        members += [{"run": "/runs/c"}, {"run": "/runs/c"}, {"run": None, "name": "library"}]
        (folder / "ensemble.json").write_text(json.dumps({"members": members}))
        record = read_run(folder, Wanted(quick=True))
        assert record.absent == [] and record.model is None
        lines = [line for _, line in commands(record)]
        assert lines[0] == "lfads ensemble '/runs/a b' /runs/c -o runs/mean_again"
        assert not any("sample" in line for line in lines)
        assert "a b (3), /runs/c (1)" in dict(run_facts(record))["models (how often each counts)"]
        page = report_run(folder, wanted=Wanted(quick=True)).path.read_text(encoding="utf-8")
        assert "Configuration" not in page

    def test_no_outputs_yet(self, trained: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(trained / "csv_logs", run / "csv_logs")
        (run / "status.json").write_text('{"stage": "training", "stopped": "the loss is NaN"}')
        report = report_run(run)
        page = Page(report.path)
        assert report.findings[0].title == "Training stopped"
        assert "There are no outputs to look at" in page.text
        assert "KL" in page.text

    @pytest.mark.usefixtures("_sketched")
    def test_broken_files(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", arrays())
        (run / "config.yaml").write_text("a: [1\n b")
        (run / "scores.json").write_text("{")
        (run / "lightning_checkpoints").mkdir()
        (run / "lightning_checkpoints" / "last.ckpt").write_bytes(b"junk")
        (run / "csv_logs").mkdir()
        (run / "csv_logs" / "metrics.csv").write_text("no,epochs\n1,2\n")
        page = Page(report_run(run, tmp_path / "page.html", Wanted(quick=True)).path)
        assert "config.yaml cannot be read" in page.text
        assert "The model cannot be loaded" in page.text
        assert "no column 'epoch'" in page.text

    @pytest.mark.usefixtures("_sketched")
    def test_a_figure_that_fails_leaves_the_rest(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError("as if")

        monkeypatch.setattr("lfads_torch.post_run.plots.raster_panel", fail)
        run = write_run(tmp_path / "run", arrays())
        page = Page(report_run(run, wanted=Wanted(quick=True)).path)
        assert "could not be drawn (ZeroDivisionError: as if)" in page.text
        assert "Responses by condition" in page.text

    def test_one_trial_one_unit_and_nan(self, tmp_path: Path) -> None:
        data = {
            f"{split}_{name}": np.full(shape, fill, np.float32)
            for split in ("train", "valid")
            for name, shape, fill in (
                ("encod_data", (1, 4, 1), 0.0),
                ("recon_data", (1, 4, 1), 0.0),
                ("output_params", (1, 4, 1), np.nan),
                ("factors", (1, 4, 1), 0.0),
                ("ic_mean", (1, 2), 0.0),
                ("ic_std", (1, 2), 1.0),
                ("co_means", (1, 4, 1), 1.0),
                ("co_stds", (1, 4, 1), 1.0),
                ("gen_states", (1, 4, 2), 0.0),
                ("behavior", (1, 4, 1), 0.0),
            )
        }
        report = report_run(write_run(tmp_path / "run", data))
        titles = {f.title for f in report.findings}
        assert {"Rates are not finite", "Silent channels", "Few validation trials"} <= titles
        assert "could not be drawn" not in Page(report.path).text

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda path: path / "nowhere", "is no folder"),
            (lambda path: path, "holds no run"),
        ],
    )
    def test_no_run(self, tmp_path: Path, make: Any, message: str) -> None:
        with pytest.raises(UserError, match=message):
            report_run(make(tmp_path))

    @pytest.mark.parametrize(
        ("wanted", "message"),
        [
            (Wanted(Keys(condition="targt")), "targt"),
            (Wanted(event="go"), "has no 'go'"),
            (Wanted(event="behavior"), "one bin for each"),
        ],
    )
    def test_keys_that_are_not_there(self, tmp_path: Path, wanted: Wanted, message: str) -> None:
        data = arrays() | {
            f"{s}_co_means": np.ones((n, 15, 1)) for s, n in (("train", 60), ("valid", 30))
        }
        with pytest.raises(UserError, match=message):
            report_run(write_run(tmp_path / "run", data), wanted=wanted)

    def test_an_event_in_ms_needs_a_bin_width(self, tmp_path: Path) -> None:
        data = arrays() | {
            f"{s}_co_means": np.ones((n, 15, 1)) for s, n in (("train", 60), ("valid", 30))
        }
        run = write_run(tmp_path / "run", data, bin_ms=None)
        with pytest.raises(UserError, match="--bin-ms"):
            report_run(run, wanted=Wanted(event_ms=50, quick=True))

    def test_an_unknown_format(self, trained: Path) -> None:
        with pytest.raises(UserError, match="figure_format is 'pgn'; did you mean png"):
            report_run(trained, figure_format="pgn")


def with_setting(trained: Path, folder: Path, **model: Any) -> Path:
    """A copy of a run with another configuration."""
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("talk", "*.html"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"].update(model)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


class TestCompare:
    @pytest.mark.slow
    def test_page(self, trained: Path, report: Path, tmp_path: Path) -> None:
        other = with_setting(trained, tmp_path / "run2", dropout_rate=0.123)
        written = compare_runs([trained, other], tmp_path / "both.html")
        page = Page(written.path)
        assert page.faults == []
        assert len(page.ids) == len(set(page.ids))
        assert all(r.startswith(("#", "data:image/png")) for r in page.references)
        assert "model.dropout_rate" in page.text
        assert "0.123" in page.text
        assert "model.gen_dim" not in page.text, "settings that agree are left out"
        assert "do not compare" not in page.text
        assert page.text.count("Validation trials: what was recorded") >= 2
        if CHROMIUM is not None:
            seen = in_browser(written.path, tmp_path)
            assert (seen["errors"], seen["broken"], seen["wide"]) == ("[]", "0", "0")

    @pytest.mark.usefixtures("_sketched")
    def test_other_trials_are_told(self, tmp_path: Path) -> None:
        one = write_run(tmp_path / "one", arrays())
        two = write_run(tmp_path / "two", arrays(), arrays(seed=1))
        wanted = Wanted(quick=True)
        page = Page(compare_runs([one, two], tmp_path / "both.html", wanted).path)
        assert "not scored on the same trials (one: 30 trials of day0; two:" in page.text

    def test_settings_by_hand(self, tmp_path: Path) -> None:
        records = [read_run(write_run(tmp_path / n, arrays()), Wanted(quick=True)) for n in "ab"]
        records[0].config = {"x": 1, "list": [{"_target_": "A"}], "same": {"y": 2}}
        records[1].config = {"x": 1.5, "list": [{"_target_": "B"}, {}], "same": {"y": 2}}
        found = dict(differing_settings(["a", "b"], records))
        assert found == {
            "x": ["1", "1.5"],
            "list.0._target_": ["A", "B"],
            "list.1": ["\u2013", "{}"],
        }

    def test_names_tell_runs_apart(self) -> None:
        paths = [Path("/r/one/best"), Path("/r/two/best")]
        assert distinct_names(paths) == ["one/best", "two/best"]
        assert distinct_names([Path("/r/one"), Path("/r/two")]) == ["one", "two"]

    def test_mistakes(self, trained: Path) -> None:
        with pytest.raises(UserError, match="two runs or more"):
            compare_runs([trained])
        with pytest.raises(UserError, match="named twice"):
            compare_runs([trained, trained])


@pytest.mark.usefixtures("_sketched")
class TestCommands:
    def test_report(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = write_run(tmp_path / "run", arrays())
        target = tmp_path / "page.html"
        assert cli.main(["report", str(run), "--quick", "--output", str(target)]) == 0
        out = capsys.readouterr().out
        assert f"written: {target}" in out
        assert not (run / "scores.json").exists(), "scores without baselines are not kept"
        assert cli.main(["report", str(tmp_path)]) == 2
        assert "holds no run" in capsys.readouterr().err

    def test_compare(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        runs = [str(write_run(tmp_path / name, arrays())) for name in ("one", "two")]
        target = tmp_path / "both.html"
        assert cli.main(["compare", *runs, "--quick", "--cross", "--output", str(target)]) == 0
        assert "one" in Page(target).text
        assert "R2 of ... from one two mean" in " ".join(Page(target).text.split())
        assert cli.main(["compare", runs[0]]) == 2
        assert "two runs or more" in capsys.readouterr().err
