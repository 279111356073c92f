"""Sessions that stay in their files: the same batches, little memory, nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfads_torch.cli import main as lfads_command
from lfads_torch.data import DataWarning, StoredArray, check_file, read_session
from lfads_torch.data.repack import repack
from lfads_torch.datamodules import BasicDataModule
from lfads_torch.datamodules.batches import ahead
from lfads_torch.errors import DataError, UserError
from lfads_torch.post_run.analysis import run_ensemble_sampling, run_posterior_sampling
from lfads_torch.search.population.population import Population
from tests import small

LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "gzip": {"compression": "gzip", "chunks": True},
    "trialwise": {"chunks": 1},
    "gzip, shuffled, by trials": {"compression": "gzip", "shuffle": True, "chunks": 4},
}


def arrays(n: tuple[int, int, int] = (23, 9, 5), seed: int = 0, kind: Any = np.uint8) -> Any:
    """Counts of a session with held-out bins and channels, inputs, true rates and two extras."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {"conversion_factor": 3.0}
    for split, n_trials in zip(("train", "valid", "test"), n, strict=True):
        if n_trials == 0:
            continue
        recon = rng.poisson(1.5, (n_trials, 8, 5)).astype(kind)
        found[f"{split}_encod_data"] = recon[:, :6, :3]
        found[f"{split}_ext_input"] = rng.normal(size=(n_trials, 8, 2))
        if split != "test":
            found[f"{split}_recon_data"] = recon
            found[f"{split}_truth"] = rng.uniform(1, 2, (n_trials, 8, 5))
            found[f"{split}_behavior"] = rng.normal(size=(n_trials, 6, 2))
            found[f"{split}_number"] = np.arange(n_trials) + 100 * len(found)
    return found


def write(path: Path, found: dict[str, Any], layout: str = "contiguous") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, value in found.items():
            value = np.asarray(value)
            options = dict(LAYOUTS[layout]) if value.ndim > 1 else {}
            if isinstance(options.get("chunks"), int) and options["chunks"] is not True:
                options["chunks"] = (min(options["chunks"], len(value)), *value.shape[1:])
            file.create_dataset(key, data=value, **options)
    return path


def quiet(pattern: Any, **options: Any) -> BasicDataModule:
    return small.datamodule(pattern, **options)


def tensors(step: Any) -> dict[Any, Any]:
    """Every tensor of a step by its session and name."""
    return {
        (number, name): value
        for number, (batch, extras) in step.items()
        for name, value in [*batch._asdict().items(), *enumerate(extras)]
    }


def assert_same(one: Any, other: Any) -> int:
    """Two loaders give the same steps, bit for bit; returns how many."""
    assert len(one) == len(other)
    n = 0
    for left, right in zip(one, other, strict=True):
        a, b = tensors(left), tensors(right)
        assert list(left) == list(right) and a.keys() == b.keys()
        for key, value in a.items():
            if value is None:
                assert b[key] is None
                continue
            assert (value.dtype, value.shape) == (b[key].dtype, b[key].shape), key
            assert value.numpy().tobytes() == b[key].numpy().tobytes(), key
            assert b[key].is_contiguous()
        n += 1
    assert n == len(one)
    return n


def readers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("lfads-read")]


def handles(folder: Path) -> list[str]:
    """Files below a folder that this process holds open."""
    fds = Path("/proc/self/fd")
    if not fds.is_dir():
        pytest.skip("the system does not list open files")
    found = []
    for fd in fds.iterdir():
        try:
            found.append(os.readlink(fd))
        except OSError:
            continue
    return [name for name in found if name.startswith(str(folder))]


