"""Run folders and checkpoints of a stranger run no code, read no secret, and delete no file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from torch import nn

from lfads_torch import cli, load_model, run_model
from lfads_torch.consent import is_known_part, sign
from lfads_torch.data import check_file, write_session
from lfads_torch.errors import DataWarning, UserError
from lfads_torch.modules.priors import MultivariateNormal
from lfads_torch.post_run.report import Wanted, report_run
from lfads_torch.post_run.report.page import Press, Shown
from lfads_torch.runs.sampling import sample_run
from lfads_torch.search.seeds import train_seeds
from lfads_torch.sessions.add import add_session

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL: dict[str, Any] = {
    **{f"model.{name}": 4 for name in ("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim")},
    "model.fac_dim": 3,
    "model.co_dim": 1,
    "trainer.max_epochs": 1,
    "trainer.accelerator": "cpu",
    "callbacks.raster_plot": None,
    "callbacks.trajectory_plot": None,
    "logger.tensorboard": None,
    "posterior_sampling.fn.num_samples": 2,
}
#: A lab's own part, whose file leaves a mark when it is imported.
PART = """
from pathlib import Path
from lfads_torch.modules.priors import MultivariateNormal
Path(__file__).with_name("MARK").touch()
class Prior(MultivariateNormal):
    pass
