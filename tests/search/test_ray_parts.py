"""What the back-end over Ray does without Ray: options, members of a trial, decisions."""

from __future__ import annotations

import copy
import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfads_torch.data import write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.errors import ConfigError, UserError
from lfads_torch.extensions import tune
from lfads_torch.run_model import RunResult
from lfads_torch.runs.compose import compose_config
from lfads_torch.search import group, result, run
from lfads_torch.search.coordinator import STATE, Coordinator
from lfads_torch.search.group import Group
from lfads_torch.search.live_table import LiveTable
from lfads_torch.search.members import build_members, check_search, max_epochs_of
from lfads_torch.search.ray import RayOptions, run_ray_search
from lfads_torch.search.result import GoingOn
from lfads_torch.search.settings import SearchSettings, from_mapping
from lfads_torch.search.state import Place
from lfads_torch.tables import read_exchanges, read_population

from .fake import FakePopulation

SMALL: dict[str, Any] = {
    **{f"model.{name}": 4 for name in ("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim")},
    **{"model.fac_dim": 3, "model.co_dim": 1, "trainer.accelerator": "cpu"},
    **{"trainer.max_epochs": 14, "search.burn_in_period": 2},
}
OF_METHOD: dict[str, dict[str, Any]] = {
    "pbt": {"search.num_workers": 7, "search.perturbation_interval": 3},
    "random": {"search.num_samples": 7, "search.stop_after": 4},
    "halving": {
        **{"search.num_samples": 7, "search.stop_after": 5},
        **{"search.perturbation_interval": 3, "search.halving_factor": 2},
    },
}
CHUNKS = [[0, 1, 2], [3, 4], [5, 6]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    write_session(path, lorenz(8, 6, 6, 12, 0.5, seed=1), {"bin_ms": 10.0})
    return str(path)


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "Population", FakePopulation)
    monkeypatch.setattr(FakePopulation, "loss", staticmethod(some_stall))
    monkeypatch.setattr(result, "draw_search", lambda *_: [])
    monkeypatch.setattr(result, "run_model", lambda *args, **kwargs: RunResult(Path()))


def some_stall(epoch: int, seeds: np.ndarray, values: dict[str, np.ndarray]) -> np.ndarray:
    """The nearer the learning rate to 1e-3 the better; some members soon stop improving."""
    return np.maximum(1 / (epoch + 1), 0.05 * (1 + seeds % 5)) + abs(
        np.log(values["lr_init"] / 1e-3)
    )


def one_process(data: str, method: str) -> Path:
    """Return the folder of the same search in one process."""
    folder = Path(data).with_name(method)
    if not folder.exists():
        overrides = {"datamodule.datafile_pattern": data, **SMALL, **OF_METHOD[method]}
        run.run_search({**overrides, "search": method}, run_dir=folder, method=method)
    return folder


@functools.cache
def composed(data: str, method: str, more: str) -> dict[str, Any]:
    overrides = {
        "datamodule.datafile_pattern": data,
        **SMALL,
        **OF_METHOD[method],
        **json.loads(more),
    }
    return compose_config("pbt.yaml", {**overrides, "search": method}, groups={"search": method})


def compose(data: str, method: str, more: Mapping[str, Any] = {}) -> dict[str, Any]:
    return copy.deepcopy(composed(data, method, json.dumps(more)))


