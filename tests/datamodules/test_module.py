"""The data module: what a step holds, how trials are drawn, and what it refuses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from lfads_torch.data import DataWarning, write_session
from lfads_torch.datamodules import BasicDataModule, attach_tensors, reshuffle_train_valid
from lfads_torch.errors import DataError, UserError

RECORDINGS = Path(__file__).parents[3] / "shared" / "data"
Make = Callable[..., str]


def session(
    n_train: int = 12,
    n_valid: int = 5,
    n_test: int = 0,
    bins: tuple[int, int] = (6, 8),
    channels: tuple[int, int] = (3, 4),
    seed: int = 0,
) -> dict[str, Any]:
    """Counts whose first entry is the trial's number in the file, so that each can be traced."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    start = 1
    for split, n in (("train", n_train), ("valid", n_valid), ("test", n_test)):
        if n == 0:
            continue
        recon = rng.poisson(2.0, (n, bins[1], channels[1])) + 1
        recon[:, 0, 0] = np.arange(start, start + n)
        arrays[f"{split}_recon_data"] = recon
        arrays[f"{split}_encod_data"] = recon[:, : bins[0], : channels[0]]
        arrays[f"{split}_number"] = np.arange(start, start + n)
        arrays[f"{split}_behavior"] = recon[:, :, :1] / 10
        start += n
    return arrays


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def write(*sessions: dict[str, Any]) -> str:
        for i, arrays in enumerate(sessions):
            write_session(tmp_path / f"day{i}.h5", arrays, {"bin_ms": 10})
        return str(tmp_path / "day*.h5")

    return write


def quiet(*args: Any, **kwargs: Any) -> BasicDataModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        module = BasicDataModule(*args, **kwargs)
        module.setup()
    return module


def numbers(loader: Any, which: int = 0) -> list[list[int]]:
    """Trial numbers of each step of a session; steps without it are left out."""
    return [step[which][0].recon_data[:, 0, 0].int().tolist() for step in loader if which in step]


def flat(steps: list[list[int]]) -> list[int]:
    return [number for step in steps for number in step]


# ---- what a step holds -------------------------------------------------------------------------


def test_a_step_holds_aligned_tensors(make: Make) -> None:
    data = BasicDataModule(make(session()), ["behavior", "number"], batch_size=4)
    data.setup()
    for step in data.train_dataloader():
        batch, (behavior, number) = step[0]
        assert batch.encod_data.shape == (4, 6, 3) and batch.recon_data.shape == (4, 8, 4)
        assert batch.encod_data.dtype == batch.recon_data.dtype == torch.float32
        assert torch.equal(batch.encod_data, batch.recon_data[:, :6, :3])
        assert batch.ext_input.shape == (4, 8, 0)
        assert batch.truth.shape == batch.sv_mask.shape == (4, 0, 0)
        assert batch.sv_mask.dtype == torch.bool and batch.masks is None
        assert torch.equal(number, batch.recon_data[:, 0, 0].long())
        torch.testing.assert_close(behavior, batch.recon_data[:, :, :1] / 10)


def test_truth_and_external_input_travel_where_the_file_has_them(make: Make) -> None:
    arrays = session(n_test=3)
    for split in ("train", "valid", "test"):
        arrays[f"{split}_ext_input"] = arrays[f"{split}_recon_data"][:, :7, :2] * 1.0
        if split != "test":
            arrays[f"{split}_truth"] = arrays[f"{split}_recon_data"] / 2
    data = quiet(make(arrays))
    batch = next(iter(data.val_dataloader()))[0][0]
    torch.testing.assert_close(batch.truth, batch.recon_data / 2)
    torch.testing.assert_close(batch.ext_input, batch.recon_data[:, :7, :2])
    test = next(iter(data.test_dataloader()))[0][0]
    assert test.truth.shape == (3, 0, 0) and test.ext_input.shape == (3, 7, 2)


