"""Alignment of sessions by principal-component regression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lfads_torch.data import DataWarning, read_session, write_session
from lfads_torch.errors import DataError, UserError
from lfads_torch.sessions.align import (
    Trials,
    align_sessions,
    align_to,
    choose_penalty,
    principal_components,
    ridge,
)
from lfads_torch.sessions.align_files import align_files

C, T, K = 6, 20, 3


def latents() -> np.ndarray:
    """Three smooth components, by condition, of decreasing size."""
    t = np.linspace(0, 2 * np.pi, T)
    phase = np.arange(C)[:, None] * 2 * np.pi / C
    waves = [2 * np.sin(t + phase), np.cos(2 * t - phase), 0.5 * np.sin(3 * t) * np.cos(phase)]
    found = np.stack(waves, axis=-1)
    return found - found.mean(axis=(0, 1))


def session(
    name: str,
    n_channels: int = 12,
    per_condition: int = 10,
    noise: float = 0.5,
    missing: tuple[int, ...] = (),
    held_out: int = 0,
    seed: int = 0,
) -> tuple[Trials, np.ndarray]:
    """Trials of channels that mix the latents, and the mixing matrix."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(n_channels, K))
    conditions = np.repeat([c for c in range(C) if c not in missing], per_condition)
    conditions = rng.permutation(conditions)
    means = 5 + latents()[conditions] @ mixing.T
    data = means + noise * rng.normal(size=means.shape)
    return Trials(name, data[..., : n_channels - held_out], data, conditions), mixing


def r2(found: np.ndarray, wanted: np.ndarray) -> float:
    """Of the best linear map between two sets of components."""
    x, y = (a.reshape(-1, a.shape[-1]) for a in (found, wanted))
    rows = np.isfinite(x).all(axis=1)
    x, y = x[rows] - x[rows].mean(axis=0), y[rows] - y[rows].mean(axis=0)
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(1 - (residual**2).sum() / (y**2).sum())


# Numerics -----------------------------------------------------------------------------------------


def test_components_of_complete_data_are_those_of_an_svd() -> None:
    rng = np.random.default_rng(0)
    for shape in ((30, 8), (8, 30)):
        data = rng.normal(size=shape)
        scores, power = principal_components(data, 4)
        left, size, _ = np.linalg.svd(data - data.mean(axis=0), full_matrices=False)
        np.testing.assert_allclose(np.abs(scores), np.abs(left * size)[:, :4], atol=1e-9)
        np.testing.assert_allclose(power[:4], size[:4] ** 2)
        assert ((scores**3).sum(axis=0) > 0).all()