def call(**kwargs):
    return 0
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its data beside it."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    counts = {}
    for split in ("train", "valid"):
        spikes = rng.poisson(1.0, (6, 5, 3)).astype("f4")
        counts |= {f"{split}_encod_data": spikes, f"{split}_recon_data": spikes}
    write_session(folder / "data.h5", counts)
    write_session(folder / "other.h5", counts)
    overrides = {**SMALL, "datamodule.datafile_pattern": str(folder / "data.h5")}
    run_model(overrides, run_dir=folder / "run")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a copy of the run and ``labmod.py``, as a download leaves them."""
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copy(made / "other.h5", tmp_path)
    (tmp_path / "labmod.py").write_text(PART)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("labmod", None)


def tampered(run: Path, key: str, value: Any) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    *parents, last = key.split(".")
    node = config
    for name in parents:
        node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
    node[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


class Pickled:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"echo > {self.mark}",)


def bomb(place: Path) -> str:
    torch.save(Pickled(place / "MARK"), place / "bomb.pt")
    np.save(place / "bomb.npy", np.array([Pickled(place / "MARK")], dtype=object))
    return str(place / "bomb.pt")


def sample(run: Path, **more: Any) -> None:
    sample_run(run, num_samples=2, **more)


def resume(run: Path, **more: Any) -> None:
    run_model({"trainer.max_epochs": 2}, run_dir=run, resume=True, **more)


def add(run: Path, **more: Any) -> None:
    add_session(run, run.with_name("other.h5"), run.with_name("added"), epochs=1, **more)


def resume_seeds(run: Path, **more: Any) -> None:
    """Go on with the seeds of a folder that has the configuration of a run."""
    folder = run.with_name("seeds")
    folder.mkdir(exist_ok=True)
    shutil.copy(run / "config.yaml", folder)
    (folder / "status.json").write_text('{"stage": "training", "seeds": ["seed0"]}')
    train_seeds({"trainer.max_epochs": 1}, run_dir=folder, resume=True, **more)


COMMANDS: dict[str, Callable[..., None]] = {
    "sample": sample,
    "resume": resume,
    "add": add,
    "seeds": resume_seeds,
}

# Key, value (a function of the working directory), and the word by which the refusal names it.
IN_DATA: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "torch.load": (
        "datamodule.sv_seed",
        lambda p: {"_target_": "torch.load", "f": bomb(p), "weights_only": False},
        "torch.load",
    ),
    "numpy.load": (
        "datamodule.sv_seed",
        lambda p: {"_target_": "numpy.load", "file": bomb(p)[:-2] + "npy", "allow_pickle": True},
        "numpy.load",
    ),
    "write_text": (
        "datamodule.sv_seed",
        lambda p: {
            "_target_": "pathlib.Path.write_text",
            "_args_": [{"_target_": "pathlib.Path", "_args_": [str(p / "MARK")]}, "x"],
        },
        "pathlib.Path.write_text",
    ),
    "os.system": (
        "datamodule.sv_seed",
        lambda p: {"_target_": "os.system", "command": f"touch {p}/MARK"},
        "os.system",
    ),
    "a method of a known class": (
        "datamodule.sv_seed",
        lambda p: {
            "_target_": "lfads_torch.model.LFADS.load_from_checkpoint",
            "checkpoint_path": bomb(p),
            "weights_only": False,
        },
        "load_from_checkpoint",
    ),
    "what a module imports": (
        "datamodule.sv_seed",
        lambda p: {"_target_": "lfads_torch.modules.recons.torch.load", "f": bomb(p)},
        "recons.torch.load",
    ),
    "a function of this package": (
        "datamodule.batch_keys",
        lambda p: [
            {"_target_": "lfads_torch.files.write_whole", "path": str(p / "MARK"), "content": "x"}
        ],
        "lfads_torch.files.write_whole",
    ),
    "a class of torch that is no module": (
        "datamodule.sv_rate",
        lambda p: {"_target_": "torch.utils.cpp_extension.load", "name": "x", "sources": []},
        "torch.utils.cpp_extension.load",
    ),
    "a function below torch.nn": (
        "datamodule.sv_rate",
        lambda p: {"_target_": "torch.nn.utils.parameters_to_vector", "parameters": []},
        "torch.nn.utils",
    ),
    "partial": (
        "datamodule.sv_seed",
        lambda p: {"_target_": "functools.partial", "_partial_": True, "_args_": ["x"]},
        "functools.partial",
    ),
    "hydra's own": (
        "datamodule.sv_seed",
        lambda p: {"_target_": "hydra.utils.get_method", "path": "labmod.call"},
        "hydra.utils.get_method",
    ),
    "in the pattern of the data": (
        "datamodule.datafile_pattern",
        lambda p: [{"_target_": "labmod.call"}, "x.h5"],
        "labmod.call",
    ),
    "a reference in the pattern of the data": (
        "datamodule.datafile_pattern",
        lambda p: "${oc.env:HOME}/x.h5",
        "${oc.env:HOME}",
    ),
    "another data module": ("datamodule._target_", lambda p: "labmod.Data", "labmod.Data"),
    "a list as target": ("datamodule.sv_seed", lambda p: {"_target_": ["os.system"]}, "os.system"),
    "deep in a list": (
        "datamodule.attr_keys",
        lambda p: [["a", {"b": [{"_target_": "labmod.call"}]}]],
        "labmod.call",
    ),
    "an environment variable": (
        "datamodule.batch_keys",
        lambda p: ["${oc.env:HOME}"],
        "${oc.env:HOME}",
    ),
}
ELSEWHERE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "a callback": (
        "callbacks.mine",
        lambda p: {"_target_": "labmod.call"},
        "labmod.call",
    ),
    "a callback that runs functions": (
        "callbacks.mine",
        lambda p: {
            "_target_": "pytorch_lightning.callbacks.LambdaCallback",
            "on_fit_start": {"_target_": "labmod.call", "_partial_": True},
        },
        "LambdaCallback",
    ),
    "a logger that sends": (
        "logger.wandb_logger",
        lambda p: {"project": "theirs"},  # its name alone says what it is
        "WandbLogger",
    ),
    "checkpoints elsewhere": (
        "callbacks.model_checkpoint.dirpath",
        lambda p: str(p / "elsewhere"),
        "elsewhere",
    ),
    "checkpoints above": ("callbacks.model_checkpoint.filename", lambda p: "../../MARK", "MARK"),
    "logs on a server": ("logger.csv.save_dir", lambda p: "s3://bucket", "s3://bucket"),
    "a plug-in": ("trainer.plugins", lambda p: [{"_target_": "labmod.call"}], "labmod.call"),
    "an optimiser": (
        "model.lr_init",
        lambda p: {"_target_": "torch.optim.swa_utils.AveragedModel"},
        "torch.optim",
    ),
    "other configurations": ("defaults", lambda p: ["_self_"], "defaults"),
    "settings of Hydra": ("hydra", lambda p: {"searchpath": ["pkg://labmod"]}, "hydra"),
    "sampling": ("posterior_sampling.fn._target_", lambda p: "labmod.call", "labmod.call"),
    "consent in the folder": (
        "model",
        lambda p: {
            "_target_": "lfads_torch.checkpoint.load_model",
            "path": "lightning_checkpoints/last.ckpt",
            "trust": True,
        },
        "model.trust",
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", IN_DATA)
def test_data_of_a_stranger_run_nothing(case: str, command: str, place: Path) -> None:
    key, value, word = IN_DATA[case]
    tampered(place / "run", key, value(place))
    with pytest.raises(UserError) as error:
        COMMANDS[command](place / "run")
    assert word in str(error.value) and "--trust" in str(error.value)
    assert not (place / "MARK").exists() and "labmod" not in sys.modules


@pytest.mark.parametrize("command", [resume, resume_seeds])
@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_resumed_run_of_a_stranger_runs_nothing(
    case: str, command: Callable[..., None], place: Path
) -> None:
    key, value, word = ELSEWHERE[case]
    tampered(place / "run", key, value(place))
    with pytest.raises(UserError) as error:
        command(place / "run")
    assert word in str(error.value) and "--trust" in str(error.value)
    assert not (place / "MARK").exists() and "labmod" not in sys.modules
    assert not (place / "elsewhere").exists()
    assert lfads("train", "--resume", place / "run", "--cfg") != 0
    sample(place / "run")  # which needs none of it


def test_an_untouched_run_of_a_stranger_works(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "another"))
    for command in COMMANDS.values():
        command(place / "run")
    assert not (place / "another").exists()


def test_seeds_of_a_stranger_delete_nothing_elsewhere(place: Path) -> None:
    (place / "seeds").mkdir()
    (place / "seeds/status.json").write_text('{"stage": "training", "seeds": ["../run"]}')
    assert lfads("train", place / "other.h5", "--run-dir", place / "seeds", "--overwrite") != 0
    assert lfads("train", "--resume", place / "seeds") != 0
    assert (place / "run/lightning_checkpoints/last.ckpt").is_file()


def test_an_ensemble_of_a_stranger_imports_nothing(place: Path) -> None:
    """Nor what the signature of its first member, a run of yours, allows."""
    shutil.copytree(place / "run", place / "other")
    tampered(place / "run", "model.ic_prior", {"_target_": "labmod.Prior"})
    config = yaml.safe_load((place / "run/config.yaml").read_text())
    (place / "run/config.yaml").write_text(sign(yaml.safe_dump(config), config))
    members = []
    for run in ("run", "other"):
        file = place / run / "lightning_checkpoints/last.ckpt"
        if run == "other":
            checkpoint = torch.load(file)
            checkpoint["lfads"]["parts"]["ic_prior"]["_target_"] = "labmod.Prior"
            torch.save(checkpoint, file)
        sha = hashlib.sha256(file.read_bytes()).hexdigest()
        members.append({"run": run, "checkpoint": str(file), "count": 1, "sha256": sha})
    (place / "mean").mkdir()
    (place / "mean/status.json").write_text('{"stage": "complete", "ensemble": 2}')
    about = {"members": members, "space": "rate"}
    (place / "mean/ensemble.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"labmod\.Prior.*--trust"):
        sample_run(place / "mean", data=place / "other.h5", num_samples=1)
    assert not (place / "MARK").exists() and "labmod" not in sys.modules


# ---- checkpoints ---------------------------------------------------------------------------------

PARTS = {
    "a module of the working directory": "labmod.Prior",
    "a module that is not there": "no_such_module.Prior",
    "os.system": "os.system",
    "a function of torch": "torch.hub.load",
    "a script": "torch.jit.load",
    "a class beside those of torch.nn": "torch.nn.parallel.DistributedDataParallel",
    "what a part's file imports": "lfads_torch.modules.recons.gammaln",
    "nothing": "",
    "a builtin": "builtins.exec",
}


@pytest.mark.parametrize("case", PARTS)
def test_a_checkpoint_imports_nothing(case: str, place: Path) -> None:
    for path in (place / "run" / "lightning_checkpoints").glob("*.ckpt"):
        state = torch.load(path, weights_only=True)
        spec = {"_target_": "torch.nn.Sequential", "args": [{"_target_": PARTS[case]}]}
        state["lfads"]["parts"]["reconstruction"] = spec
        torch.save(state, path)
    before = set(sys.modules)
    for attempt in (lambda: load_model(place / "run"), lambda: sample(place / "run")):
        with pytest.raises(UserError) as error:
            attempt()
        assert PARTS[case] in str(error.value) and "--trust" in str(error.value)
    assert not (place / "MARK").exists()
    assert not {"labmod", "no_such_module"} & (set(sys.modules) - before)


def test_a_pickle_in_a_checkpoint_is_inert(place: Path) -> None:
    path = place / "run" / "lightning_checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "more": Pickled(place / "MARK")}, path)
    load_model(path)
    assert not (place / "MARK").exists()


def test_the_best_of_a_stranger_deletes_no_file(place: Path) -> None:
    """Lightning deletes what a checkpoint names as the best one so far."""
    precious = place / "precious.ckpt"
    precious.touch()
    path = place / "run" / "lightning_checkpoints" / "last.ckpt"
    folder = str(place / "run" / "lightning_checkpoints")
    victim = f"{folder}/../../precious.ckpt"
    state = torch.load(path, weights_only=True)
    for callback in state["callbacks"].values():
        if "best_model_path" in callback:
            worst = torch.tensor(float("inf"))
            callback.update(
                dirpath=folder,
                best_model_path=victim,
                best_k_models={victim: worst},
                kth_best_model_path=victim,
                kth_value=worst,
                best_model_score=worst,
            )
    torch.save(state, path)
    resume(place / "run")
    assert precious.exists()


# ---- data files and pages ------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["external link", "virtual", "external storage"])
def test_other_files_of_the_machine_are_named(kind: str, place: Path) -> None:
    secret = place / "secret.h5"
    shutil.copy(_data(place), secret)
    file = Path(shutil.copy(_data(place), place / "data.h5"))
    with h5py.File(file, "r+") as data:
        shape, dtype = data["valid_encod_data"].shape, data["valid_encod_data"].dtype
        del data["valid_encod_data"]
        if kind == "external link":
            data["valid_encod_data"] = h5py.ExternalLink(str(secret), "/valid_encod_data")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, dtype)
            layout[:] = h5py.VirtualSource(str(secret), "valid_encod_data", shape, dtype)
            data.create_virtual_dataset("valid_encod_data", layout)
        else:
            raw = secret.with_suffix(".raw")
            raw.write_bytes(bytes(int(np.prod(shape)) * dtype.itemsize))
            data.create_dataset("valid_encod_data", shape, dtype, external=[(str(raw), 0, 10**6)])
    for read in (lambda: sample(place / "run", data=file), lambda: check_file(file)):
        with pytest.warns(DataWarning, match="valid_encod_data from .*secret"):
            read()


def test_text_of_a_stranger_is_text_on_a_page(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_drawn(press: Press, picture: Any, prefix: str = "") -> Shown:
        return Shown(*picture[:3], {}, failure="no time")

    monkeypatch.setattr(Press, "show", not_drawn)
    script = "<script>alert(1)</script>"
    run = place / "run"
    tampered(run, "posterior_sampling.note", script)
    (run / "status.json").write_text(
        (run / "status.json").read_text().replace('"version"', f'"{script}": 1, "version"')
    )
    log = run / "csv_logs" / "metrics.csv"
    log.write_text(log.read_text().replace("train/loss", f"train/{script}"))
    run = run.rename(place / "<img src=x onerror=alert(1)>")
    page = report_run(run, wanted=Wanted(quick=True)).path.read_text(encoding="utf-8")
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page and "&lt;img src=x" in page


# ---- consent -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_made(made: Path) -> Path:
    """A run of this user with a prior of the working directory."""
    (made / "labmod.py").write_text(PART)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.setattr(sys, "path", [*sys.path])
        command = [
            *("train", "--run-dir", "own", "datamodule.datafile_pattern=data.h5"),
            *(f"{key}={'null' if value is None else value}" for key, value in SMALL.items()),
            "model.ic_prior._target_=labmod.Prior",
        ]
        assert cli.main(command) == 0
    assert (made / "MARK").exists()
    forget(made)
    return made / "own"


@pytest.fixture
def own(own_made: Path, place: Path) -> Path:
    """A copy of it: a folder of one's own may be copied and moved."""
    return Path(shutil.copytree(own_made, place / "own"))