def test_data_are_held_once_and_batches_may_be_written_into(make: Make) -> None:
    data = quiet(make(session()), batch_size=4)
    held = torch.from_numpy(data.sessions[0].pooled["recon_data"])
    assert data.ready_tensors()[0].recon.data_ptr() == held.data_ptr()
    before = held.clone()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for step in loader:
            step[0][0].encod_data.mul_(0)
            step[0][0].recon_data.mul_(0)
    assert torch.equal(held, before)


def test_encod_data_of_its_own(make: Make) -> None:
    arrays = session()
    arrays["train_encod_data"] = arrays["train_encod_data"] * 10
    batch = next(iter(quiet(make(arrays)).train_dataloader()))[0][0]
    assert torch.equal(batch.encod_data, 10 * batch.recon_data[:, :6, :3])


def test_sizes_and_names(make: Make) -> None:
    data = quiet(make(session(n_test=2), session(7, 3, bins=(6, 8), channels=(5, 5))))
    assert data.session_names == ["day0", "day1"] and data.n_sessions == 2
    assert data.sizes == [(3, 4, 6, 8, 0, 12, 5, 2), (5, 5, 6, 8, 0, 7, 3, 0)]


def test_names_that_are_alike_get_their_folder(tmp_path: Path) -> None:
    for name in ("a/x.h5", "b/x.h5", "b/y.h5"):
        write_session(tmp_path / name, session())
    assert quiet(f"{tmp_path}/*/*.h5").session_names == ["a/x", "b/x", "y"]