# ---- the same batches ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        ("contiguous", np.uint8),
        ("contiguous", ">i2"),
        ("gzip", np.uint8),
        ("gzip", np.float32),
        ("trialwise", np.float64),
        ("gzip, shuffled, by trials", np.float32),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sv_rate": 0.3, "sv_seed": 4, "dm_ic_enc_seq_len": 2},
        {"reshuffle_tv_seed": 3, "reshuffle_tv_ratio": 0.6},
    ],
    ids=["plain", "sample validation", "redrawn"],
)
def test_batches_are_those_of_memory(
    tmp_path: Path, layout: str, kind: Any, options: dict[str, Any]
) -> None:
    write(tmp_path / "a.h5", arrays(kind=kind), layout)
    write(tmp_path / "b.h5", arrays((40, 12, 0), seed=1, kind=kind), layout)
    options = {"batch_keys": ["behavior", "number"], "batch_size": 10, **options}
    whole = quiet(tmp_path / "*.h5", **options, max_memory_gb=1)
    assert whole.streamed == [False, False]
    for bound, expected in ((0, [True, True]), (3e-5, [False, True])):
        data = quiet(tmp_path / "*.h5", **options, max_memory_gb=bound)
        assert data.streamed == expected
        assert data.sizes == whole.sizes
        whole._passes = 0
        for _ in range(2):
            assert_same(whole.train_dataloader(), data.train_dataloader())
        for name in ("val_dataloader", "test_dataloader"):
            assert_same(getattr(whole, name)(), getattr(data, name)())
        asked = ("train", 7, 1)
        assert_same(whole.split_loader(*asked), data.split_loader(*asked))
        for left, right in zip(whole.train_inds, data.train_inds, strict=True):
            assert left.tolist() == right.tolist()
    assert not readers() and not handles(tmp_path)


def test_ragged_and_missing_data(tmp_path: Path) -> None:
    found = arrays(kind=np.float32)
    found["train_recon_data"][3, 5:] = np.nan
    found["train_encod_data"] = found["train_recon_data"][:, :6, :3]
    write(tmp_path / "nan.h5", found)
    stated = arrays()
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        n = len(stated[f"{split}_encod_data"])
        stated[f"{split}_lengths"] = rng.integers(3, 7, n)
    write(tmp_path / "stated.h5", stated, "gzip")
    for name in ("nan.h5", "stated.h5"):
        whole, data = (
            quiet(tmp_path / name, batch_keys=["behavior"], batch_size=6, max_memory_gb=bound)
            for bound in (1, 0)
        )
        assert next(iter(data.train_dataloader()))[0][0].lengths is not None
        data._passes = 0
        assert_same(whole.train_dataloader(), data.train_dataloader())
        assert_same(*(d.split_loader(["train", "valid", "test"]) for d in (whole, data)))


def test_encod_data_of_its_own(tmp_path: Path) -> None:
    found = arrays()
    found["train_encod_data"] = found["train_encod_data"] + 1
    write(tmp_path / "a.h5", found)
    whole, data = (quiet(tmp_path / "a.h5", max_memory_gb=bound) for bound in (1, 0))
    assert_same(*(d.split_loader(["train", "valid", "test"]) for d in (whole, data)))