def _data(place: Path) -> str:
    config = yaml.safe_load((place / "run" / "config.yaml").read_text())
    return str(config["datamodule"]["datafile_pattern"])


def forget(place: Path) -> None:
    """What a new process has not imported."""
    (place / "MARK").unlink(missing_ok=True)
    sys.modules.pop("labmod", None)


def lfads(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_runs_of_ones_own_need_no_consent(own: Path, place: Path) -> None:
    moved = own.rename(place / "moved")
    assert lfads("sample", moved, "--samples", 2) == 0
    forget(place)
    assert lfads("train", "--resume", moved, "trainer.max_epochs=2") == 0
    forget(place)
    assert lfads("add-session", moved, Path(_data(place)).with_name("other.h5"),
                 "--run-dir", place / "added", "--epochs", 1) == 0  # fmt: skip
    forget(place)
    assert lfads("train", "--resume", place / "added", "trainer.max_epochs=2") == 0


@pytest.mark.parametrize("change", ["config", "home", "signature", "no key"])
def test_a_changed_or_foreign_folder_asks(
    change: str, own: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file = own / "config.yaml"
    text = file.read_text()
    if change == "config":
        file.write_text(text.replace("batch_size: 256", "batch_size: 128"))
        assert file.read_text() != text
    elif change == "signature":
        file.write_text(text[:-3] + ("00\n" if text[-3:] != "00\n" else "11\n"))
    else:
        monkeypatch.setenv("XDG_STATE_HOME", str(place / "another"))
        if change == "home":
            (place / "another" / "lfads_torch").mkdir(parents=True)
            (place / "another" / "lfads_torch" / "key").write_bytes(bytes(32))
    resumed = ["train", "--resume", own, "trainer.max_epochs=2"]
    for command in (["sample", own, "--samples", 2], resumed):
        assert lfads(*command) != 0
        assert "labmod.Prior" in capsys.readouterr().err
        assert not (place / "MARK").exists()
    assert lfads("sample", own, "--samples", 2, "--trust") == 0
    assert (place / "MARK").exists()


def test_consent_in_python(own: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "another"))
    monkeypatch.syspath_prepend(place)
    with pytest.raises(UserError, match="trust=True"):
        load_model(own)
    assert type(load_model(own, trust=True).ic_prior).__name__ == "Prior"
    # Now that the program has imported the class, its checkpoints load.
    assert type(load_model(own).ic_prior).__name__ == "Prior"


def test_the_key_is_for_its_owner_alone(own: Path) -> None:
    key = Path(os.environ["XDG_STATE_HOME"]) / "lfads_torch" / "key"
    assert len(key.read_bytes()) == 32
    assert os.name == "nt" or key.stat().st_mode & 0o077 == 0


def test_a_file_beside_a_run_stands_in_for_no_library(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory is on Python's path only where a part of it may be imported."""
    assert lfads("sample", "run", "--samples", 2) == 0
    assert str(place) not in sys.path


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("torch.nn.Linear", True),
        ("torch.nn.modules.linear.Identity", True),
        ("torch.nn.Parameter", False),
        ("torch.nn.init.zeros_", False),
        ("torch.nn.modules.utils._pair", False),
        ("torch.nn.functional.relu", False),
        ("torch.nn.Linear.from_float", False),
        ("torch.nn.modules.container.ModuleList", True),
        ("torch.nn. Linear", False),
        ("torchvision.models.resnet18", False),
        ("lfads_torch.modules.priors.MultivariateNormal", True),
        ("lfads_torch.modules.priors.nn.Linear", False),
        ("lfads_torch.modulesevil.X", False),
        ("lfads_torch.prep.prepare", False),
        ("", False),
        (".", False),
    ],
)
def test_what_is_built_freely(name: str, known: bool) -> None:
    assert is_known_part(name) is known


def test_parts_of_this_package_are_known() -> None:
    assert is_known_part(f"{MultivariateNormal.__module__}.MultivariateNormal")
    assert is_known_part(f"{nn.Linear.__module__}.Linear")


def test_data_settings_of_an_older_checkpoint_run_nothing(place: Path) -> None:
    """A checkpoint of the existing implementation says itself what its data were."""
    path = place / "old.ckpt"
    data = {"datafile_pattern": str(place / "other.h5"), "sv_seed": {"_target_": "labmod.call"}}
    state = torch.load(place / "run" / "lightning_checkpoints" / "last.ckpt", weights_only=True)
    del state["lfads"]
    torch.save({**state, "datamodule_hyper_parameters": data}, path)
    with pytest.raises(UserError, match=r"datamodule\.sv_seed builds labmod\.call"):
        sample(path)
    assert not (place / "MARK").exists()