def test_pattern_stays_where_it_was_given(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(session())
    monkeypatch.chdir(tmp_path)
    data = BasicDataModule("day*.h5", batch_size=4)
    monkeypatch.chdir("/")
    assert data.session_names == ["day0"]


def test_setup_reads_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    data = quiet(make(session()))
    monkeypatch.setattr("lfads_torch.datamodules.module.read_session", None)
    data.setup("fit")
    data.setup()
    assert len(data.val_dataloader()) == 1


def test_attribute_keys(make: Make) -> None:
    one, two = session(), session(seed=1)
    one["psth"], two["psth"] = np.zeros((2, 8, 4)), np.ones((2, 8, 4))
    data = quiet(make(one), attr_keys=["psth", "train_number"])
    assert data.psth.shape == (2, 8, 4) and data.train_number.tolist() == list(range(1, 13))
    both = quiet(make(one, two), attr_keys=["psth"])
    assert both.psth.mean() == 1
    assert [session.arrays["psth"].mean() for session in both.sessions] == [0, 1]


# ---- order -------------------------------------------------------------------------------------


def test_validation_sees_each_trial_once_in_file_order(make: Make) -> None:
    data = quiet(make(session(8, 11), session(8, 3, seed=1), session(8, 6, seed=2)), batch_size=12)
    loader = data.val_dataloader()
    assert len(loader) == len(list(loader)) == 3
    assert [list(step) for step in loader] == [[0, 1, 2], [0, 2], [0]]
    assert flat(numbers(loader, 0)) == list(range(9, 20))
    assert flat(numbers(loader, 1)) == list(range(9, 12))
    assert flat(numbers(loader, 2)) == list(range(9, 15))


def test_predict_gives_every_trial_of_every_split(make: Make) -> None:
    data = quiet(make(session(8, 5, 3), session(8, 5, seed=1)), batch_size=8)
    loader = data.split_loader(["train", "valid", "test"])
    assert flat(numbers(loader, 0)) == list(range(1, 17))
    assert flat(numbers(loader, 1)) == list(range(1, 14))
    assert len(loader) == len(list(loader)) == 2 + 2 + 1


def test_split_loader_of_one_session(make: Make) -> None:
    data = quiet(make(session(), session(9, 5, seed=1)), batch_size=8)
    loader = data.split_loader("train", batch_size=4, session=1)
    assert [list(step) for step in loader] == [[1]] * 3
    assert [len(step) for step in numbers(loader, 1)] == [4, 4, 1]


def test_training_passes_are_shuffled_and_repeat_by_seed_and_epoch(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    pattern = make(session(20))
    first, again = quiet(pattern, batch_size=5), quiet(pattern, batch_size=5)
    passes = [numbers(first.train_dataloader()) for _ in range(3)]
    assert all(sorted(flat(steps)) == list(range(1, 21)) for steps in passes)
    assert passes[0] != passes[1] != passes[2]
    torch.randn(7)  # other random numbers drawn meanwhile do not matter
    assert [numbers(again.train_dataloader()) for _ in range(3)] == passes
    torch.manual_seed(1)
    assert numbers(quiet(pattern, batch_size=5).train_dataloader()) != passes[0]


def test_seed_everything_decides_the_order(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = make(session(20))
    orders = []
    for seed in ("1", "2", "1"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        orders.append(numbers(quiet(pattern, batch_size=5).train_dataloader()))
    assert orders[0] == orders[2] != orders[1]


def test_shorter_sessions_begin_anew(make: Make) -> None:
    data = quiet(make(session(20), session(7, seed=1)), batch_size=6)
    loader = data.train_dataloader()
    assert len(loader) == len(list(loader)) == 6
    long, short = numbers(loader, 0), numbers(loader, 1)
    assert [len(step) for step in [*long, *short]] == [3] * 12
    assert len(set(flat(long))) == 18
    for i in (0, 2, 4):  # each pass of two steps takes six different trials
        assert len(set(flat(short[i : i + 2]))) == 6
    assert set(flat(short)) <= set(range(1, 8))


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=3), batch_size=st.integers(3, 12))
@settings(max_examples=25, deadline=None)
def test_every_step_holds_every_session_and_no_trial_twice(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], batch_size: int
) -> None:
    folder = tmp_path_factory.mktemp("sessions")
    for i, n in enumerate(counts):
        write_session(folder / f"{i}.h5", session(n, 2, seed=i))
    data = quiet(folder / "*.h5", batch_size=batch_size)
    loader = data.train_dataloader()
    steps = list(loader)
    assert len(steps) == len(loader) >= 1
    share = batch_size // len(counts)
    assert len(loader) == max(n // min(share, n) for n in counts)
    for i, n in enumerate(counts):
        for step in numbers(steps, i):
            assert len(step) == len(set(step)) == min(share, n)
            assert set(step) <= set(range(1, n + 1))


# ---- sample validation and redrawn splits ------------------------------------------------------


def test_sample_validation_mask_is_drawn_once(make: Make) -> None:
    pattern = make(session(300, 40, bins=(20, 20)))
    options: dict[str, Any] = {"sv_rate": 0.25, "batch_size": 50, "dm_ic_enc_seq_len": 4}
    data, again = quiet(pattern, **options), quiet(pattern, **options)
    masks = torch.cat([step[0][0].sv_mask for step in data.split_loader("train")])
    assert masks.shape == (300, 20, 3) and masks.dtype == torch.bool
    assert masks[:, :4].all()
    assert masks[:, 4:].float().mean() == pytest.approx(0.75, abs=0.01)
    for batch in (step[0][0] for step in again.train_dataloader()):
        rows = batch.recon_data[:, 0, 0].long() - 1
        assert torch.equal(batch.sv_mask, masks[rows])
    other = quiet(pattern, **options, sv_seed=1)
    assert not torch.equal(next(iter(other.split_loader("train")))[0][0].sv_mask, masks[:50])


@pytest.mark.parametrize(
    ("ratio", "n_valid"), [(0.3, 6), (0.31, 7), (5, 5), (None, 8)], ids=["", "up", "number", "kept"]
)
def test_redrawn_split_is_that_of_scikit_learn(
    make: Make, ratio: float | None, n_valid: int
) -> None:
    pattern = make(session(12, 8, 2), session(12, 8, seed=1))
    options = {"batch_keys": ["number"], "reshuffle_tv_seed": 3, "reshuffle_tv_ratio": ratio}
    data = quiet(pattern, **options)
    train, valid = train_test_split(np.arange(20), test_size=ratio or 8, random_state=3)
    assert len(valid) == n_valid
    assert data.sizes[0][-3:] == (20 - n_valid, n_valid, 2)
    # Every session draws from the same seed.
    for s in (0, 1):
        assert (data.train_inds[s].tolist(), data.valid_inds[s].tolist()) == (
            train.tolist(),
            valid.tolist(),
        )
        for split, rows in (("train", train), ("valid", valid)):
            assert flat(numbers(data.split_loader(split), s)) == (rows + 1).tolist()
    assert next(iter(data.split_loader("valid")))[0][1][0][:2].tolist() == (valid[:2] + 1).tolist()
    assert set(flat(numbers(data.train_dataloader()))) <= set((train + 1).tolist())
    assert flat(numbers(data.test_dataloader())) == [21, 22]


def test_a_known_split() -> None:
    arrays = {f"{s}_x": np.arange(44) + 44 * (s == "valid") for s in ("train", "valid")}
    drawn = reshuffle_train_valid(arrays | {"other": 1}, seed=3, ratio=0.25)
    assert sorted(drawn["valid_x"])[:6] == [4, 6, 8, 9, 12, 17] and len(drawn["valid_x"]) == 22
    assert sorted([*drawn["train_x"], *drawn["valid_x"]]) == list(range(88))
    assert drawn["other"] == 1
    with pytest.raises(KeyError, match="train_x has no valid_x"):
        reshuffle_train_valid({"train_x": np.arange(3)}, 0)


def test_redrawn_split_refuses_arrays_that_cannot_follow(make: Make) -> None:
    arrays = session() | {"train_conditions": np.arange(3), "valid_conditions": np.arange(3)}
    with pytest.raises(UserError, match=r"'train_conditions' has shape \(3,\) for 12 trials"):
        quiet(make(arrays), reshuffle_tv_seed=0)
    with pytest.raises(UserError, match="'train_mine' has no 'valid_mine'"):
        quiet(make(session() | {"train_mine": np.arange(12)}), reshuffle_tv_seed=0)
    with pytest.raises(UserError, match="cannot follow a redrawn split; leave out one of the two"):
        BasicDataModule(make(session()), attr_keys=["train_number"], reshuffle_tv_seed=0)


# ---- notebooks and data modules of your own ------------------------------------------------------


def test_all_trials_as_attributes(make: Make) -> None:
    data = quiet(make(session(12, 8, 2), session(6, 4, 3, seed=1)), batch_keys=["number"])
    for split, sizes in (("train", (12, 6)), ("valid", (8, 4)), ("test", (2, 3))):
        trials = getattr(data, f"{split}_data")
        sets = getattr(data, f"{split}_ds")
        loaders = [data.predict_dataloader()[s][split] for s in (0, 1)]
        for (batch, extras), own, loader, n in zip(trials, sets, loaders, sizes, strict=True):
            assert len(batch.recon_data) == len(own) == len(extras[0]) == n
            one, (number,) = own[1]
            assert torch.equal(one.encod_data, batch.encod_data[1]) and number == extras[0][1]
            steps = list(loader)
            assert torch.equal(torch.cat([b.encod_data for b, _ in steps]), batch.encod_data)
    assert [len(a) for a in data.valid_data[0][0]] == [8] * 5
    without = quiet(make(session()))
    assert not hasattr(without, "test_data") and list(without.predict_dataloader()[0]) == [
        "train",
        "valid",
    ]


def test_arrays_take_the_place_of_files(make: Make, tmp_path: Path) -> None:
    arrays = session(12, 8)

    class Mine(BasicDataModule):
        n_reads = 0

        def setup(self, stage: str | None = None) -> None:
            self.n_reads += 1
            attach_tensors(self, [arrays], extra_keys=self.hparams["batch_keys"])

    from_file = quiet(make(arrays), batch_keys=["number"])
    data = Mine("nowhere.mat", batch_keys=["number"])
    for one, other in zip(data.split_loader("valid"), from_file.split_loader("valid"), strict=True):
        for a, b in zip([*one[0][0], *one[0][1]], [*other[0][0], *other[0][1]], strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)
    assert len(data.train_dataloader()) and data.n_reads == 1

    class Foreign:
        pass

    foreign: Any = Foreign()
    attach_tensors(foreign, [arrays, arrays], ["number"])
    assert [len(batch.encod_data) for batch, _ in foreign.valid_data] == [8, 8]
    assert len(foreign.train_ds[1]) == 12
    with pytest.raises(DataError, match="valid_encod_data"):
        attach_tensors(foreign, [{k: v for k, v in arrays.items() if k != "valid_encod_data"}])


# ---- refusals and warnings ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"sv_rate": 1.0}, "sv_rate=1.0"),
        ({"sv_rate": -0.1}, "sv_rate=-0.1"),
        ({"sv_seed": -1}, "sv_seed is -1"),
        ({"reshuffle_tv_ratio": 0.5}, "without reshuffle_tv_seed"),
        ({"reshuffle_tv_seed": 0, "reshuffle_tv_ratio": 1.2}, "reshuffle_tv_ratio=1.2"),
        ({"reshuffle_tv_seed": 1.5}, "reshuffle_tv_seed is 1.5"),
        ({"attr_keys": ["sizes"]}, "would overwrite"),
        ({"attr_keys": ["batch_size"]}, "would overwrite"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError) as caught:
        BasicDataModule("any.h5", **options)
    assert part in str(caught.value)


def test_more_sessions_than_the_batch_size(make: Make) -> None:
    data = BasicDataModule(make(session(), session(seed=1), session(seed=2)), batch_size=2)
    with pytest.raises(UserError, match="batch_size=2 is less than the 3 sessions"):
        data.setup()


def test_batch_larger_than_the_data_shrinks(make: Make) -> None:
    # Without a warning: it is so with the default for every small recording, and does no harm.
    loader = BasicDataModule(make(session(12)), batch_size=64).train_dataloader()
    assert [len(step) for step in numbers(loader)] == [12]


def test_doubtful_data_are_warned_of(make: Make) -> None:
    arrays = session()
    arrays["train_recon_data"][:, :, 3] = 0
    with pytest.warns(DataWarning, match=r"day0\.h5: 1 of 4 channels are silent"):
        BasicDataModule(make(arrays), batch_size=4).setup()


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (session(bins=(5, 8)), "bins of encod_data"),
        (session(bins=(6, 9)), "bins of recon_data"),
        (
            session()
            | {f"{s}_ext_input": np.ones((n, 8, 1)) for s, n in (("train", 12), ("valid", 5))},
            "channels of ext_input",
        ),
    ],
)
def test_sessions_that_do_not_fit_together(make: Make, other: dict[str, Any], part: str) -> None:
    with pytest.raises(DataError, match=f"same number of {part}") as caught:
        BasicDataModule(make(session(), other)).setup()
    assert "day0.h5" in str(caught.value) and "day1.h5" in str(caught.value)