def test_batches_may_be_written_into(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", arrays())
    data = quiet(tmp_path / "a.h5", max_memory_gb=0, batch_size=8)
    first = [step[0][0].recon_data.clone() for step in data.val_dataloader()]
    for step in data.val_dataloader():
        batch = step[0][0]
        batch.encod_data.fill_(-1)
        assert (batch.recon_data != -1).all()
        batch.recon_data.fill_(-1)
    again = [step[0][0].recon_data for step in data.val_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_smallest_sessions_are_held(tmp_path: Path) -> None:
    for name, n in (("a", 40), ("b", 10), ("c", 20)):
        write(tmp_path / f"{name}.h5", small.arrays(n, 5))
    # Bytes of encod_data and recon_data of 25 and 15 trials of 6 x 3 as float32.
    b, c = (2 * 4 * 18 * n / 1e9 for n in (15, 25))
    for bound, expected in (
        (b * 0.99, [True, True, True]),
        (b, [True, False, True]),
        (b + c, [True, False, False]),
        (None, [False, False, False]),
    ):
        data = quiet(tmp_path / "*.h5", max_memory_gb=bound)
        assert data.streamed == expected


def test_bound_by_what_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.h5", arrays())
    monkeypatch.setattr("lfads_torch.data.memory.available_bytes", lambda: 1000)
    assert quiet(tmp_path / "a.h5").streamed == [True]
    monkeypatch.setattr("lfads_torch.data.memory.available_bytes", lambda: None)
    assert quiet(tmp_path / "a.h5").streamed == [False]


@pytest.mark.parametrize("bound", [-1, float("nan")])
def test_bound_out_of_range(bound: float) -> None:
    with pytest.raises(UserError, match="max_memory_gb"):
        BasicDataModule("any.h5", max_memory_gb=bound)


class Recorder(pl.LightningModule):
    """Keeps what it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[bytes] = []

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        data = batch[0][0].recon_data
        self.seen.append(data.numpy().tobytes())
        return self.weight * data.mean()

    def validation_step(self, batch: Any, _: int) -> None:
        self.seen.append(batch[0][0].encod_data.numpy().tobytes())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_resumed_run_draws_what_one_in_memory_would(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", arrays())
    whole, first, second = Recorder(), Recorder(), Recorder()
    small.trainer(tmp_path, max_epochs=4).fit(whole, datamodule=quiet(path, batch_size=5))
    short = small.trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0)
    short.fit(first, datamodule=quiet(path, batch_size=5, max_memory_gb=0))
    short.save_checkpoint(tmp_path / "last.ckpt")
    longer = small.trainer(tmp_path, max_epochs=4)
    longer.fit(
        second,
        datamodule=quiet(path, batch_size=5, max_memory_gb=0),
        ckpt_path=tmp_path / "last.ckpt",
    )
    assert first.seen + second.seen == whole.seen
    assert not readers() and not handles(tmp_path)


def test_pickled_data_module(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", arrays(), "gzip")
    data = quiet(path, batch_size=5, max_memory_gb=0, sv_rate=0.2)
    list(data.val_dataloader())
    assert_same(pickle.loads(pickle.dumps(data)).train_dataloader(), data.train_dataloader())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_arrive_on_the_device(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", arrays())
    whole, data = (
        quiet(tmp_path / "a.h5", sv_rate=0.2, batch_keys=["behavior"], max_memory_gb=bound)
        for bound in (1, 0)
    )
    data.to("cuda")
    assert data.device.type == "cuda"
    for left, right in zip(whole.train_dataloader(), data.train_dataloader(), strict=True):
        a, b = tensors(left), tensors(right)
        for key, value in a.items():
            if value is not None:
                assert b[key].device.type == "cuda"
                assert value.numpy().tobytes() == b[key].cpu().numpy().tobytes()


# ---- stored arrays -------------------------------------------------------------------------------


@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    rows=st.lists(st.integers(0, 31), max_size=40),
    ends=st.tuples(st.integers(-40, 40), st.integers(-40, 40)),
    sizes=st.tuples(st.integers(1, 8), st.integers(1, 5)),
)
@settings(max_examples=20, deadline=None)
def test_rows_of_a_stored_array(
    tmp_path_factory: pytest.TempPathFactory,
    layout: str,
    rows: list[int],
    ends: tuple[int, int],
    sizes: tuple[int, int],
) -> None:
    path = tmp_path_factory.getbasetemp() / f"{layout}.h5"
    if not path.exists():
        write(path, arrays((23, 9, 0)), layout)
    whole = read_session(path).pooled["recon_data"]
    stored: Any = read_session(path, in_memory=False).pooled["recon_data"]
    assert isinstance(stored, StoredArray)
    assert (stored.shape, stored.dtype, stored.ndim, stored.size) == (
        *(whole.shape, whole.dtype, whole.ndim, whole.size),
    )
    assert np.array_equal(stored[np.array(rows, int)], whole[np.array(rows, int)])
    assert np.array_equal(stored[slice(*ends)], whole[slice(*ends)])
    assert np.array_equal(stored.part(slice(*ends))[:], whole[slice(*ends)])
    cut = stored.window(*sizes)
    assert np.array_equal(cut[-1], whole[-1, : sizes[0], : sizes[1]])
    assert np.array_equal(cut[3:5], whole[3:5, : sizes[0], : sizes[1]])


# ---- the same checks -----------------------------------------------------------------------------


def faulty() -> dict[str, Callable[[dict[str, Any]], None]]:
    def infinite(a: dict[str, Any]) -> None:
        a["train_recon_data"][2, 1, 4] = np.inf

    def beyond(a: dict[str, Any]) -> None:
        a["valid_truth"][1, 2, 3] = 1e300

    def nothing_seen(a: dict[str, Any]) -> None:
        a["train_recon_data"][5] = a["train_encod_data"][5] = np.nan

    def unknown_input(a: dict[str, Any]) -> None:
        a["valid_ext_input"][1, 2] = np.nan

    return {f.__name__: f for f in (infinite, beyond, nothing_seen, unknown_input)}


@pytest.mark.parametrize("fault", faulty())
def test_faults_are_told_alike(tmp_path: Path, fault: str) -> None:
    found = arrays(kind=np.float64)
    found = {k: np.array(v) for k, v in found.items()}
    faulty()[fault](found)
    path = write(tmp_path / "a.h5", found)
    with pytest.raises(DataError) as in_memory:
        read_session(path)
    with pytest.raises(DataError) as streamed:
        read_session(path, in_memory=False)
    assert str(streamed.value) == str(in_memory.value)


def doubtful() -> dict[str, Any]:
    found = arrays(kind=np.float32)
    for key in ("train_recon_data", "valid_recon_data"):
        found[key][..., 4] = 0
    found["train_recon_data"][1] = 0
    found["train_recon_data"][7:9, :, 2] = np.nan
    found["valid_recon_data"][2:4] = found["train_recon_data"][2:4]
    for split in ("train", "valid"):
        found[f"{split}_encod_data"] = found[f"{split}_recon_data"][:, :6, :3]
    found["valid_encod_data"] = found["valid_encod_data"] + 0
    found["tset_truth"] = np.zeros(3)
    return found


@pytest.mark.parametrize("layout", ["contiguous", "gzip"])
def test_warnings_and_reports_are_alike(tmp_path: Path, layout: str) -> None:
    path = write(tmp_path / "a.h5", doubtful(), layout)
    said = []
    for bound in (1, 0):
        with pytest.warns(DataWarning) as caught:
            BasicDataModule(path, max_memory_gb=bound, batch_size=4).setup()
        said.append([str(w.message) for w in caught])
    assert said[0] == said[1] and len(said[0]) >= 3
    assert check_file(path, max_bytes=0).format() == check_file(path).format()
    lengthy = doubtful() | {
        f"{s}_lengths": np.full(n, 5) for s, n in (("train", 23), ("valid", 9), ("test", 5))
    }
    other = write(tmp_path / "b.h5", lengthy, layout)
    assert check_file(other, max_bytes=0).format() == check_file(other).format()


def test_overlapping_windows_are_found_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = np.random.default_rng(0).poisson(1.0, (400, 4)).astype(np.uint8)
    windows = np.stack([recording[i : i + 20] for i in range(0, 380, 15)])
    found = {}
    for split, own in (("train", windows[::2]), ("valid", windows[1::2])):
        found |= {f"{split}_encod_data": own, f"{split}_recon_data": own}
    path = write(tmp_path / "a.h5", found)
    texts = check_file(path).warnings
    assert any("last 5 bins" in text for text in texts)
    monkeypatch.setattr("lfads_torch.data.quality._MOST_HASHES", 50)
    assert check_file(path, max_bytes=0).warnings == texts


def test_model_refuses_data_of_a_streamed_session(tmp_path: Path) -> None:
    found = small.arrays()
    found["valid_recon_data"][1, 2, 0] = 0.5
    found["valid_encod_data"] = found["valid_recon_data"]
    data = quiet(write(tmp_path / "a.h5", found), max_memory_gb=0)
    model = small.lfads(quiet(write(tmp_path / "b.h5", small.arrays())))
    with pytest.raises(DataError, match=r"a\.h5: valid_recon_data: 1 values in channel 0"):
        model.check_data(data)


# ---- what is left behind, and files that change --------------------------------------------------


def test_nothing_is_left_of_a_pass(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", arrays(), "gzip")
    data = quiet(path, batch_size=2, max_memory_gb=0)
    loader = data.train_dataloader()
    for _ in loader:  # left early
        break
    assert not readers() and not handles(tmp_path)
    steps = iter(loader)
    next(steps)
    assert len(readers()) == 1
    steps.close()  # type: ignore[attr-defined]
    assert not readers()

    def interrupted() -> None:
        for _ in loader:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        interrupted()
    gc.collect()
    assert not readers() and not handles(tmp_path)
    both = zip(data.train_dataloader(), data.val_dataloader(), strict=False)
    assert len(list(both)) == 5  # two passes at a time do not disturb one another
    del both
    gc.collect()
    assert not readers()


def test_jobs_are_done_in_order_and_no_further_ahead_than_asked() -> None:
    done: list[int] = []
    jobs = (lambda i=i: (done.append(i), i)[1] for i in range(20))
    results = ahead(jobs, 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(done) <= 5
    results.close()
    assert not readers() and len(done) <= 5

    def fail() -> int:
        raise DataError("gone")

    failing = ahead([lambda: 0, fail, lambda: 2], 1)
    assert next(failing) == 0
    with pytest.raises(DataError, match="gone"):
        list(failing)
    assert not readers()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def replace(path: Path) -> None:
    other = write(path.with_suffix(".new"), arrays(seed=9))
    os.replace(other, path)


@pytest.mark.parametrize(
    ("change", "part"),
    [(cut, "changed or replaced"), (replace, "changed or replaced"), (Path.unlink, "is gone")],
)
@pytest.mark.parametrize("layout", ["contiguous", "gzip"])
def test_files_that_change_while_training(
    tmp_path: Path, change: Callable[[Path], None], part: str, layout: str
) -> None:
    path = write(tmp_path / "a.h5", arrays(), layout)
    data = quiet(path, batch_size=2, max_memory_gb=0)

    class Changing(Recorder):
        def on_train_epoch_end(self) -> None:
            if self.current_epoch == 1:
                change(path)

    with pytest.raises(DataError, match=part) as caught:
        small.trainer(tmp_path, max_epochs=5).fit(Changing(), datamodule=data)
    assert str(path) in str(caught.value)
    del caught
    gc.collect()
    assert not readers() and not handles(tmp_path)


def test_file_shorter_than_its_header_says(tmp_path: Path, monkeypatch: Any) -> None:
    path = write(tmp_path / "a.h5", arrays())
    array: Any = read_session(path, in_memory=False).pooled["recon_data"]
    os.truncate(path, 3000)
    monkeypatch.setattr("lfads_torch.data.stored.FileStamp.of", lambda path: array._source.stamp)
    with pytest.raises(DataError, match=r"cut short: '\w+' ends within trial"):
        array[:]


# ---- what else takes batches ---------------------------------------------------------------------


def same_files(one: Path, other: Path) -> None:
    with h5py.File(one) as a, h5py.File(other) as b:
        assert set(a) == set(b) and set(a.attrs) == set(b.attrs)
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key][()], b[key][()])


def test_posterior_means_of_a_streamed_session(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", arrays((11, 6, 4)))
    whole, data = (quiet(path, max_memory_gb=bound) for bound in (1, 0))
    models = [small.lfads(whole) for _ in range(2)]
    tiny = {"max_bytes": 60_000}  # several batches per split
    [one] = run_posterior_sampling(models[0], whole, "one.h5", 3, **tiny, folder=tmp_path)
    [two] = run_posterior_sampling(models[0], data, "two.h5", 3, **tiny, folder=tmp_path)
    same_files(one, two)
    one, two = tmp_path / "e.h5", tmp_path / "f.h5"
    run_ensemble_sampling(models, whole, [one], 3, **tiny)
    run_ensemble_sampling(models, data, [two], 3, **tiny)
    same_files(one, two)
    assert not readers()


def test_errors_of_a_model_are_no_errors_of_writing(tmp_path: Path) -> None:
    data = quiet(write(tmp_path / "a.h5", small.arrays()))
    model = small.lfads(data)
    model.encode = lambda batch: (_ for _ in ()).throw(RuntimeError("out of memory"))  # type: ignore
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        run_posterior_sampling(model, data, "out.h5", folder=tmp_path)
    assert not list(tmp_path.glob("*out*"))


def test_a_population_trains_as_in_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", small.arrays(20, 8))
    found = []
    for bound in (1, 0):
        data = quiet(path, batch_size=8, max_memory_gb=bound)
        torch.manual_seed(0)
        models = [small.lfads(data) for _ in range(3)]
        population = Population(models, data, [1, 2, 3], gradient_clip_val=200.0)
        for _ in range(2):
            scores = population.train_epoch()
        found.append({k: np.asarray(v) for k, v in scores.items()})
    for name, values in found[0].items():
        np.testing.assert_array_equal(values, found[1][name], err_msg=name)
    assert not readers()


# ---- slow files ----------------------------------------------------------------------------------


def test_many_trials_in_a_chunk_are_warned_of_and_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "slow.h5"
    with h5py.File(path, "w") as file:
        for split, n in (("train", 90), ("valid", 20)):
            values = rng.poisson(0.2, (n, 40, 50)).astype(np.uint8)
            for name in ("encod", "recon"):
                file.create_dataset(
                    f"{split}_{name}_data", data=values, compression="gzip", chunks=(80, 10, 10)
                ) if n > 80 else file.create_dataset(f"{split}_{name}_data", data=values)
        file["notes/deep"] = "text"
        file["notes"].attrs["by"] = "me"
        file["train_recon_data"].attrs["bin_ms"] = 5.0
        file.attrs["bin_ms"] = 5.0
    with pytest.warns(DataWarning, match=r"'train_\w+' 80.*lfads repack slow.h5") as caught:
        BasicDataModule(path, max_memory_gb=0).setup()
    assert sum("repack" in str(w.message) for w in caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        BasicDataModule(path).setup()  # in memory it does not matter
        for options in ([], ["--compress"]):
            quick = tmp_path / "quick.h5"
            command = ["repack", str(path), "-o", str(quick), "--overwrite", *options]
            assert lfads_command(command) == 0
            with h5py.File(path) as old, h5py.File(quick) as new:
                assert new["train_recon_data"].chunks == ((8, 40, 50) if options else None)
                assert new["train_recon_data"].attrs["bin_ms"] == 5.0
                assert new["notes"].attrs["by"] == "me" and new.attrs["bin_ms"] == 5.0
                assert new["notes/deep"][()] == old["notes/deep"][()]
                for key in (k for k in old if k != "notes"):
                    assert new[key].dtype == old[key].dtype
                    np.testing.assert_array_equal(new[key][()], old[key][()])
            BasicDataModule(quick, max_memory_gb=0).setup()
    assert "written" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists"):
        repack(path, quick)
    with pytest.raises(UserError, match="source itself"):
        repack(path, path, overwrite=True)
    with pytest.raises(DataError, match=r"none\.h5"):
        repack(tmp_path / "none.h5", tmp_path / "new.h5")
    assert not (tmp_path / "new.h5").exists()


# ---- memory --------------------------------------------------------------------------------------

PASS = """
import os, sys, warnings
warnings.simplefilter("ignore")
os.environ["PL_GLOBAL_SEED"] = "0"
sys.path.insert(0, {benchmarks!r})
from timing import peak_bytes
from lfads_torch.data import check_file
from lfads_torch.datamodules import BasicDataModule
before = peak_bytes()
for bound in (0, 10):
    data = BasicDataModule({path!r}, batch_size=64, max_memory_gb=bound)
    data.setup()
    total = sum(float(step[0][0].recon_data.sum()) for step in data.train_dataloader())
    if bound == 0:
        check_file({path!r}, max_bytes=0)
    print(peak_bytes() - before, total)
"""


def test_memory_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "large.h5"
    some = np.random.default_rng(0).poisson(0.2, (50, 50, 100)).astype(np.uint8)
    with h5py.File(path, "w") as file:  # 200 MB as float32, two arrays together
        for split, n in (("train", 4000), ("valid", 1000)):
            for name in ("encod", "recon"):
                data = file.create_dataset(f"{split}_{name}_data", (n, 50, 100), np.uint8)
                for start in range(0, n, len(some)):
                    data[start : start + len(some)] = np.roll(some, start // 50, axis=2)
    code = PASS.format(benchmarks=str(Path(__file__).parents[2] / "benchmarks"), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    path.unlink()
    assert done.returncode == 0, done.stderr
    streamed, total, in_memory, same = map(float, done.stdout.split())
    assert total == same
    assert in_memory > 190e6
    assert streamed < 80e6
