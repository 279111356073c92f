"""Posterior sampling: averages, order, memory bound, files, sessions by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lfads_torch.data import write_session
from lfads_torch.datamodules import BasicDataModule, attach_tensors
from lfads_torch.errors import DataError, UserError, WriteError
from lfads_torch.model import LFADS
from lfads_torch.modules import priors
from lfads_torch.modules.augmentations import AugmentationStack, SelectiveBackpropThruTime
from lfads_torch.modules.readin_readout import FanInLinear
from lfads_torch.post_run import analysis
from lfads_torch.post_run.analysis import run_posterior_sampling, sample_posterior
from lfads_torch.tuples import SessionBatch, SessionOutput
from tests.small import arrays, batch_of, datamodule, lfads, write

# Files of a few trials, given by their path, make batches that are larger than the data.
pytestmark = pytest.mark.filterwarnings("ignore::lfads_torch.data.DataWarning")

IN_FILE: dict[str, Any] = {"n_test": 4, "bins": (5, 7), "channels": (3, 4), "ext": 1}


@pytest.fixture
def pattern(tmp_path: Path) -> str:
    return write(tmp_path, arrays(**IN_FILE, seed=1))


def wild(model: LFADS) -> LFADS:
    """Model with rates that depend visibly on the trial and on the samples."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.mul_(2)
    return model.eval()


def close(got: SessionOutput, expected: SessionOutput, **tolerance: float) -> None:
    for name, value in expected._asdict().items():
        torch.testing.assert_close(getattr(got, name), value, **tolerance)


# ---- averages ----------------------------------------------------------------------------------


class Steps(nn.Module):
    """Prior whose k-th posterior sample is the mean plus k."""

    def make_posterior(self, mean: Tensor, std: Tensor) -> Any:
        class Posterior:
            def rsample(self, shape: tuple[int]) -> Tensor:
                return mean + torch.arange(float(shape[0])).view(-1, 1, 1)

        return Posterior()

    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        return mean.new_zeros(())