def test_faulty_files_and_keys_are_refused_in_setup(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No data file matches"):
        BasicDataModule(tmp_path / "none.h5").setup()
    with pytest.raises(DataError, match="did you mean 'behavior'"):
        BasicDataModule(make(session()), batch_keys="behaviour").setup()


def test_ic_segment_longer_than_the_trial(make: Make) -> None:
    with pytest.raises(UserError, match="dm_ic_enc_seq_len=7, but the files have 6 bins"):
        BasicDataModule(make(session()), dm_ic_enc_seq_len=7).setup()


def test_split_or_session_that_is_not_there(make: Make) -> None:
    data = quiet(make(session()))
    with pytest.raises(UserError, match="split='vaild'; legal are train, valid, test"):
        data.split_loader("vaild")
    with pytest.raises(UserError, match="No data file has a 'test' split"):
        data.test_dataloader()
    with pytest.raises(UserError, match="session=1; legal are 0 to 0"):
        data.split_loader("train", session=1)


def test_ratio_that_leaves_a_split_empty(make: Make) -> None:
    data = BasicDataModule(make(session(3, 1)), reshuffle_tv_seed=0, reshuffle_tv_ratio=0.99)
    with pytest.raises(UserError, match="leaves 0 for training and 4 for validation"):
        data.setup()


# ---- under a Trainer ---------------------------------------------------------------------------


class Recorder(pl.LightningModule):
    """Notes which trials it is given; its one weight makes the Trainer content."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[list[int]]] = {"train": [], "valid": [], "predict": []}

    def note(self, what: str, batch: Any) -> torch.Tensor:
        data = batch[0][0].recon_data
        self.seen[what].append(data[:, 0, 0].int().tolist())
        return self.weight * data.mean()

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.note("train", batch)

    def validation_step(self, batch: Any, _: int) -> None:
        self.note("valid", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.note("predict", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **options,
    )


def test_a_resumed_run_draws_what_an_uninterrupted_one_would(make: Make, tmp_path: Path) -> None:
    pattern = make(session(12, 5))
    whole, first, second = Recorder(), Recorder(), Recorder()
    trainer(tmp_path, max_epochs=4).fit(whole, datamodule=quiet(pattern, batch_size=4))
    short = trainer(tmp_path, max_epochs=2)
    short.fit(first, datamodule=quiet(pattern, batch_size=4))
    checkpoint = tmp_path / "last.ckpt"
    short.save_checkpoint(checkpoint)
    trainer(tmp_path, max_epochs=4).fit(
        second, datamodule=quiet(pattern, batch_size=4), ckpt_path=checkpoint
    )
    assert len(whole.seen["train"]) == 4 * 3
    assert first.seen["train"] + second.seen["train"] == whole.seen["train"]
    assert flat(whole.seen["valid"][:2]) == list(range(13, 18))
    held = torch.load(checkpoint, weights_only=True)["datamodule_hyper_parameters"]
    assert held["batch_size"] == 4


def test_predict_under_a_trainer(make: Make, tmp_path: Path) -> None:
    model = Recorder()
    trainer(tmp_path).predict(model, datamodule=quiet(make(session(12, 5, 2)), batch_size=8))
    assert flat(model.seen["predict"]) == list(range(1, 20))


def test_several_processes_are_refused(make: Make, tmp_path: Path) -> None:
    data = quiet(make(session()))

    class TwoProcesses:
        world_size, current_epoch = 2, 0

    data.trainer = TwoProcesses()  # type: ignore[assignment]
    with pytest.raises(UserError, match="2 processes"):
        next(iter(data.train_dataloader()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_data_move_to_the_device(make: Make) -> None:
    data = quiet(make(session()), ["number"], sv_rate=0.2).to("cuda")
    batch, extras = next(iter(data.train_dataloader()))[0]
    tensors = [batch.encod_data, batch.recon_data, batch.sv_mask, batch.ext_input, *extras]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}


# ---- real recordings ---------------------------------------------------------------------------


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"the real recordings are not at {RECORDINGS}")
def test_two_days_of_the_wrist_recording() -> None:
    data = BasicDataModule(RECORDINGS / "isometric_wrist_day*.h5", ["behavior"], batch_size=256)
    with pytest.warns(DataWarning, match="channels are silent"):
        data.setup()
    assert [size.n_train for size in data.sizes] == [1509, 1489]
    assert len(data.train_dataloader()) == 11
    step = next(iter(data.train_dataloader()))
    assert [step[i][0].recon_data.shape for i in (0, 1)] == [(128, 30, 100)] * 2
    assert step[1][1][0].shape == (128, 30, 4)
    assert sum(len(step[0][0].recon_data) for step in data.val_dataloader()) == 377


def test_an_error_comes_after_the_warnings_of_the_files_before_it(tmp_path: Path) -> None:
    silent = session()
    for key in ("train_recon_data", "train_encod_data"):
        silent[key][..., 1] = 0
    write_session(tmp_path / "day0.h5", silent)
    write_session(tmp_path / "day1.h5", session(bins=(5, 7)))  # other bins: they do not fit
    with (
        pytest.warns(DataWarning, match=r"day0\.h5: 1 of 4 channels are silent"),
        pytest.raises(DataError, match="day1"),
    ):
        BasicDataModule(str(tmp_path / "*.h5"), batch_size=8).setup()
