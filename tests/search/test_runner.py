"""Searches end to end on made-up members: what they leave behind, resuming, and each mistake.

`test_search` does it with real ones.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lfads_torch.checkpoint import load_model, read_checkpoint
from lfads_torch.data import write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.errors import ConfigError, DivergedError, UserError
from lfads_torch.folder import RunFolder
from lfads_torch.run_model import RunResult, run_model
from lfads_torch.runs.compose import compose_config
from lfads_torch.runs.sampling import sample_run
from lfads_torch.search import group, local, members, result, run
from lfads_torch.search.run import run_search
from lfads_torch.tables import read_exchanges, read_population

from .fake import FakePopulation

SMALL: dict[str, Any] = {
    "trainer": {"max_epochs": 11, "accelerator": "cpu"},
    "model": {
        **dict.fromkeys(("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim"), 4),
        **{"fac_dim": 3, "co_dim": 1, "l2_increase_epoch": 2, "kl_increase_epoch": 2},
    },
    "datamodule": {"batch_size": 16},
    "posterior_sampling.fn.num_samples": 2,
}
PBT = {"search.num_workers": 6, "search.perturbation_interval": 2}
RANDOM = {"search": "random", "search.num_samples": 5, "search.stop_after": 4}
HALVING = {
    **{"search": "halving", "search.num_samples": 7, "search.halving_factor": 2},
    "search.perturbation_interval": 2,
}
Loss = Callable[[int, np.ndarray, dict[str, np.ndarray]], np.ndarray]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    write_session(path, lorenz(8, 6, 6, 12, 0.5, seed=1), {"bin_ms": 10.0})
    return path


COMPOSED: dict[str, dict[str, Any]] = {}


def compose_once(path: Any, overrides: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Compose each configuration once for all tests."""
    file = Path(path)
    key = f"{file.read_text() if file.is_absolute() else path} {overrides}"
    if key not in COMPOSED:
        COMPOSED[key] = compose_config(path, overrides, *args, **kwargs)
    return copy.deepcopy(COMPOSED[key])


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(group, "Population", FakePopulation)
    monkeypatch.setattr(run, "compose_config", compose_once)
    monkeypatch.setattr(result, "draw_search", lambda *_: [])
    if "sampled" not in request.fixturenames:
        nothing = RunResult(Path())
        monkeypatch.setattr(result, "run_model", lambda *args, **kwargs: nothing)


@pytest.fixture
def sampled() -> None:
    """Have best models sampled."""


@pytest.fixture
def loss(monkeypatch: pytest.MonkeyPatch) -> Callable[[Loss], None]:
    """Set what members have as a loss."""
    return lambda function: monkeypatch.setattr(FakePopulation, "loss", staticmethod(function))


def search(data: Path, folder: Path, more: dict[str, Any] = PBT, **options: Any) -> RunResult:
    overrides = {"datamodule.datafile_pattern": str(data), **SMALL, **more}
    return run_search({} if options.get("resume") else overrides, run_dir=folder, **options)


def by_value(epoch: int, seeds: np.ndarray, values: dict[str, np.ndarray]) -> np.ndarray:
    """Small KL scales are good, and more epochs."""
    return (1.0 + 1e4 * values["kl_ic_scale"]) / (epoch + 2.0)


def contents(folder: Path) -> dict[str, str]:
    """What has to be the same after a resume."""
    contents = {
        name: (folder / name).read_text()
        for name in ("population.csv", "exchanges.csv", "best_model/csv_logs/metrics.csv")
        if (folder / name).is_file()
    }
    status = RunFolder(folder).status
    for name in ("ended", "members", "best", "epochs"):
        contents[name] = json.dumps(status[name])
    for path in sorted((folder / "members").glob("*.ckpt")):
        checkpoint = read_checkpoint(path)
        contents[path.name] = f"{checkpoint['weight']} {checkpoint['seed']}"
    return contents


