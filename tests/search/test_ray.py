"""Real searches over Ray Tune, on a Ray of two cores: with a worker that is killed, with a stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfads_torch import load_model
from lfads_torch.data import write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.errors import UserError
from lfads_torch.extensions.tune import HyperParam, read_pbt_fitlog
from lfads_torch.folder import RunFolder
from lfads_torch.search.run import run_search
from lfads_torch.tables import read_exchanges, read_population

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lfads-torch[tune]'")

from lfads_torch.extensions.tune import BinaryTournamentPBT, ImprovementRatioStopper  # noqa: E402
from lfads_torch.search.ray import scheduler  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::lfads_torch.data.DataWarning", "ignore::UserWarning", "ignore::FutureWarning"
)

SMALL: dict[str, Any] = {
    **{f"model.{name}": 4 for name in ("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim")},
    **{"model.fac_dim": 3, "model.co_dim": 1, "trainer.accelerator": "cpu"},
    "posterior_sampling.fn.num_samples": 2,
    "datamodule.batch_size": 16,
    "search.burn_in_period": 0,
    "search.ray.checkpoint_every": 2,
}
PBT: dict[str, Any] = {
    **SMALL,
    "search.num_workers": 4,
    "search.perturbation_interval": 3,
    "trainer.max_epochs": 8,
    "search.ray.members_per_trial": 2,
}


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # it would leave a token in the home folder
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=2**27,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    write_session(path, lorenz(8, 6, 6, 12, 0.5, seed=1), {"bin_ms": 10.0})
    return str(path)


def search(data: str, folder: Path, overrides: Mapping[str, Any], **more: Any) -> Any:
    overrides = {"datamodule.datafile_pattern": data, **overrides}
    kind = "search" if more.get("method", "pbt") != "pbt" else "pbt"
    return run_search(overrides, f"../configs/{kind}.yaml", run_dir=folder, **more)


def by_epoch(folder: Path) -> dict[str, np.ndarray]:
    table = read_population(folder)
    order = np.lexsort((table["member"], table["epoch"]))
    return {name: column[order] for name, column in table.items()}


def assert_same_search(one: Path, other: Path) -> None:
    """Every member was the same in every epoch, within what another order of sums does."""
    for ours, theirs in (
        (by_epoch(one), by_epoch(other)),
        (read_exchanges(one), read_exchanges(other)),
    ):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-3, err_msg=name)
    assert RunFolder(one).status["ended"] == RunFolder(other).status["ended"]
    assert RunFolder(one).status["best"] == pytest.approx(RunFolder(other).status["best"], rel=2e-3)


def at_report(
    monkeypatch: pytest.MonkeyPatch, n_epochs: int, act: Callable[[Mapping[str, Any]], None]
) -> None:
    """Do something once when a trial reports that it has trained so many epochs."""
    done: list[int] = []
    receive = scheduler.Watch.on_trial_result

    def on_trial_result(self: Any, *args: Any, result: Mapping[str, Any], **info: Any) -> None:
        receive(self, *args, result=result, **info)
        if result["n_epochs"] == n_epochs and not done:
            done.append(n_epochs)
            act(result)

    monkeypatch.setattr(scheduler.Watch, "on_trial_result", on_trial_result)


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_pbt_survives_a_killed_worker_and_is_the_search_of_one_process(
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at_report(monkeypatch, 5, lambda result: os.kill(result["pid"], signal.SIGKILL))
    result = search(data, tmp_path / "ray", PBT, backend="ray")
    said = next(x for x in capsys.readouterr().err.splitlines() if "starts again from epoch" in x)
    assert ": its worker died: " in said

    assert result.best_checkpoint is not None and result.best_checkpoint.is_file()
    best = tmp_path / "ray" / "best_model"
    assert [path.parent for path in result.outputs] == [best]
    assert (
        RunFolder(best).status["stage"] == RunFolder(tmp_path / "ray").status["stage"] == "complete"
    )
    assert load_model(tmp_path / "ray").hparams.gen_dim == 4
    assert len(read_pbt_fitlog(tmp_path / "ray")) == 4 * 8

    search(data, tmp_path / "one", PBT)
    assert_same_search(tmp_path / "one", tmp_path / "ray")


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_a_random_search_that_was_stopped_goes_on_where_it_was(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More trials than places: a process that is done takes the members of another trial.
    overrides = {
        **SMALL,
        "search.num_samples": 5,
        "search.stop_after": 3,
        "trainer.max_epochs": 7,
        "search.ray.members_per_trial": 2,
    }
    with monkeypatch.context() as patch:
        at_report(patch, 5, lambda result: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            search(data, tmp_path / "ray", overrides, method="random", backend="ray")
    assert RunFolder(tmp_path / "ray").status["stage"] == "training"

    run_search(run_dir=tmp_path / "ray", resume=True)
    search(data, tmp_path / "one", overrides, method="random")
    assert_same_search(tmp_path / "one", tmp_path / "ray")


def test_the_handler_of_sigusr1_is_put_back_once_tune_has_taken_it() -> None:
    number, got = signal.SIGUSR1, list[int]()
    before = signal.signal(number, lambda number, frame: got.append(number))
    try:
        watch = scheduler.Watch(None, 0)  # type: ignore[arg-type]  # no trial reports
        ray.tune.tune._setup_signal_catching()
        os.kill(os.getpid(), number)
        assert not got
        watch.setup()
        os.kill(os.getpid(), number)
        assert got == [number]
    finally:
        signal.signal(number, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_command(folder: Path, words: list[str]) -> subprocess.Popen[str]:
    """Begin `lfads pbt` over a Ray of its own."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "lfads_torch.cli", "pbt", *words]
    with open(f"{folder}.log", "a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_a_signal_ended_goes_on_and_exits(
    number: int, data: str, tmp_path: Path
) -> None:
    overrides = {**PBT, "search.num_workers": 2, "search.ray.members_per_trial": 1}
    words = [f"{name}={value}" for name, value in overrides.items()]
    folder = tmp_path / "ray"
    process = run_command(
        folder,
        ["--backend", "ray", "--run-dir", str(folder), data, "search.ray.num_cpus=2", *words],
    )
    try:
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            if (folder / "population.csv").is_file() and read_population(folder)["epoch"].size > 7:
                break
            time.sleep(0.2)
        process.send_signal(number)
        status = process.wait(60)
        resume = f"lfads pbt --resume {folder}"
        said = Path(f"{folder}.log").read_text()
        if number == signal.SIGKILL:
            assert status == -number
        else:
            assert status == 128 + number, said
            assert f"stopped by {signal.Signals(number).name}; go on with: {resume}" in said
        process = run_command(folder, ["--resume", str(folder)])
        assert process.wait(300) == 0, Path(f"{folder}.log").read_text()
    finally:
        process.kill()
    search(data, tmp_path / "one", overrides)
    assert_same_search(tmp_path / "one", folder)