class Cluster:
    """Trials without Ray: in turn, saved when they wait, some of them killed."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        self.config, self.folder = config, folder
        self.settings = check_search(config)
        self.places = folder / "places"
        self.groups: list[Group | None] = [None] * len(CHUNKS)
        self.coordinator = self.begin()

    def begin(self) -> Coordinator:
        """Begin, or go on with what the folder holds, as the driver does."""
        members = build_members(self.config, self.settings, [0])
        self.settings = members.settings
        path = self.folder / STATE
        state = json.loads(path.read_text()) if path.is_file() else {}
        self.coordinator = Coordinator(
            self.folder,
            state.get("chunks", CHUNKS),
            members.method,
            self.settings,
            max_epochs_of(self.config),
            n_kept=9,
            table=LiveTable(True, max_epochs_of(self.config), 3),
            checkpoints=state.get("checkpoints", ()),
        )
        self.groups = [None] * len(CHUNKS)
        return self.coordinator

    def start(self, i: int) -> Group:
        trial = Group(self.config, self.settings, self.coordinator.groups[i])
        saved = self.coordinator.checkpoints[i]
        if saved:
            trial.load(Place.of_trial(Path(saved[-1][1])))
        self.groups[i] = trial
        return trial

    def save(self, i: int, trial: Group) -> None:
        place = self.places / f"{i}_{trial.n_epochs}"
        place.mkdir(parents=True, exist_ok=True)
        trial.save(Place.of_trial(place))
        trial.write_about(Place.of_trial(place))
        self.coordinator.saved(i, trial.n_epochs, str(place), is_over=trial.is_over)

    def turn(self, i: int) -> bool:
        """Let a trial do what it can; return whether it is over."""
        trial = self.groups[i] or self.start(i)
        if trial.waits:
            self.coordinator.decide()
            plans = [plan for plan in self.coordinator.plans if plan.n_epochs == trial.n_epochs]
            if not plans:
                return False
            trial.follow(plans[0])
        if not trial.is_over:
            self.coordinator.report(trial.train_epoch())
        if trial.waits or trial.is_over or trial.n_epochs % 2 == 0:
            self.save(i, trial)
        return trial.is_over

    def run(self, kill: Callable[[int, int], bool] = lambda i, turn: False) -> Coordinator:
        over = [False] * len(CHUNKS)
        for turn in range(300):
            for i in np.random.permutation(len(CHUNKS)):
                over[i] = over[i] or self.turn(i)
                if not over[i] and kill(int(i), turn):
                    self.groups[i] = None
            if all(over) or self.coordinator.diverged_at is not None:
                break
        self.coordinator.decide()
        return self.coordinator


def by_epoch(folder: Path) -> dict[str, np.ndarray]:
    table = read_population(folder)
    order = np.lexsort((table["member"], table["epoch"]))
    return {name: column[order] for name, column in table.items()}


def assert_same_history(one: Path, other: Path) -> None:
    for ours, theirs in (
        (by_epoch(one), by_epoch(other)),
        (read_exchanges(one), read_exchanges(other)),
    ):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("method", OF_METHOD)
def test_trials_do_what_one_process_does(method: str, data: str, tmp_path: Path) -> None:
    one = one_process(data, method)
    cluster = Cluster(compose(data, method), tmp_path)
    coordinator = cluster.run(kill=lambda i, turn: i == 1 and turn in (4, 11))
    assert_same_history(one, tmp_path)

    status = json.loads((one / "status.json").read_text())
    places = [Place.of_trial(Path(saved[-1][1])) for saved in coordinator.checkpoints]
    abouts = [json.loads(place.about.read_text()) for place in places]
    scores = {int(k): score for about in abouts for k, score in about["scores"].items()}
    assert scores == {entry["member"]: entry["score"] for entry in status["members"]}
    left = {path.name for place in places for path in place.members.glob("member_*")}
    assert left == {places[0].member(k).name for k in scores}
    best = min(about["best"] for about in abouts)
    assert best == [status["best"][name] for name in ("score", "member", "epoch")]
    assert places[abouts.index(next(a for a in abouts if a["best"] == best))].best.is_file()
    assert coordinator.ended == status["ended"]


@pytest.mark.parametrize("method", OF_METHOD)
def test_a_driver_that_was_stopped_decides_again_as_before(
    method: str, data: str, tmp_path: Path
) -> None:
    cluster = Cluster(compose(data, method), tmp_path)
    for turn in range(7):
        for i in range(len(CHUNKS) if turn < 6 else 1):
            cluster.turn(i)
    coordinator = cluster.begin()
    assert not coordinator.ended
    coordinator = cluster.run()
    assert_same_history(one_process(data, method), tmp_path)
    again = cluster.begin()
    assert (again.ended, again.plans) == (coordinator.ended, coordinator.plans)


def test_more_epochs_are_trained_when_more_are_allowed(data: str, tmp_path: Path) -> None:
    Cluster(compose(data, "pbt", {"trainer.max_epochs": 8}), tmp_path).run()
    cluster = Cluster(compose(data, "pbt"), tmp_path)
    assert not cluster.coordinator.ended
    cluster.run()
    assert_same_history(one_process(data, "pbt"), tmp_path)


def test_an_epoch_is_recorded_once(data: str, tmp_path: Path) -> None:
    cluster = Cluster(compose(data, "pbt"), tmp_path)
    report = cluster.start(0).train_epoch()
    cluster.coordinator.report(report)
    cluster.coordinator.report(report)
    cluster.begin().report(report)
    assert read_population(tmp_path)["member"].tolist() == CHUNKS[0]


def test_members_that_all_diverge_end_the_search(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(epoch: int, seeds: np.ndarray, values: dict[str, np.ndarray]) -> np.ndarray:
        return np.where(epoch < 3, 1.0, np.nan) + 0 * seeds

    monkeypatch.setattr(FakePopulation, "loss", staticmethod(diverging))
    assert Cluster(compose(data, "pbt"), tmp_path).run().diverged_at == 3


def test_only_members_that_diverged_lose(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(epoch: int, seeds: np.ndarray, values: dict[str, np.ndarray]) -> np.ndarray:
        return np.where((seeds < 3) & (epoch == 4), np.nan, 1.0 / (epoch + 1)) + 0 * seeds

    monkeypatch.setattr(FakePopulation, "loss", staticmethod(diverging))
    coordinator = Cluster(compose(data, "pbt"), tmp_path).run()
    assert set(CHUNKS[0]) == set(coordinator.plans[0].parents)
    assert not set(coordinator.plans[0].parents.values()) & set(CHUNKS[0])
    assert not read_population(tmp_path)["diverged"][-1]


# ---- options -------------------------------------------------------------------------------------

NODE = {"CPU": 8.0, "GPU": 2.0}


@given(
    n_members=st.integers(2, 70),
    n_nodes=st.integers(1, 4),
    cpus=st.sampled_from([0.5, 1, 2, 3, 8]),
    gpus=st.sampled_from([0, 0.1, 0.25, 0.3, 0.5, 1, 2]),
    per_trial=st.none() | st.integers(1, 80),
)
def test_members_are_divided_evenly_among_the_places_there_are(
    n_members: int, n_nodes: int, cpus: float, gpus: float, per_trial: int | None
) -> None:
    options = RayOptions(cpus_per_trial=cpus, gpus_per_trial=gpus, members_per_trial=per_trial)
    nodes = [NODE] * n_nodes
    resources = options.resources(nodes, may_use_gpu=True)
    chunks = options.divide(n_members, nodes, resources)
    slots = options.slots(nodes, resources)
    assert [k for part in chunks for k in part] == list(range(n_members))
    sizes = {len(part) for part in chunks}
    assert max(sizes) - min(sizes) <= 1
    on_gpus = 2 * int(1 / gpus + 1e-6) if 0 < gpus < 1 else int(2 / gpus) if gpus else 99
    assert slots == n_nodes * min(int(8 / cpus), on_gpus)
    if per_trial is None:
        assert len(chunks) <= slots
    else:
        assert max(sizes) <= per_trial


@pytest.mark.parametrize(
    ("nodes", "may_use_gpu", "expected"),
    [
        ([{"CPU": 4.0}], True, {"cpu": 1.0, "gpu": 0.0}),
        ([{"CPU": 4.0}, NODE], True, {"cpu": 1.0, "gpu": 1.0}),
        ([NODE], False, {"cpu": 1.0, "gpu": 0.0}),
    ],
)
def test_a_trial_takes_a_gpu_where_there_is_one(
    nodes: list[dict[str, float]], may_use_gpu: bool, expected: dict[str, float]
) -> None:
    assert RayOptions().resources(nodes, may_use_gpu=may_use_gpu) == expected


def test_a_cluster_that_is_too_small_is_told() -> None:
    with pytest.raises(
        UserError, match="2 cores and 1 GPUs: the nodes have 8 cores and 0 GPUs; 1 c"
    ):
        RayOptions(cpus_per_trial=2, gpus_per_trial=1).resources(
            [{"CPU": 8.0}, {"CPU": 1.0, "GPU": 4.0}], may_use_gpu=True
        )


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"cpu_per_trial": 2}, "search.ray has no cpu_per_trial; did you mean cpus_per_trial"),
        ({"members_per_trial": 0}, "members_per_trial is 0; legal are whole numbers >= 1"),
        ({"num_cpus": 1.5}, "num_cpus is 1.5"),
        ({"max_failures": -1}, "max_failures is -1"),
        ({"checkpoint_every": True}, "checkpoint_every is True"),
        ({"cpus_per_trial": 0}, "cpus_per_trial is 0; legal are numbers > 0"),
        ({"gpus_per_trial": -0.5}, "gpus_per_trial is -0.5; legal are numbers >= 0"),
        ({"gpus_per_trial": 1.5}, "gpus_per_trial is 1.5; legal are fractions up to 1 and whole"),
        ({"gpus_per_trial": "half"}, "gpus_per_trial is 'half'"),
        ({"address": 6379}, "address is 6379; give a text"),
        ({"storage_path": ""}, "storage_path is ''"),
    ],
)
def test_a_wrong_option_is_named(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(RayOptions, given_, "search.ray")


def test_options_are_those_of_the_configuration(data: str) -> None:
    config = compose(data, "pbt", {"search.ray.gpus_per_trial": 0.5})
    options = from_mapping(RayOptions, check_search(config).ray, "search.ray")
    assert options == RayOptions(gpus_per_trial=0.5)
    assert SearchSettings(ray=None).ray == {}
    assert type(RayOptions(max_failures=2.0).max_failures) is int


# ---- without Ray ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["BinaryTournamentPBT", "ImprovementRatioStopper", "train_trial", "--backend ray"]
)
def test_what_needs_ray_says_how_to_install_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    with pytest.raises(ConfigError, match=f"{name} needs Ray.*pip install 'lfads-torch\\[tune\\]'"):
        if name == "--backend ray":
            going_on = GoingOn({}, resume=False, accept_changed_data=False)
            run_ray_search({}, SearchSettings(), tmp_path, going_on, overwrite=False)
        else:
            getattr(tune, name)


def test_an_unknown_name_is_no_matter_of_ray() -> None:
    with pytest.raises(AttributeError, match="BinaryTournament'"):
        _ = tune.BinaryTournament