def test_what_a_population_leaves_behind(
    data: Path, tmp_path: Path, loss: Callable[[Loss], None]
) -> None:
    loss(by_value)
    folder = tmp_path / "run"
    result = search(data, folder)
    assert result.run_dir == folder
    status = RunFolder(folder).status
    assert (status["stage"], status["search"], status["epochs"]) == ("complete", "pbt", 11)
    assert status["ended"] == "trainer.max_epochs=11 is reached"
    table = read_population(folder)
    assert len(table["epoch"]) == 6 * 11
    copies = read_exchanges(folder)
    # Ramps take 2 epochs, generations 2; none at the last epoch.
    assert set(copies["epoch"].tolist()) == {4, 6, 8, 10}
    ranks = [member["score"] for member in status["members"]]
    assert ranks == sorted(ranks)
    assert len(ranks) == 6
    for member in status["members"]:
        assert (folder / member["checkpoint"]).is_file()


def test_the_best_model_is_an_ordinary_run(
    data: Path, tmp_path: Path, loss: Callable[[Loss], None], sampled: None
) -> None:
    loss(by_value)
    folder = tmp_path / "run"
    result = search(data, folder)
    best = folder / "best_model"
    status = RunFolder(best).status
    assert status["stage"] == "complete"
    assert "search" not in status
    assert status["outputs"] == ["lfads_output_tiny.h5"]
    assert result.outputs == [best / "lfads_output_tiny.h5"]
    assert result.best_checkpoint == RunFolder(best).checkpoint(best=True)
    assert result.last_checkpoint == RunFolder(best).checkpoint()
    # The same from the folder of the search.
    assert RunFolder(folder).checkpoint(best=True) == result.best_checkpoint
    winner = RunFolder(folder).status["members"][0]["member"]
    table = read_population(folder)
    final = (table["epoch"] == 10) & (table["member"] == winner)
    text = (best / "config.yaml").read_text()
    assert f"kl_ic_scale: {float(table['hp/kl_ic_scale'][final][0])!r}" in text
    assert "search:" not in text
    assert "max_epochs: 11" in text
    with open(best / "csv_logs/metrics.csv") as file:
        header, *rows = [line.strip().split(",") for line in file]
    logged = [dict(zip(header, row, strict=True)) for row in rows]
    assert [int(row["epoch"]) for row in logged] == list(range(11))
    assert [int(row["step"]) for row in logged] == [3 * n + 2 for n in range(11)]
    # Each row is that of an ancestor, copied just when the tournament said so.
    copies = read_exchanges(folder)
    member = winner
    for epoch in range(10, -1, -1):
        mine = (table["epoch"] == epoch) & (table["member"] == member)
        assert float(logged[epoch]["hp/kl_ic_scale"]) == table["hp/kl_ic_scale"][mine][0]
        copied = (copies["epoch"] == epoch) & (copies["member"] == member)
        if copied.any():
            member = int(copies["parent"][copied][0])
    (path,) = sample_run(best, num_samples=2)
    assert path == best / "lfads_output_tiny.h5"
    assert sample_run(folder, num_samples=2, best=False) == [path]


def test_the_best_score_of_all_epochs_is_kept(
    data: Path, tmp_path: Path, loss: Callable[[Loss], None]
) -> None:
    loss(lambda epoch, seeds, values: (1.0 + 0.1 * seeds) * (1 + abs(epoch - 6)))
    folder = tmp_path / "run"
    search(data, folder)
    assert RunFolder(folder).status["best"] == {"score": 1.0, "member": 0, "epoch": 6}
    best = folder / "best_model/lightning_checkpoints"
    assert read_checkpoint(best / "best.ckpt")["epoch"] == 6
    assert read_checkpoint(best / "last.ckpt")["epoch"] == 10
    assert load_model(folder).hparams.gen_dim == 4


def test_the_best_member_is_never_replaced(
    data: Path, tmp_path: Path, loss: Callable[[Loss], None]
) -> None:
    loss(by_value)
    folder = tmp_path / "run"
    search(data, folder)
    table, copies = read_population(folder), read_exchanges(folder)
    for epoch in np.unique(copies["epoch"]):
        before = table["epoch"] == epoch - 1
        best = table["member"][before][np.argmin(table["valid/recon_smth"][before])]
        now = copies["epoch"] == epoch
        assert best not in copies["member"][now]
        assert (copies["parent_score"][now] < copies["score"][now]).all()


