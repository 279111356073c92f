"""The command line: help, exit codes, and each command on a tiny recording."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from lfads_torch import __version__, cli
from lfads_torch.commands import COMMANDS, new_run_folder
from lfads_torch.data import write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.folder import RunFolder
from lfads_torch.progress import Line

SMALL = [
    *(f"model.{name}=6" for name in ("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim")),
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "datamodule.batch_size=16",
    "callbacks.raster_plot=null",
    "callbacks.trajectory_plot=null",
    "posterior_sampling.fn.num_samples=2",
]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    write_session(path, lorenz(8, 6, 6, 12, 0.5, seed=1), {"bin_ms": 10.0})
    return path


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["train", f"datamodule.datafile_pattern={data}", "--run-dir", str(folder), *SMALL]
    assert cli.main(arguments) == 0
    return folder


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the command line changes for its whole process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("warnings.showwarning", lambda *_: None)
    monkeypatch.setattr("warnings.filters", [])


def write_broken(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["train_encod_dat"] = np.zeros((2, 3, 4))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"lfads {command}" in text.split("examples:")[1]


def test_help_names_every_command_and_no_command_gives_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^ {{4}}{command}\b", text, re.MULTILINE)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    first, kernels, packages = capsys.readouterr().out.splitlines()
    assert first.startswith(f"lfads-torch {__version__}")
    assert kernels.startswith("kernels in ")
    assert "torch " in packages


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom lfads_torch import cli\n"
        "try:\n    cli.main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'hydra', 'h5py', 'pytorch_lightning', 'matplotlib'}\n"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_help_is_quick() -> None:
    """In seconds of CPU: those of the clock say how busy the machine is."""
    resource = pytest.importorskip("resource", reason="this system does not count them")

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "lfads_torch.cli", "train", "--help"]
        subprocess.run(command, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


def test_train_writes_a_run(run: Path) -> None:
    for name in ("config.yaml", "status.json", "csv_logs/metrics.csv", "lfads_output_sess0.h5"):
        assert (run / name).is_file()


def test_train_by_default_makes_a_new_folder_named_after_the_data(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", f"datamodule.datafile_pattern={data}", *SMALL]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("_tiny")
    out = capsys.readouterr().out
    assert f"run folder: {folder}" in out
    assert f"written: {folder / 'lfads_output_tiny.h5'}" in out


def test_a_run_that_does_not_begin_has_no_folder(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", str(data), "model.gen_dmi=3", "--run-dir", "here"]) == 2
    assert "gen_dim" in (said := capsys.readouterr()).err and "run folder" not in said.out
    assert not (tmp_path / "here").exists()


def test_new_run_folders_never_collide(tmp_path: Path) -> None:
    first = new_run_folder(argparse.Namespace(), "x")

    second = new_run_folder(argparse.Namespace(), "x")
    assert first.is_dir() and second.is_dir() and second != first


def test_a_mistake_of_the_user_is_one_message_and_exit_code_2(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", f"datamodule.datafile_pattern={data}", "model.gen_dmi=3"]
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert "lfads train: model.gen_dmi: " in captured.err
    assert "did you mean gen_dim" in captured.err
    assert "Traceback" not in captured.err
    assert not any((tmp_path / "runs").glob("*/*"))


def test_overrides_may_stand_on_both_sides_of_options(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", f"datamodule.datafile_pattern={data}", "--run-dir", "r", "model.x=1"]
    assert cli.main(arguments) == 2
    assert "model.x" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", "--runn-dir", "r"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: lfads train")
    assert "there is no --runn-dir; did you mean --run-dir?" in error


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--versoin"], "there is no --versoin; did you mean --version?"),
        (["help", "trian"], "there is no command 'trian'; did you mean train?"),
        (["demo", "out"], "no argument 'out' is expected here; where results go is said by --run"),
        (["train", "--epochs", "3"], "did you mean trainer.max_epochs=..."),
        (["train", "--maxepochs=3"], "there is no --maxepochs=3; did you mean trainer.max_epochs"),
        (["train", "--gpu"], "settings are KEY=VALUE"),
        (["pbt", "--num-workers", "3"], "did you mean search.num_workers=...?"),
        (["sample", "r", "--output", "rates.csv"], "rates.csv ends in .csv; legal: .h5, .hdf5"),
        (["report", "r", "--output", "r.pdf"], "r.pdf ends in .pdf; legal: .html"),
        (["evaluate", "r", "--output", "r.csv"], "r.csv ends in .csv; it has to be a folder"),
        (["ensemble", "r", "-o", "mean.h5"], "mean.h5 ends in .h5; it has to be a folder"),
        (["nlb-submit", "r", "--output", "s.json"], "s.json ends in .json; legal: .h5, .hdf5"),
        (["add-session", "r"], "the following arguments are required: FILE\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_answered(
    words: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(words)
    assert exit_.value.code == 2
    assert answer in capsys.readouterr().err


def test_places_of_the_wrong_kind_are_answered(
    data: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(*words: str | Path) -> str:
        assert cli.main(list(map(str, words))) == 2
        return capsys.readouterr().err

    assert "is an HDF5 file, not a checkpoint; name a run folder" in answer("sample", data)
    assert f"--resume {run}" in answer("train", run)
    assert "setting is one word, KEY=VALUE" in answer("train", data, "model.gen_dim", "=", "3")
    assert "did you mean model.gen_dim?" in answer("train", data, "gen_dim=3")
    assert "Did you mean 'tiny.h5'?" in answer("train", data.with_name("tyni.h5"))
    for command in ("sample", "evaluate", "report", "export"):
        assert "in it are the runs run: name one of them" in answer(command, run.parent)
    # Nothing was begun, so nothing can be gone on with.
    assert "--resume" not in answer("train", data, "--run-dir", data)


def test_help_is_a_command_and_runs_stand_on_both_sides_of_options(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["help", "train"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("usage: lfads train")
    options = cli.build_parser().parse_args(["compare", "one", "--quick", "two", "-q"])
    assert options.run_folders == ["one", "two"] and options.quick and options.quiet


def test_a_misspelt_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["-q", "trian"])
    assert exit_.value.code == 2
    assert "there is no command 'trian'; did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["my data.h5", "a=b [1].h5", "größe$x'.h5"])
def test_a_data_file_stands_for_itself(
    data: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_bytes(data.read_bytes())
    assert cli.main(["train", name, "model.gen_dim=7", "--cfg"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["datamodule"]["datafile_pattern"] == str(Path(name).absolute())
    assert config["model"]["gen_dim"] == 7
    assert not Path("runs").exists()


def test_data_files_named_wrongly(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "nothing.h5"]) == 2
    assert "No data file matches 'nothing.h5'" in capsys.readouterr().err
    assert cli.main(["train", str(data), f"datamodule.datafile_pattern={data}"]) == 2
    assert "both name data" in capsys.readouterr().err


def test_configs_lists_what_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    own = Path("configs/model/ours.yaml")
    own.parent.mkdir(parents=True)
    own.write_text("# Our model. It has more.\n_target_: x\n")
    assert cli.main(["configs"]) == 0
    listed = capsys.readouterr().out
    for group in ("--config NAME", "model=NAME", "search=NAME"):
        assert group in listed
    assert re.search(r"ours +Our model\n", listed)
    assert cli.main(["configs", "modle"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_completion_knows_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "nlb-submit" in script
    assert "--chop-ms" in script
    # The shell itself reads it without complaint.
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_configurations_that_cannot_be_read(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("configs/model").mkdir(parents=True)
    Path("configs/model/bad.yaml").write_bytes(b"# gr\xf6\xdfe\n_target_: x\n")
    assert cli.main(["configs", "model"]) == 0
    assert cli.main(["train", str(data), "model=bad", "--cfg"]) == 2
    assert "bad.yaml" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "nothing", "--cfg"]) == 2
    assert "nothing/config.yaml cannot be read" in capsys.readouterr().err


def test_quiet_shows_results_alone(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        assert cli.main(["train", str(data), "--run-dir", "r", "-q", *SMALL]) == 0
    finally:
        Line.is_silent = False
    shown = capfd.readouterr()
    assert shown.err == ""
    assert "next: lfads report r" in shown.out


def quiet_words(command: str, data: Path, run: Path) -> list[str]:
    """Return arguments with which a command does its work on tiny data, in the working folder."""
    members = ["trainer.max_epochs=2", "search.burn_in_period=0", "search.perturbation_interval=1"]
    if command == "prep":
        np.savez("binned.npz", spikes=np.random.default_rng(0).poisson(0.5, (12, 20, 6)))
    if command in ("align-init", "add-session", "nlb-submit"):
        session = lorenz(8, 6, 6, 12, 0.5, seed=2, heldout_units=2)
        session |= {
            f"{split}_condition": session[f"{split}_cond_idx"] for split in ("train", "valid")
        }
        write_session(Path("other.h5"), session, {"bin_ms": 10.0})
    if command in ("merge", "split"):
        from lfads_torch.prep import chop_recording

        counts = np.random.default_rng(0).poisson(0.5, (400, 6))
        arrays, attributes = chop_recording(
            {"encod_data": counts, "recon_data": counts}, window=12, overlap=4
        )
        write_session(Path("chopped.h5"), arrays, attributes)
    if command in ("compare", "ensemble"):
        shutil.copytree(run, "again")
    words: dict[str, list[str]] = {
        "demo": ["--conditions", "4", "--trials", "5", "--epochs", "1", "--run-dir", "d"],
        "prep": ["binned.npz", "-o", "p.h5", "--axes", "trial,time,unit", "--input-bin-ms", "10"],
        "train": [str(data), "--run-dir", "t", *SMALL],
        "pbt": [str(data), "--run-dir", "b", *SMALL, *members, "search.num_workers=2"],
        "search": [str(data), "--run-dir", "s", *SMALL, "search.num_samples=2"],
        "sample": [str(run), "--samples", "1", "--output", "o.h5"],
        "evaluate": [str(run), "--draws", "5", "--no-baselines", "--output", "."],
        "report": [str(run), "--quick", "--output", "r.html"],
        "compare": [str(run), "again", "--quick", "--output", "c.html"],
        "export": [str(run), "e.nwb"],
        "configs": ["model"],
        "completion": ["bash"],
        "nlb-submit": [str(run)],
        "check": [str(data)],
        "repack": [str(data), "-o", "n.h5"],
        "merge": ["chopped.h5"],
        "align-init": [str(data), "other.h5", "--components", "3"],
        "add-session": [str(run), "other.h5"],
        "align": [str(run), str(data), "--epochs", "0", "--run-dir", "a", "--samples", "1"],
        "decode": [str(run), "--behavior", "encod_data", "--lags", "0"],
        "stream": [str(run), "--data", str(data), "--bins", "30"],
        "ensemble": [str(run), "again", "-o", "mean", "--samples", "1"],
        "split": ["chopped.h5", "-o", "split.h5", "--by", "blocks"],
    }
    return words[command]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(c, marks=pytest.mark.slow)
        if c in ("demo", "search", "add-session", "compare")
        else c
        for c in COMMANDS
    ],
)
def test_every_command_obeys_quiet(
    command: str, data: Path, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        status = cli.main([command, *quiet_words(command, data, run), "-q"])
    finally:
        Line.is_silent = False
    shown = capfd.readouterr()
    # What is missing here (an extra, data of the benchmark) is said, and nothing else.
    errors = [line for line in shown.err.splitlines() if not line.startswith(f"lfads {command}: ")]
    assert errors == []
    assert status == 0 or command in ("export", "completion", "nlb-submit"), shown.err


def test_a_named_output_is_never_replaced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.h5").write_text("mine")
    arguments = ["sample", str(run), "--samples", "1", "--output", "mine.h5"]
    assert cli.main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert Path("mine.h5").read_text() == "mine"
    assert cli.main([*arguments, "--overwrite"]) == 0
    assert h5py.is_hdf5("mine.h5")


def test_an_occupied_folder_is_refused_with_advice(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", f"datamodule.datafile_pattern={data}", "--run-dir", str(run), *SMALL]
    assert cli.main(arguments) == 2
    assert f"lfads train --resume {run}" in capsys.readouterr().err


def test_resume_goes_with_nothing_else(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--resume", str(run), "--overwrite"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main(["train", "--resume", str(run)]) == 0
    assert cli.main(["train", "--resume", "nowhere"]) == 2


def test_ctrl_c_says_how_to_resume(
    monkeypatch: pytest.MonkeyPatch, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    # By the module itself: the package has a function of the same name.
    monkeypatch.setattr(import_module("lfads_torch.run_model"), "run_model", interrupted)
    place = Path("somewhere").absolute()
    assert cli.main(["train", "--run-dir", "somewhere"]) == cli.INTERRUPTED == 130
    assert "--resume" not in capsys.readouterr().err  # nothing was begun
    place.mkdir()
    RunFolder(place).write_status("training")
    assert cli.main(["train", "--run-dir", "somewhere"]) == cli.INTERRUPTED
    assert f"lfads train --resume {place}" in capsys.readouterr().err


@pytest.mark.parametrize("which", ["--best", "--last"])
def test_sample_on_new_trials(
    which: str, run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new.h5"
    write_session(new, lorenz(4, 4, 6, 12, 0.5, seed=2))
    output = tmp_path / "rates.h5"
    arguments = ["sample", str(run), "--data", str(new), "--samples", "2", "--output", str(output)]
    assert cli.main([*arguments, which]) == 0
    written = tmp_path / "rates.h5"
    assert f"written: {written}" in capsys.readouterr().out
    with h5py.File(written) as file, h5py.File(new) as source:
        assert file["valid_output_params"].shape == source["valid_recon_data"].shape
        assert Path(file.attrs["run"]) == run


def test_sample_on_the_runs_own_data_and_from_a_checkpoint(run: Path) -> None:
    output = run / "lfads_output_tiny.h5"
    before = output.stat().st_mtime_ns
    assert cli.main(["sample", str(run), "--samples", "2"]) == 0
    assert output.stat().st_mtime_ns > before
    checkpoint = run / "lightning_checkpoints" / "last.ckpt"
    assert cli.main(["sample", str(checkpoint), "--samples", "1"]) == 0


def test_sample_refuses_what_does_not_fit(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.h5"
    write_session(other, lorenz(4, 4, 7, 12, 0.5, seed=2))
    assert cli.main(["sample", str(run), "--data", str(other)]) == 2
    assert "other.h5" in capsys.readouterr().err
    assert cli.main(["sample", str(tmp_path)]) == 2
    assert "no checkpoint" in capsys.readouterr().err
    assert cli.main(["sample", str(run), "--samples", "0"]) == 2


def test_check_reports_and_its_exit_code_tells(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", str(data)]) == 0
    assert "train_encod_data" in capsys.readouterr().out
    broken = write_broken(tmp_path / "broken.h5")
    assert cli.main(["check", str(data), str(broken)]) == 1
    out = capsys.readouterr().out
    assert "train_encod_data" in out and "train_encod_dat" in out
    assert cli.main(["check", str(data), str(tmp_path / "none.h5")]) == 2
    assert "No data file matches" in capsys.readouterr().err


def test_demo_scores_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    options = "--conditions 6 --trials 5 --units 5 --bins 12 --mean-rate 0.5 --epochs 1 --seed 3"
    assert cli.main(["demo", *options.split(), "--run-dir", str(folder)]) == 0
    out = capsys.readouterr().out
    for name in ("bits per spike", "R2 of rates", "R2 of latents"):
        assert name in out
    figures = sorted(path.name for path in (folder / "figures").glob("demo_*.png"))
    assert figures == ["demo_attractor.png", "demo_rates.png", "demo_training.png"]
    assert all(str(folder / "figures" / name) in out for name in figures)
    assert cli.main(["demo", *options.split(), "--run-dir", str(folder)]) == 2
    assert "already holds a finished run" in capsys.readouterr().err
    assert cli.main(["demo", "--units", "0", "--run-dir", str(tmp_path / "d")]) == 2
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "command", [["train", "--resume"], ["sample"], ["train", "--run-dir", "new", "--config"]]
)
def test_a_damaged_configuration_is_told_without_a_traceback(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    (run / "lightning_checkpoints").mkdir(parents=True)
    (run / "lightning_checkpoints" / "last.ckpt").write_bytes(b"\x80")
    (run / "status.json").write_text('{"stage": "training"}')
    (run / "config.yaml").write_text("model: [1")
    place = run / "config.yaml" if command[-1] == "--config" else run
    assert cli.main([*command, str(place)]) == 2
    told = capsys.readouterr().err
    assert "is no YAML" in told and "line 1" in told
