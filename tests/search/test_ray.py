"""Real searches over Ray Tune, on a Ray of two cores: with a worker that is killed, with a stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfads_torch import load_model
from lfads_torch.data.schema import write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.extensions.tune import read_pbt_fitlog
from lfads_torch.running.folder import read_status
from lfads_torch.search.runner import run_search
from lfads_torch.search.tables import read_exchanges, read_population

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lfads-torch[tune]'")
scheduler = pytest.importorskip("lfads_torch.search.ray.scheduler")

pytestmark = pytest.mark.filterwarnings(
    "ignore::lfads_torch.data.schema.DataWarning", "ignore::UserWarning", "ignore::FutureWarning"
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


def local(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return dict(overrides)


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
    assert read_status(one)["ended"] == read_status(other)["ended"]
    assert read_status(one)["best"] == pytest.approx(read_status(other)["best"], rel=2e-3)


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


@pytest.mark.usefixtures("_ray")
def test_pbt_survives_a_killed_worker_and_is_the_search_of_one_process(
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at_report(monkeypatch, 5, lambda result: os.kill(result["pid"], signal.SIGKILL))
    result = search(data, tmp_path / "ray", PBT, backend="ray")
    assert "starts again from epoch" in capsys.readouterr().err

    assert result.best_checkpoint is not None and result.best_checkpoint.is_file()
    best = tmp_path / "ray" / "best_model"
    assert [path.parent for path in result.outputs] == [best]
    assert read_status(best)["stage"] == read_status(tmp_path / "ray")["stage"] == "complete"
    assert load_model(tmp_path / "ray").hparams.gen_dim == 4
    assert len(read_pbt_fitlog(tmp_path / "ray")) == 4 * 8

    search(data, tmp_path / "one", local(PBT))
    assert_same_search(tmp_path / "one", tmp_path / "ray")


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
    assert read_status(tmp_path / "ray")["stage"] == "training"

    run_search(run_dir=tmp_path / "ray", resume=True)
    search(data, tmp_path / "one", overrides, method="random")
    assert_same_search(tmp_path / "one", tmp_path / "ray")