def test_an_epoch_limit_before_the_first_generation_is_told(data: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"nobody will copy anybody: .* ends after 27 epochs"):
        search(data, tmp_path / "run", {"search.num_workers": 2})


@pytest.fixture(scope="module")
def wholes() -> dict[str, dict[str, str]]:
    """Contents of the unbroken searches, by kind."""
    return {}


@pytest.mark.parametrize(
    ("kind", "owner", "name"),
    [
        *(("pbt", FakePopulation, name) for name in ("train_epoch", "exchange")),
        *(("pbt", local.History, name) for name in ("append", "exchange")),
        ("pbt", group, "write_checkpoint"),
        ("pbt", local, "finish_search"),
        *(("random", FakePopulation, name) for name in ("train_epoch", "keep")),
        *(("halving", FakePopulation, name) for name in ("train_epoch", "keep")),
    ],
)
def test_a_search_that_is_broken_off_ends_as_an_unbroken_one(
    kind: str,
    owner: Any,
    name: str,
    wholes: dict[str, dict[str, str]],
    data: Path,
    tmp_path: Path,
    loss: Callable[[Loss], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def losses(epoch: int, seeds: np.ndarray, values: dict[str, np.ndarray]) -> np.ndarray:
        scores = by_value(epoch, seeds, values)
        return np.where((seeds == 1) & (epoch == 3), np.nan, scores)

    loss(losses)
    settings = {
        "pbt": {**PBT, "search.num_workers": 4},
        "random": {**RANDOM, "search.num_samples": 4, "search.stop_after": 3},
        "halving": {**HALVING, "search.num_samples": 4},
    }[kind]
    settings["trainer.max_epochs"] = 8
    if kind not in wholes:
        wholes[kind] = contents_of_whole(data, tmp_path / "whole", settings)
    broken = tmp_path / "broken"
    real = getattr(owner, name)
    # Break it off again and again, a little later each time, before the act or after it.
    for attempt in range(6):
        n_calls = 0

        def breaking(*args: Any, attempt: int = attempt, **kwargs: Any) -> Any:
            nonlocal n_calls
            n_calls += 1
            is_due = n_calls > attempt
            if is_due and attempt % 2:
                raise KeyboardInterrupt
            done = real(*args, **kwargs)
            if is_due:
                raise KeyboardInterrupt
            return done

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, breaking)
            try:
                search(data, broken, settings, resume=attempt > 0)
                break
            except KeyboardInterrupt:
                pass
    search(data, broken, settings, resume=True)
    assert contents(broken) == wholes[kind]


def contents_of_whole(data: Path, folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    search(data, folder, settings)
    return contents(folder)


def test_a_finished_search_goes_on_to_more_epochs(
    data: Path, tmp_path: Path, loss: Callable[[Loss], None]
) -> None:
    loss(by_value)
    longer = {**PBT, "trainer.max_epochs": 15}
    whole = contents_of_whole(data, tmp_path / "whole", longer)
    folder = tmp_path / "run"
    # 10 epochs end with a generation whose exchange the shorter search leaves out.
    search(data, folder, {**PBT, "trainer.max_epochs": 10})
    run_search({"trainer.max_epochs": 15}, run_dir=folder, resume=True)
    assert contents(folder) == whole


def test_diverged_members_are_replaced(
    data: Path, tmp_path: Path, loss: Callable[[Loss], None]
) -> None:
    def losses(epoch: int, seeds: np.ndarray, values: dict[str, np.ndarray]) -> np.ndarray:
        return np.where((seeds < 5) & (epoch == 1), np.inf, by_value(epoch, seeds, values))

    loss(losses)
    folder = tmp_path / "run"
    search(data, folder)
    table = read_population(folder)
    diverged = [int(table["diverged"][table["epoch"] == epoch].sum()) for epoch in range(11)]
    assert diverged == [0, 5, 5, 5] + 7 * [0]
    copies = read_exchanges(folder)
    assert set(copies["parent"][copies["epoch"] == 4]) == {5}
    assert not table["diverged"][table["epoch"] == 10].any()


@pytest.mark.parametrize("settings", [PBT, RANDOM], ids=["pbt", "random"])
def test_when_all_have_diverged_the_history_remains_with_advice(
    settings: dict[str, Any], data: Path, tmp_path: Path, loss: Callable[[Loss], None]
) -> None:
    loss(lambda epoch, seeds, values: np.full(len(seeds), np.nan if epoch == 3 else 1.0))
    folder = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"(?s)members have diverged by epoch 3.*lr_init") as e:
        search(data, folder, settings)
    assert str(folder / "population.csv") in str(e.value)
    assert "best.ckpt (member 0, epoch 0)" in str(e.value)
    table = read_population(folder)
    assert table["diverged"][table["epoch"] == 3].all()
    assert "diverged" in RunFolder(folder).status["stopped"]
    with pytest.raises(DivergedError):
        search(data, folder, settings, resume=True)


def test_a_random_search_ends_when_its_last_members_diverge(
    data: Path, tmp_path: Path, loss: Callable[[Loss], None]
) -> None:
    def losses(epoch: int, seeds: np.ndarray, values: dict[str, np.ndarray]) -> np.ndarray:
        late = np.where(epoch > 8, np.nan, 1.0 / (epoch + 1))
        return np.where(seeds < 2, 1.0, late * np.ones(len(seeds)))

    loss(losses)
    folder = tmp_path / "run"
    search(data, folder, RANDOM)
    status = RunFolder(folder).status
    assert status["ended"] == "no member trains any more"
    assert [member["member"] for member in status["members"]] == [0, 1]
    assert status["best"]["member"] == 2


def test_more_is_better_where_the_metric_says_so(
    data: Path, tmp_path: Path, loss: Callable[[Loss], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "logged_names", lambda *_: ["valid/recon"])
    loss(lambda epoch, seeds, values: 1.0 + 0.1 * seeds + 0.01 * epoch)
    folder = tmp_path / "run"
    search(data, folder, {**PBT, "search.metric": "valid/recon", "search.mode": "max"})
    status = RunFolder(folder).status
    assert status["best"]["member"] == status["members"][0]["member"] == 5
    assert status["best"]["score"] == pytest.approx(1.6)
    copies = read_exchanges(folder)
    assert (copies["parent_score"] < copies["score"]).all()


def test_rates_of_an_ensemble_are_the_mean_of_its_members(
    data: Path, tmp_path: Path, loss: Callable[[Loss], None]
) -> None:
    loss(by_value)
    folder = tmp_path / "run"
    search(data, folder, {**PBT, "model.variational": False, "model.ic_prior": None,
                          "model.co_prior": None})  # fmt: skip
    (path,) = sample_run(folder, num_samples=2, ensemble=True)
    assert path == folder / "lfads_output_ensemble_tiny.h5"
    total, n = 0.0, 0
    for checkpoint in sorted((folder / "members").glob("*.ckpt")):
        (single,) = sample_run(checkpoint_in_run(checkpoint, folder), num_samples=1)
        with h5py.File(single) as file:
            total = total + file["valid_output_params"][()]
            n += 1
    with h5py.File(path) as file:
        np.testing.assert_allclose(file["valid_output_params"][()], total / n, rtol=1e-5)
        assert file.attrs["num_models"] == 6
        assert "valid_factors" not in file
        assert "valid_truth" in file
    (best,) = sample_run(folder, num_samples=2, ensemble=True, members=1)
    with h5py.File(best) as file:
        assert file.attrs["num_models"] == 1


def checkpoint_in_run(checkpoint: Path, folder: Path) -> Path:
    """Give a member its run folder."""
    run = folder.parent / checkpoint.stem
    (run / "lightning_checkpoints").mkdir(parents=True)
    shutil.copy(folder / "config.yaml", run)
    return Path(shutil.copy(checkpoint, run / "lightning_checkpoints"))


def test_what_an_ensemble_needs_is_told(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    search(data, folder)
    with pytest.raises(UserError, match=r"holds no search"):
        sample_run(folder / "best_model", ensemble=True)
    with pytest.raises(UserError, match=r"\(--members\) is 0; legal are whole numbers >= 1"):
        sample_run(folder, ensemble=True, members=0)
    with pytest.raises(UserError, match=r"give --ensemble too"):
        sample_run(folder, members=2)
    (folder / "status.json").write_text('{"stage": "training", "search": "pbt"}')
    with pytest.raises(UserError, match=r"not complete; complete it first: lfads pbt --resume"):
        sample_run(folder, ensemble=True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"search.num_workers": 1}, r"population of one"),
        ({"search.space.lr_int": {"min_samp": 1, "max_samp": 2}}, r"did you mean lr_init"),
        ({"search.space.gen_dim": {"min_samp": 1, "max_samp": 2}}, r"no tunable number"),
        ({"search.space.lr_init.max_samp": 1e-9}, r"lr_init.*wrong way round"),
        ({"search.metric": "valid/recon_smt"}, r"never logged; did you mean valid/recon_smth"),
        ({"search.metric": "valid/co_bps"}, r"never logged"),
        ({"trainer.max_epochs": -1}, r"trainer\.max_epochs is -1; legal are whole numbers >= 1"),
        ({"trainer.precision": "16-mixed"}, r"trainer\.precision='16-mixed' does not act"),
        ({"trainer.accumulate_grad_batches": 2}, r"accumulate_grad_batches=2 does not act"),
        ({"model.gen_dim": -1}, r"gen_dim"),
    ],
)
def test_each_mistake_is_told_before_the_first_epoch(
    more: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=message):
        search(data, folder, {**PBT, **more})
    assert not folder.exists()