@pytest.mark.parametrize("rank", [3, 6])
def test_components_of_data_with_missing_blocks(rank: int) -> None:
    """Also with more components than there are: the others make nothing up."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(100, 3)) @ rng.normal(size=(3, 40))
    data = truth + 0.05 * rng.normal(size=truth.shape)
    data[:30, :10] = np.nan
    data[50:80, 20:30] = np.nan
    scores, _ = principal_components(data, rank)
    assert r2(scores[:, None, :3], (truth - truth.mean(axis=0))[:, None]) > 0.995


def test_ridge_by_hand_and_without_scale() -> None:
    x, y = np.array([[1.0], [2.0], [3.0]]), np.array([[2.0], [4.0], [6.0]])
    [(weight, bias)] = ridge(x, y, [1.0], intercept=True)  # x'x = 2, so the penalty is 2
    np.testing.assert_allclose((weight[0, 0], bias[0]), (1.0, 2.0))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(50, 2))
    [(small, _)], [(large, _)] = (ridge(s * x, y, [0.1], intercept=False) for s in (1e-3, 1e3))
    np.testing.assert_allclose(1e-3 * small, 1e3 * large)


def test_ridge_leaves_missing_rows_out() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(50, 2))
    holes = x.copy()
    holes[:5, 0] = np.nan
    [(one, _)], [(two, _)] = (
        ridge(a, b, [0.1], intercept=True) for a, b in ((holes, y), (x[5:], y[5:]))
    )
    np.testing.assert_allclose(one, two)


def test_the_penalty_grows_with_the_noise() -> None:
    rng = np.random.default_rng(0)
    weight, found = rng.normal(size=(20, 1)), []
    for noise in (0.01, 3.0):
        x = rng.normal(size=(2, 40, 20))
        y = x @ weight + noise * rng.normal(size=(2, 40, 1))
        found.append(choose_penalty([(x[0], y[0], x[1], y[1])], [1e-4, 1e-2, 1.0], True))
    assert found[0][0] < found[1][0]
    assert found[0][1] > 0.99 > found[1][1]


# Sessions -----------------------------------------------------------------------------------------


def test_sessions_find_what_they_share() -> None:
    made = [session(f"s{i}", n_channels=8 + 4 * i, seed=i) for i in range(3)]
    alignment = align_sessions([trials for trials, _ in made], K, smooth_bins=1.0)
    assert alignment.conditions == list(range(C))
    assert r2(alignment.components, latents()) > 0.98
    assert alignment.components[..., 0].std() == pytest.approx(1)
    assert alignment.explained[0] > alignment.explained[1] > alignment.explained[2]
    for own, (trials, mixing) in zip(alignment.sessions, made, strict=True):
        assert own.r2 > 0.95
        assert (own.n_trials == 10).all()
        # The session's own averages give the shared components ...
        np.testing.assert_allclose(own.factors, alignment.components, atol=0.25)
        # ... and the components give back its means.
        means = own.readout_bias + alignment.components @ own.readout_weight.T
        error = means - 5 - latents() @ mixing.T
        assert error[:, 3:-3].std() < 0.3  # smoothing flattens the ends
        factors = (trials.encod_data - own.readin_offset) @ own.readin_weight
        assert (
            np.corrcoef(
                factors[trials.conditions == 0, :, 0].mean(axis=0), alignment.components[0, :, 0]
            )[0, 1]
            > 0.98
        )


def test_a_session_without_some_conditions() -> None:
    made = [
        session("a", missing=(0,), seed=1),
        session("b", missing=(3, 4), seed=2),
        session("c", n_channels=6, missing=(1, 2), seed=3),
    ]
    alignment = align_sessions([trials for trials, _ in made], K, smooth_bins=1.0)
    assert alignment.conditions == list(range(C))
    assert np.isfinite(alignment.components).all()
    assert r2(alignment.components, latents()) > 0.95
    for own, lacks in zip(alignment.sessions, ((0,), (3, 4), (1, 2)), strict=True):
        gone = np.isin(np.arange(C), lacks)
        assert (own.n_trials[gone] == 0).all()
        assert np.isnan(own.factors[gone]).all()
        assert np.isfinite(own.factors[~gone]).all()


def test_counts_have_no_negative_bias() -> None:
    rng = np.random.default_rng(0)
    conditions = np.repeat(np.arange(C), 10)
    made = [
        Trials(f"s{i}", counts, counts, conditions)
        for i in range(2)
        for counts in [rng.poisson(np.exp(latents()[conditions] @ rng.normal(size=(K, 8)) - 1))]
    ]
    for own in align_sessions(made, K).sessions:
        assert (own.readout_bias >= 0).all()
        assert (own.readin_offset >= 0).all()


def test_held_out_channels_have_a_read_out() -> None:
    trials, mixing = session("a", held_out=4)
    [own] = align_sessions([trials], K, smooth_bins=1.0).sessions
    assert own.readin_weight.shape == (8, K)
    assert own.readout_weight.shape == (12, K)
    np.testing.assert_array_equal(own.readin_offset, own.readout_bias[:8])
    components = align_sessions([trials], K, smooth_bins=1.0).components
    means = own.readout_bias + components @ own.readout_weight.T
    assert np.corrcoef(means[..., 10].ravel(), (latents() @ mixing[10]).ravel())[0, 1] > 0.98


@pytest.mark.parametrize("dead", [np.nan, 0.0])
def test_a_channel_that_says_nothing(dead: float) -> None:
    trials, _ = session("a", seed=1)
    data = trials.encod_data.copy()
    data[..., 3] = dead
    data[0, 5] = np.nan  # and a bin of a trial that is missing
    broken = trials._replace(encod_data=data, recon_data=data)
    alignment = align_sessions([broken, session("b", seed=2)[0]], K, smooth_bins=1.0)
    own = alignment.sessions[0]
    np.testing.assert_allclose(own.readin_weight[3], 0, atol=1e-9)
    np.testing.assert_allclose(own.readout_weight[3], 0, atol=1e-9)
    assert own.r2 > 0.95


@pytest.mark.filterwarnings("ignore::lfads_torch.data.DataWarning")
def test_what_weighs_the_same() -> None:
    """A loud session with latents of its own takes over, unless sessions weigh the same."""
    quiet, _ = session("quiet", n_channels=20, noise=0.1, seed=0)
    rng = np.random.default_rng(5)
    own = rng.normal(size=(C, T, 1)) @ rng.normal(size=(1, 20))
    conditions = np.repeat(np.arange(C), 4)
    loud = 100 * own[conditions] + rng.normal(size=(len(conditions), T, 20))
    trials = [quiet, Trials("loud", loud, loud, conditions)]
    first = {
        weigh_by: align_sessions(trials, 1, smooth_bins=0.0, weigh_by=weigh_by).components
        for weigh_by in ("channel", "session", "trial")
    }
    shares = {k: r2(v, latents()[..., :1]) for k, v in first.items()}
    assert shares["channel"] < 0.2
    assert shares["trial"] > 0.8  # 60 trials against 24
    assert shares["channel"] < shares["session"]


def test_results_do_not_depend_on_chance() -> None:
    trials = [session("a", seed=1)[0], session("b", missing=(2,), seed=2)[0]]
    one, two = (align_sessions(trials, K, seed=4) for _ in range(2))
    for a, b in zip(one.sessions, two.sessions, strict=True):
        np.testing.assert_array_equal(a.readin_weight, b.readin_weight)


def test_one_session_onto_given_components() -> None:
    trials, _ = session("new", missing=(1,), seed=7)
    own = align_to(trials, latents(), list(range(C)), smooth_bins=1.0)
    there = np.arange(C) != 1
    np.testing.assert_allclose(own.factors[there], latents()[there], atol=0.4)
    with pytest.raises(DataError, match="new has 20 bins, what it is to be mapped onto has 19"):
        align_to(trials, latents()[:, :19], list(range(C)))
    with pytest.raises(DataError, match="new shares no condition"):
        align_to(trials, latents(), [f"c{i}" for i in range(C)])


# What is wrong ------------------------------------------------------------------------------------


def test_conditions_with_few_trials_are_told_and_left_out() -> None:
    trials, _ = session("a", seed=1)
    conditions = trials.conditions.copy()
    conditions[0] = 99
    with pytest.warns(DataWarning, match=r"a: 1 of 7 conditions have fewer than 2 .*: 99 \(1\)"):
        alignment = align_sessions([trials._replace(conditions=conditions)], K)
    assert 99 not in alignment.conditions
    assert len(alignment.warnings) == 1


def test_a_session_that_shares_nothing_is_told() -> None:
    rng = np.random.default_rng(0)
    good = [session(f"s{i}", seed=i, noise=0.1)[0] for i in range(2)]
    noise = rng.normal(size=(60, T, 9))
    bad = Trials("noise", noise, noise, good[0].conditions)
    with pytest.warns(DataWarning, match="noise: its channels .* R2 of only"):
        align_sessions([*good, bad], 2, smooth_bins=0.0)


def test_sessions_that_share_no_condition() -> None:
    one, two = session("one", seed=1)[0], session("two", seed=2)[0]
    apart = two._replace(conditions=two.conditions + 100)
    with pytest.raises(DataError, match=r"two shares no condition .* it has 100, 101"):
        align_sessions([one, apart], K)
    # A third session can link them.
    both = session("both", seed=3)[0]
    linked = both._replace(conditions=np.where(both.conditions < 3, both.conditions, 100))
    assert len(align_sessions([one, apart, linked], K).sessions) == 3
    named = two._replace(conditions=np.array([f"c{c}" for c in two.conditions]))
    with pytest.raises(DataError, match="conditions are of different kinds"):
        align_sessions([one, named], K)


def test_sessions_that_cannot_be_averaged() -> None:
    one, two = session("one", seed=1)[0], session("two", seed=2)[0]
    with pytest.raises(DataError, match=r"bins per trial are .*'two': 19"):
        align_sessions([one, two._replace(encod_data=two.encod_data[:, :19])], K)
    with pytest.raises(DataError, match="one: no condition has the 2 training trials"):
        align_sessions([one._replace(conditions=np.arange(60))], K)
    infinite = one.encod_data.copy()
    infinite[0, 0, 0] = np.inf
    with pytest.raises(DataError, match="one: train_encod_data holds infinite values"):
        align_sessions([one._replace(encod_data=infinite)], K)
    flat = np.ones_like(one.encod_data)
    with pytest.raises(DataError, match="averages do not vary"):
        align_sessions([one._replace(encod_data=flat, recon_data=flat)], K)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"n_components": 13},
            r"13 components of 6 conditions x 20 bins and 12 .* legal are 1 to 12",
        ),
        ({"n_components": 0}, "n_components is 0"),
        ({"min_trials": 1}, "min_trials is 1"),
        ({"smooth_bins": -1.0}, "smooth_bins is -1.0"),
        ({"weigh_by": "neuron"}, "weigh_by is 'neuron'; legal: channel, session, trial"),
        ({"penalties": [0.0]}, "one penalty above 0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        align_sessions([session("a")[0]], **{"n_components": K, **options})


# Files --------------------------------------------------------------------------------------------


def write(folder: Path, *made: Trials, **more: Any) -> str:
    for trials in made:
        arrays = {
            "valid_encod_data": trials.encod_data[:2],
            "valid_recon_data": trials.recon_data[:2],
        }
        arrays |= {"train_encod_data": trials.encod_data, "train_recon_data": trials.recon_data}
        arrays |= {"train_cond_idx": trials.conditions, "valid_cond_idx": trials.conditions[:2]}
        write_session(folder / f"{trials.name}.h5", {**arrays, **more}, {"bin_ms": 20.0})
    return str(folder / "*.h5")


def test_files_get_their_maps(tmp_path: Path) -> None:
    made = [session(f"s{i}", held_out=2, seed=i)[0] for i in range(2)]
    pattern = write(tmp_path, *made, mine=np.arange(3))
    alignment, paths = align_files(pattern, K, smooth_ms=20.0)
    expected = align_sessions(made, K, smooth_bins=1.0)
    assert [path.name for path in paths] == ["s0.h5", "s1.h5"]
    for path, own, other in zip(paths, alignment.sessions, expected.sessions, strict=True):
        np.testing.assert_allclose(own.readin_weight, other.readin_weight)
        data = read_session(path)
        for key in ("readin_weight", "readin_offset", "readout_weight", "readout_bias"):
            np.testing.assert_allclose(getattr(data, key), getattr(own, key), rtol=1e-6)
        with h5py.File(path) as file:
            assert file["mine"][()].tolist() == [0, 1, 2]
            assert file.attrs["alignment_r2"] == own.r2
    with pytest.raises(UserError, match=r"s0.h5 holds readin_weight, .*--overwrite"):
        align_files(pattern, K)
    align_files(pattern, 2, overwrite=True)
    assert read_session(paths[0]).readin_weight.shape[1] == 2


def test_copies(tmp_path: Path) -> None:
    pattern = write(tmp_path, *(session(f"s{i}", seed=i)[0] for i in range(2)))
    before = (tmp_path / "s0.h5").read_bytes()
    _, paths = align_files(pattern, K, output_dir=tmp_path / "aligned")
    assert [path.parent.name for path in paths] == ["aligned", "aligned"]
    assert (tmp_path / "s0.h5").read_bytes() == before
    with pytest.raises(UserError, match=r"aligned/s0.h5 exists.*--overwrite"):
        align_files(pattern, K, output_dir=tmp_path / "aligned")


def test_nothing_is_written_unless_all_can_be_aligned(tmp_path: Path) -> None:
    one, two = session("one", seed=1)[0], session("two", seed=2)[0]
    pattern = write(tmp_path, one, two._replace(conditions=two.conditions + 100))
    with pytest.raises(DataError, match="shares no condition"):
        align_files(pattern, K)
    assert read_session(tmp_path / "one.h5").readin_weight is None


@pytest.mark.parametrize(
    "conditions",
    [
        lambda c: c.astype(float),
        lambda c: np.where(c == 0, -1, c),  # trials without a condition
        lambda c: np.where(c == 0, np.nan, c.astype(float)),
        lambda c: np.array([f"target {i}" for i in c]),
        lambda c: [np.flatnonzero(c == i) for i in range(C)],  # as the benchmark lists them
    ],
    ids=["floats", "negative", "nan", "text", "lists"],
)
def test_kinds_of_conditions(tmp_path: Path, conditions: Any) -> None:
    trials, _ = session("a")
    ragged = trials._replace(conditions=trials.conditions)
    pattern = write(tmp_path, ragged, train_which=conditions(trials.conditions))
    alignment, _ = align_files(pattern, K, condition_key="which")
    assert len(alignment.conditions) in (C - 1, C)
    assert (alignment.sessions[0].n_trials == 10).all()


def test_files_that_do_not_tell_conditions(tmp_path: Path) -> None:
    pattern = write(tmp_path, session("a")[0], train_bad=np.zeros((3, 2)), train_far=[[0], [99, 1]])
    with pytest.raises(DataError, match=r"no 'train_cond_id'; did you mean 'train_cond_idx'"):
        align_files(pattern, K, condition_key="cond_id")
    with pytest.raises(DataError, match=r"this file has cond_idx"):
        align_files(pattern, K, condition_key="x")
    with pytest.raises(DataError, match=r"'train_bad' has shape \(3, 2\)"):
        align_files(pattern, K, condition_key="bad")
    with pytest.raises(DataError, match=r"'train_far' lists trials up to 99, there are 60"):
        align_files(pattern, K, condition_key="far")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file.attrs["bin_ms"]
    with pytest.raises(DataError, match=r"a width in ms needs .*--smooth-bins"):
        align_files(pattern, K, smooth_ms=20.0)