@pytest.mark.slow
@pytest.mark.parametrize("has_room", [True, False], ids=["room elsewhere", "no node left"])
def test_a_dead_node_is_survived(
    has_room: bool,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ray.cluster_utils import Cluster

    overrides = {**PBT, "search.num_workers": 2, "search.ray.members_per_trial": 1}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Both trials on the node that dies, or one of them.
    head = {"num_cpus": int(has_room), "object_store_memory": 2**27, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        other = cluster.add_node(num_cpus=2 - int(has_room), object_store_memory=2**27)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        with monkeypatch.context() as patch:
            patch.setattr(scheduler, "_GRACE_S", 15.0)
            at_report(patch, 5, lambda result: cluster.remove_node(other, allow_graceful=False))
            if has_room:
                search(data, tmp_path / "ray", overrides, backend="ray")
                assert " starts again from epoch " in capsys.readouterr().err
            else:
                with pytest.raises(UserError, match="no node of the Ray cluster is left"):
                    search(data, tmp_path / "ray", overrides, backend="ray")
                cluster.add_node(num_cpus=2, object_store_memory=2**27)
                run_search(run_dir=tmp_path / "ray", resume=True)
    finally:
        ray.shutdown()
        cluster.shutdown()
    search(data, tmp_path / "one", overrides)
    assert_same_search(tmp_path / "one", tmp_path / "ray")


# ---- Tune scripts of a user -------------------------------------------------------------------


def decay(config: dict[str, Any]) -> None:
    """Shrink a loss by a factor in each epoch, for ever; it is the checkpoint, too."""
    from ray import tune

    loss, checkpoint = 1.0, tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder, open(f"{folder}/loss") as file:
            loss = float(file.read())
    while True:
        loss *= 1 - config["model.lr_init"]
        with tempfile.TemporaryDirectory() as folder:
            with open(f"{folder}/loss", "w") as file:
                file.write(repr(loss))
            tune.report(
                {"valid/recon_smth": loss}, checkpoint=tune.Checkpoint.from_directory(folder)
            )


@pytest.mark.usefixtures("_ray")
def test_the_scheduler_copies_winners_and_moves_hyper_parameters(tmp_path: Path) -> None:
    from ray import cloudpickle, tune

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import torch
    schedule = {"perturbation_interval": 2, "burn_in_period": 3}
    space = {"model.lr_init": HyperParam(1e-3, 1e-1, explore_wt=0.5)}
    tuner = tune.Tuner(
        tune.with_resources(decay, {"cpu": 0.5}),
        param_space={"other": 1},
        tune_config=tune.TuneConfig(
            num_samples=3,
            scheduler=BinaryTournamentPBT(**schedule, hyperparam_mutations=space),
        ),
        run_config=tune.RunConfig(
            name="scripts",
            storage_path=str(tmp_path),
            stop=ImprovementRatioStopper(3, 2, 3, patience=1, min_improvement_ratio=0.5),
            verbose=0,
        ),
    )
    try:
        results = tuner.fit()
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert not results.errors
    folder = tmp_path / "scripts"
    table, exchanges = read_population(folder), read_exchanges(folder)
    assert table["epoch"].max() == 4  # generations end after 3 and 5 epochs
    loss = {
        (int(e), int(k)): (float(v), float(lr), int(p))
        for e, k, v, lr, p in zip(
            *(table[n] for n in ("epoch", "member", "valid/recon_smth", "hp/lr_init", "parent")),
            strict=True,
        )
    }
    assert len(loss) == 3 * 5
    assert len(exchanges["member"]) == 1 and exchanges["epoch"].tolist() == [3]
    assert exchanges["score"] > exchanges["parent_score"]
    for (epoch, member), (value, lr, parent) in loss.items():
        before = loss[epoch - 1, parent][0] if epoch else 1.0
        assert value == pytest.approx(before * (1 - lr), rel=1e-9), (epoch, member)
    copied = int(exchanges["member"][0])
    assert loss[3, copied][2] == exchanges["parent"][0]
    assert 0.001 <= abs(np.log(exchanges["new/lr_init"] / loss[2, loss[3, copied][2]][1])) < 0.41