def test_more_members_than_memory_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lfads_torch.search.members.bytes_available", lambda device: 40_000)
    with pytest.raises(UserError, match=r"search\.num_workers=600: 600 members take .* at most \d"):
        search(data, tmp_path / "run", {"search.num_workers": 600})


def test_a_folder_with_a_search_is_not_overwritten_unasked(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    search(data, folder)
    with pytest.raises(UserError, match=r"finished run.*lfads pbt --resume"):
        search(data, folder)
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="never logged"):
        search(data, folder, {**PBT, "search.metric": "nothing"}, overwrite=True)
    assert RunFolder(folder).status["stage"] == "complete"
    search(data, folder, {**PBT, "search.num_workers": 2}, overwrite=True)
    assert len(read_population(folder)["epoch"]) == 2 * 11
    assert len(list((folder / "members").iterdir())) == 2
    assert (folder / "mine.txt").is_file()


def test_a_search_and_an_ordinary_run_are_not_mixed_up(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    search(data, folder)
    with pytest.raises(ConfigError, match=r"holds a search; go on with it: lfads pbt --resume"):
        run_model(run_dir=folder, resume=True)
    with pytest.raises(UserError, match=r"ordinary run \(lfads train --resume\)"):
        run_search(run_dir=folder / "best_model", resume=True)
    with pytest.raises(UserError, match=r"holds no search"):
        run_search(run_dir=tmp_path / "nothing", resume=True)


def test_a_resumed_search_keeps_its_members_and_back_end(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    search(data, folder)
    with pytest.raises(UserError, match=r"search\.num_workers was 6 from the start"):
        run_search({"search.num_workers": 8}, run_dir=folder, resume=True)
    with pytest.raises(UserError, match=r"begun with --backend local"):
        run_search(run_dir=folder, resume=True, backend="ray")
    with pytest.raises(UserError, match=r"backend is 'rya'; did you mean ray"):
        search(data, tmp_path / "other", backend="rya")


def test_callbacks_that_do_not_run_are_named(data: Path, tmp_path: Path) -> None:
    callbacks = {"callbacks.timer": {"_target_": "pytorch_lightning.callbacks.Timer"}}
    with pytest.warns(UserWarning, match=r"callbacks\.timer will not run"):
        search(data, tmp_path / "run", {**PBT, **callbacks})


def test_a_logger_that_is_not_installed_is_left_out(data: Path, tmp_path: Path) -> None:
    callbacks = {"callbacks.report": {"_target_": "ray.tune.integration.nowhere.Report"}}
    with (
        pytest.raises(ConfigError, match="report")
        if has_ray()
        else pytest.warns(UserWarning, match=r"left out: callbacks\.report.*not installed")
    ):
        search(data, tmp_path / "run", {**PBT, **callbacks})


def has_ray() -> bool:
    from importlib.util import find_spec

    return find_spec("ray") is not None