def test_the_average_is_over_samples(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of samples known beforehand: by hand, one forward pass for each."""
    data = datamodule(pattern)
    model = wild(lfads(data, ic_prior=Steps(), variational=True))
    # Noise of the inferred inputs: all ones.
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: torch.ones(*shape))
    got = sample_posterior(model, data, num_samples=4)
    batch = next(iter(data.split_loader("valid")))[0][0]
    by_hand = []
    with torch.no_grad():
        encoding = model.encode({0: batch})
        for k in range(4):
            shifted = encoding._replace(ic_mean=encoding.ic_mean + k)
            posterior = model.decode(shifted, batch.ext_input, sample=True)
            rates = model.read_out(0, posterior.factors, output_means=True)
            by_hand.append({"output_params": rates, **posterior._asdict()})
    assert not torch.allclose(by_hand[0]["factors"], by_hand[3]["factors"])
    for name in by_hand[0]:
        mean = torch.stack([sample[name] for sample in by_hand]).mean(dim=0)
        torch.testing.assert_close(getattr(got, name), mean)
    torch.testing.assert_close(got.ic_mean, encoding.ic_mean)
    torch.testing.assert_close(got.ic_std, encoding.ic_std)


def test_averages_converge_to_those_of_single_passes(pattern: str) -> None:
    data = datamodule(pattern)
    model = wild(lfads(data))
    batch = next(iter(data.split_loader("valid")))
    with torch.no_grad():
        passes = [model.predict_step(batch, 0)[0].gen_states for _ in range(200)]
    spread = torch.stack(passes).std(dim=0)
    expected = torch.stack(passes).mean(dim=0)
    got = sample_posterior(model, data, num_samples=2000).gen_states
    # Five standard errors of the difference, for a few hundred numbers.
    assert ((got - expected).abs() <= 5 * spread * (1 / 200 + 1 / 2000) ** 0.5 + 1e-6).all()
    assert spread.mean() > 0.01


def test_without_a_posterior_they_are_the_forward_means(pattern: str) -> None:
    data = datamodule(pattern)
    model = wild(lfads(data, variational=False))
    for split in ("train", "valid", "test"):
        batch = next(iter(data.split_loader(split)))
        with torch.no_grad():
            expected = model(batch)[0]
        close(sample_posterior(model, data, num_samples=3, split=split), expected)


@pytest.mark.parametrize("max_bytes", [1, 20_000, 2**30])
def test_memory_bound_changes_no_shape(pattern: str, max_bytes: int) -> None:
    data = datamodule(pattern)
    model = wild(lfads(data))
    free = sample_posterior(model, data, num_samples=3)
    bound = sample_posterior(model, data, num_samples=3, max_bytes=max_bytes)
    for name, value in free._asdict().items():
        assert getattr(bound, name).shape == value.shape
    # What is not drawn is the same, trial by trial.
    torch.testing.assert_close(bound.ic_mean, free.ic_mean)
    certain = wild(lfads(data, variational=False))
    # Matrix products of other sizes round differently in float32.
    close(
        sample_posterior(certain, data, max_bytes=max_bytes),
        sample_posterior(certain, data),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("where", ["bound", "memory"])
def test_memory_bound_is_kept(pattern: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = datamodule(pattern)
    model = wild(lfads(data))
    rows: list[int] = []
    decode = model.decode

    def spy(encoding: Any, ext_input: Tensor, **options: Any) -> Any:
        rows.append(len(encoding.ic_mean) * options["n_samples"])
        return decode(encoding, ext_input, **options)

    monkeypatch.setattr(model, "decode", spy)
    bound, bytes_ = 6 * analysis._bytes_per_row(model), {}
    if where == "bound":
        bytes_ = {"max_bytes": bound}
    else:  # half of what is free
        monkeypatch.setattr(analysis, "bytes_available", lambda device: 2 * bound)
    sample_posterior(model, data, num_samples=10, **bytes_)
    assert max(rows) <= 6
    assert sum(rows) == 10 * 5  # samples x validation trials


def test_seeds(pattern: str) -> None:
    data = datamodule(pattern)
    model = wild(lfads(data))
    state = torch.get_rng_state()
    first = sample_posterior(model, data, num_samples=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    close(sample_posterior(model, data, num_samples=3), first, rtol=0, atol=0)
    other = sample_posterior(model, data, num_samples=3, seed=1)
    assert not torch.equal(other.factors, first.factors)


def test_a_models_mode_is_left_and_dropout_is_off(pattern: str) -> None:
    data = datamodule(pattern)
    model = lfads(data, variational=False, dropout_rate=0.5)
    model.train()
    first, second = sample_posterior(model, data), sample_posterior(model, data)
    assert model.training
    close(first, second, rtol=0, atol=0)
    assert not first.factors.requires_grad


def test_inference_augmentations_apply(pattern: str) -> None:
    class Zero:
        def process_batch(self, batch: SessionBatch) -> SessionBatch:
            return batch._replace(encod_data=torch.zeros_like(batch.encod_data))

    data = datamodule(pattern)
    model = wild(lfads(data, infer_aug_stack=AugmentationStack([Zero()], [0])))
    out = sample_posterior(model, data)
    torch.testing.assert_close(out.ic_mean, out.ic_mean[:1].expand_as(out.ic_mean))


# ---- what is sampled ---------------------------------------------------------------------------


def test_paths_patterns_and_arrays_of_trials(tmp_path: Path) -> None:
    session = arrays(seed=1)
    pattern = write(tmp_path, session)
    model = wild(lfads(pattern, variational=False))
    expected = sample_posterior(model, datamodule(pattern))
    for data in (pattern, tmp_path / "day0.h5", session["valid_encod_data"]):
        close(sample_posterior(model, data), expected)
    close(sample_posterior(model, torch.from_numpy(session["valid_encod_data"]).int()), expected)


def test_arrays_for_a_model_with_a_linear_read_in(tmp_path: Path) -> None:
    session = arrays()
    pattern = write(tmp_path, session)
    model = lfads(pattern, readin=FanInLinear(3, 5), encod_data_dim=5, variational=False)
    close(sample_posterior(model, session["valid_encod_data"]), sample_posterior(model, pattern))


def test_arrays_that_do_not_fit(pattern: str, tmp_path: Path) -> None:
    with_input = lfads(pattern)
    trials = np.ones((2, 5, 3))
    with pytest.raises(UserError, match="external inputs, which an array lacks"):
        sample_posterior(with_input, trials)
    (tmp_path / "other").mkdir()
    model = lfads(write(tmp_path / "other", arrays()))
    with pytest.raises(UserError, match=r"shape \(2, 5, 3\).*takes \(trials, 6, 3\)"):
        sample_posterior(model, trials)
    with pytest.raises(UserError, match="without trials"):
        sample_posterior(model, np.ones((0, 6, 3)))
    with pytest.raises(UserError, match="1 infinite values"):
        sample_posterior(model, np.where(np.arange(18).reshape(1, 6, 3) == 4, np.inf, 1.0))
    with pytest.raises(UserError, match="num_samples is 0"):
        sample_posterior(model, trials, num_samples=0)


def test_missing_bins(tmp_path: Path) -> None:
    session = arrays()
    session["valid_recon_data"][0, 3:5] = np.nan
    session["valid_encod_data"] = session["valid_recon_data"]
    pattern = write(tmp_path, session)
    stacks = [AugmentationStack([SelectiveBackpropThruTime()], [0], [0]) for _ in range(2)]
    model = lfads(pattern, train_aug_stack=stacks[0], infer_aug_stack=stacks[1])
    for data in (pattern, session["valid_encod_data"]):
        inferred = sample_posterior(model, data, num_samples=2)._asdict()
        assert all(x.isfinite().all() for x in inferred.values())


def test_splits(tmp_path: Path) -> None:
    pattern = write(tmp_path, arrays(), arrays(n_test=3))
    model = lfads(pattern)
    with pytest.raises(UserError, match="split='night'; legal are train, valid, test"):
        sample_posterior(model, pattern, split="night")
    # Of the sessions that have it, under their own number.
    found = sample_posterior(model, pattern, num_samples=1, split="test")
    assert {number: len(out.factors) for number, out in found.items()} == {1: 3}
    (tmp_path / "day1.h5").unlink()
    alone = lfads(pattern)
    with pytest.raises(UserError, match="No data file has a 'test' split"):
        sample_posterior(alone, pattern, split="test")


# ---- files -------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        return {key: file[key][()] for key in file}


def test_files_hold_everything_in_the_order_of_the_input(tmp_path: Path) -> None:
    session = arrays(**IN_FILE, seed=1)
    session |= {
        "valid_behavior": np.random.default_rng(0).normal(size=(5, 7, 2)),
        "train_cond_idx": np.arange(7),
        "note": np.array([b"mine"]),
    }
    write_session(tmp_path / "day0.h5", session, {"bin_ms": 20})
    data = datamodule(tmp_path / "day0.h5")
    model = wild(lfads(data, variational=False))
    facts = {"run": "runs/a", "checkpoint": "best.ckpt"}
    paths = run_posterior_sampling(model, data, "lfads_output.h5", folder=tmp_path / "out", **facts)
    assert paths == [tmp_path / "out" / "lfads_output_day0.h5"]
    assert [path.name for path in paths[0].parent.iterdir()] == ["lfads_output_day0.h5"]
    found = read(paths[0])
    assert found.keys() == session.keys() | {
        f"{split}_{field}"
        for split in ("train", "valid", "test")
        for field in SessionOutput._fields
        if field != "behavior"
    }
    for key, value in session.items():
        np.testing.assert_array_equal(found[key], value)
    for split in ("train", "valid", "test"):
        encod = torch.from_numpy(session[f"{split}_encod_data"])
        recon = torch.from_numpy(session[f"{split}_recon_data"])
        ext = torch.from_numpy(session[f"{split}_ext_input"])
        with torch.no_grad():
            expected = model(batch_of(encod, recon)._replace(ext_input=ext))[0]
        for field, value in expected._asdict().items():
            torch.testing.assert_close(torch.from_numpy(found[f"{split}_{field}"]), value)
    with h5py.File(paths[0]) as file:
        attributes = dict(file.attrs)
    assert attributes["bin_ms"] == 20
    assert attributes["session_name"] == "day0"
    assert list(attributes["model_session_names"]) == ["day0"]
    assert attributes["num_samples"] == 1
    assert (attributes["run"], attributes["checkpoint"]) == ("runs/a", "best.ckpt")


@pytest.mark.parametrize("in_memory", [True, False])
def test_files_follow_a_redrawn_split(pattern: str, tmp_path: Path, in_memory: bool) -> None:
    gb = 1 if in_memory else 0
    redrawn = datamodule(pattern, reshuffle_tv_seed=3, reshuffle_tv_ratio=0.4, max_memory_gb=gb)
    model = wild(lfads(redrawn, variational=False))
    files = [
        read(run_posterior_sampling(model, data, "o.h5", folder=tmp_path / str(i))[0])
        for i, data in enumerate((redrawn, datamodule(pattern)))
    ]
    rows = redrawn.train_inds[0], redrawn.valid_inds[0]
    for name in ("factors", "recon_data", "encod_data", "output_params"):
        pooled = np.concatenate([files[1][f"{split}_{name}"] for split in ("train", "valid")])
        for split, chosen in zip(("train", "valid"), rows, strict=True):
            # Products of float32 round by a trial's place in its batch; trials differ by far more.
            np.testing.assert_allclose(files[0][f"{split}_{name}"], pooled[chosen], 2e-6, 1e-6)
    assert files[0].keys() == files[1].keys()


def test_files_go_into_the_working_directory_named_after_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("m1.day1.h5", "m1.day2.h5", "m2.h5"):
        write_session(tmp_path / name, arrays(seed=1))
    data = datamodule(tmp_path / "m*.h5")
    model = lfads(data)
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    with (
        pytest.warns(UserWarning, match="into the working directory, not into deep"),
        pytest.warns(UserWarning, match="2 data files are named m1 up to the first dot"),
    ):
        paths = run_posterior_sampling(model, data, "deep/rates.out", num_samples=1)
    names = ["rates_m1_0.out", "rates_m1_1.out", "rates_m2.out"]
    assert [str(path) for path in paths] == names
    assert sorted(path.name for path in Path().iterdir()) == names


def test_sessions_without_a_file_keep_their_arrays(tmp_path: Path) -> None:
    session = arrays(seed=1) | {"psth": np.ones((2, 3)), "name": "mine"}
    data = BasicDataModule("nothing.mat")
    attach_tensors(data, [session])
    (path,) = run_posterior_sampling(lfads(data), data, "o.h5", num_samples=1, folder=tmp_path)
    file = read(path)
    assert path.name == "o_session0.h5" and file.keys() > session.keys()
    np.testing.assert_array_equal(file["psth"], session["psth"])


def test_an_earlier_file_stays_when_sampling_fails(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = datamodule(pattern)
    model = lfads(data)
    (tmp_path / "out").mkdir()
    path = run_posterior_sampling(model, data, "o.h5", num_samples=1, folder=tmp_path / "out")[0]
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.File, "create_dataset", full)
    with pytest.raises(WriteError, match="the disk is full"):
        run_posterior_sampling(model, data, "o.h5", num_samples=1, folder=tmp_path / "out")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(WriteError, match="the disk is full"):
        run_posterior_sampling(model, data, "new.h5", num_samples=1, folder=tmp_path / "out")
    assert list(path.parent.iterdir()) == [path]


def test_files_are_not_there_before_they_are_complete(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = datamodule(pattern)
    model = lfads(data)
    seen = []
    decode = model.decode

    def spy(*args: Any, **options: Any) -> Any:
        seen.append(sorted(path.name for path in (tmp_path / "out").glob("*.h5")))
        return decode(*args, **options)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(model, "decode", spy)
    run_posterior_sampling(model, data, "o.h5", num_samples=2, folder=tmp_path / "out")
    assert seen
    assert not any(seen)


# ---- sessions ----------------------------------------------------------------------------------


@pytest.fixture
def several(tmp_path: Path) -> tuple[LFADS, str]:
    sessions = [arrays(4 + n, 3 + n, channels=(n, n), seed=n) for n in (2, 3, 4)]
    pattern = write(tmp_path, *sessions)
    return wild(lfads(pattern, variational=False)), pattern


def test_several_sessions(several: tuple[LFADS, str], tmp_path: Path) -> None:
    model, pattern = several
    outputs = sample_posterior(model, pattern)
    assert [len(outputs[s].factors) for s in outputs] == [5, 6, 7]
    paths = run_posterior_sampling(model, datamodule(pattern), "o.h5", folder=tmp_path / "out")
    assert [path.name for path in paths] == [f"o_day{s}.h5" for s in range(3)]
    for session, path in enumerate(paths):
        found = read(path)
        rates = torch.from_numpy(found["valid_output_params"])
        torch.testing.assert_close(rates, outputs[session].output_params)
        assert len(found["train_factors"]) == 6 + session


def test_sessions_are_matched_by_name(several: tuple[LFADS, str], tmp_path: Path) -> None:
    model, pattern = several
    outputs = sample_posterior(model, pattern)
    last = tmp_path / "day2.h5"
    close(sample_posterior(model, last), outputs[2])
    two = sample_posterior(model, datamodule(str(tmp_path / "day[12].h5")))
    close(two[0], outputs[1])
    close(two[1], outputs[2])


def test_sessions_that_the_model_does_not_know(several: tuple[LFADS, str], tmp_path: Path) -> None:
    model, _ = several
    last = tmp_path / "day2.h5"
    with pytest.raises(UserError, match=r"'dya2' \(did you mean day2\?\); its sessions are day0,"):
        sample_posterior(model, last.rename(tmp_path / "dya2.h5"))
    # The right name, other channels.
    (tmp_path / "day0.h5").rename(tmp_path / "day2.h5")
    with pytest.raises(UserError, match=r"day2\.h5: channels of encod_data: the file has 2"):
        sample_posterior(model, tmp_path / "day2.h5")


def test_a_model_of_one_session_takes_any_that_fits(pattern: str, tmp_path: Path) -> None:
    model = lfads(pattern)
    other = tmp_path / "other"
    other.mkdir()
    write_session(other / "night.h5", arrays(**IN_FILE, seed=5))
    out = sample_posterior(model, other / "night.h5", num_samples=1)
    assert len(out.factors) == 5
    write_session(other / "night.h5", arrays(**{**IN_FILE, "ext": 2}))
    with pytest.raises(UserError, match="ext_input: the file has 2"):
        sample_posterior(model, other / "night.h5")
    write_session(other / "later.h5", arrays(**IN_FILE))
    write_session(other / "night.h5", arrays(**IN_FILE))
    with pytest.raises(UserError, match=r"the model has 1 session\(s\), the data 2"):
        sample_posterior(model, str(other / "*.h5"))


def test_illegal_counts_are_refused(pattern: str, tmp_path: Path) -> None:
    model = lfads(pattern)
    session = arrays(**IN_FILE)
    session["valid_recon_data"][0, 0, 3] = 0.5
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(DataError, match="valid_recon_data: 1 values in channel 3"):
        sample_posterior(model, write(other, session))


def test_priors_of_these_tests_are_priors() -> None:
    assert priors.Null()(torch.zeros(1), torch.ones(1)) == Steps()(torch.zeros(1), torch.ones(1))
