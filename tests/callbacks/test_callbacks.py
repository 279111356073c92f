import io
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import nn

from lfads_torch import LFADS, BasicDataModule
from lfads_torch.callbacks import EpochProgressBar, NaNGuard, RasterPlot, TrajectoryPlot
from lfads_torch.data import write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.errors import ConfigError, DivergedError
from lfads_torch.progress import clock

SIZES = dict(
    gen_dim=8, con_dim=4, ci_enc_dim=4, ic_enc_dim=4, ic_dim=4, fac_dim=4, co_dim=2, lr_init=1e-2
)


@pytest.fixture
def data(tmp_path: Path) -> BasicDataModule:
    arrays = lorenz(n_conditions=4, n_trials=5, n_units=6, n_bins=8, valid_fraction=0.4)
    write_session(tmp_path / "data.h5", arrays, {"bin_ms": 20.0})
    return BasicDataModule(tmp_path / "data.h5", batch_size=4)


def fit(model, data, callbacks, folder, epochs=3, **kwargs):
    trainer = pl.Trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=callbacks,
        accelerator="cpu",
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **kwargs},
    )
    trainer.fit(model, datamodule=data)
    return trainer


class Spoil(Callback):
    """Write a value into a parameter before a step."""

    def __init__(self, epoch, step, name="readout.0.weight", value=math.nan):
        self.when, self.name, self.value = (epoch, step), name, value
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.when:
            with torch.no_grad():
                pl_module.get_parameter(self.name).fill_(self.value)

    def on_train_epoch_start(self, trainer, pl_module):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


class Images:
    """A logger's experiment that takes images."""

    def __init__(self):
        self.seen = []

    def add_image(self, tag, pixels, step, dataformats):
        self.seen.append((tag, pixels.shape, pixels.dtype, step, dataformats))


class ImageLogger(pl.loggers.logger.DummyLogger):
    def __init__(self):
        super().__init__()
        self.images = Images()

    @property
    def experiment(self):
        return self.images


class TestFigures:
    def test_written_at_the_interval_and_at_the_end(self, data, tmp_path):
        logger = ImageLogger()
        plots = [RasterPlot(log_every_n_epochs=2), TrajectoryPlot(log_every_n_epochs=3)]
        fit(LFADS.from_data(data, **SIZES), data, plots, tmp_path, logger=logger)
        steps = [(tag, step) for tag, _, _, step, _ in logger.images.seen]
        assert sorted(steps) == [
            ("raster_valid", 2),
            ("raster_valid", 3),
            ("trajectories_valid", 3),
        ]
        for _, shape, dtype, _, layout in logger.images.seen:
            assert (shape[2], dtype, layout) == (3, np.uint8, "HWC")
        for name in ("raster_valid", "trajectories_valid"):
            assert imread(tmp_path / "figures" / f"{name}.png").std() > 0

    def test_draws_the_files_first_trials_with_fewer_than_asked_for(self, data, tmp_path):
        plot = RasterPlot(split="train", n_samples=50)
        drawn = []
        plot.draw = lambda batch, output, bin_ms, counts: (
            drawn.append((batch, output, bin_ms, counts)) or Figure()
        )
        fit(LFADS.from_data(data, **SIZES), data, [plot], tmp_path, epochs=1)
        [(batch, output, bin_ms, counts)] = drawn
        expected = data.sessions[0].splits["train"].recon_data
        assert np.array_equal(batch.recon_data, expected)
        assert output.output_params.shape == expected.shape
        assert (bin_ms, counts) == (20.0, True)

    def test_training_is_the_same_with_and_without(self, data, tmp_path):
        weights = []
        for callbacks in ([], [RasterPlot(log_every_n_epochs=1), TrajectoryPlot(1)]):
            pl.seed_everything(0, verbose=False)
            model = LFADS.from_data(data, **SIZES)
            fit(model, data, callbacks, tmp_path, epochs=2)
            weights.append(model.readout[0].weight.detach())
        assert torch.equal(*weights)

    def test_model_without_a_first_session_in_the_batch(self, data, tmp_path):
        """A batch may hold any sessions; the first one there is drawn."""

        class OnlySecond(nn.Module):
            device, training, current_epoch = torch.device("cpu"), False, 0

            def transfer_batch_to_device(self, batch, device, dataloader_idx):
                return batch

            def predict_step(self, batch, batch_idx, sample_posteriors):
                [(session, (own, _))] = batch.items()
                out = SimpleNamespace(output_params=own.recon_data, co_means=own.recon_data)
                return {session: out}

        batch = next(iter(data.split_loader("valid")))[0]
        trainer = SimpleNamespace(
            datamodule=None,
            val_dataloaders=[{3: batch}],
            is_global_zero=True,
            default_root_dir=tmp_path,
            loggers=[],
            current_epoch=0,
            sanity_checking=False,
            state=SimpleNamespace(fn="fit"),
        )
        RasterPlot(log_every_n_epochs=1).on_validation_epoch_end(trainer, OnlySecond())
        assert (tmp_path / "figures" / "raster_valid.png").is_file()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"split": "vald"}, "split is 'vald'"),
            ({"n_samples": 0}, "n_samples must be 1 or more"),
            ({"log_every_n_epochs": 0}, "log_every_n_epochs must be 1 or more"),
        ],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(ConfigError, match=message):
            RasterPlot(**arguments)


class TestNaNGuard:
    def test_stop_names_epoch_step_term_and_checkpoint(self, data, tmp_path):
        checkpoint = ModelCheckpoint(
            tmp_path, filename="best", monitor="valid/recon_smth", save_on_train_epoch_end=True
        )
        with pytest.raises(DivergedError) as info:
            fit(
                LFADS.from_data(data, **SIZES),
                data,
                [Spoil(2, 1), NaNGuard(), checkpoint],
                tmp_path,
                epochs=5,
                enable_checkpointing=True,
            )
        message = str(info.value)
        assert "epoch 2" in message
        assert "train/recon/sess0 is nan at step 2 of 3" in message
        assert "lr_init" in message
        assert str(tmp_path / "best.ckpt") in message
        state = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())

    def test_stop_names_the_term_that_did_it(self, data, tmp_path):
        # An infinite prior mean spoils the KL of the initial condition alone.
        spoil = Spoil(1, 2, "ic_prior.mean", math.inf)
        with pytest.raises(DivergedError, match=r"train/wt_kl/ic is inf at step 3 of 3\."):
            fit(LFADS.from_data(data, **SIZES), data, [spoil, NaNGuard()], tmp_path)

    def test_weights_spoilt_by_the_last_step(self, data, tmp_path):
        class Late(Callback):
            def on_validation_epoch_end(self, trainer, pl_module):
                with torch.no_grad():
                    pl_module.readout[0].bias.fill_(math.inf)

        with pytest.raises(DivergedError, match="weights are not finite after step 3"):
            fit(LFADS.from_data(data, **SIZES), data, [Late(), NaNGuard()], tmp_path)

    def test_recover_restores_and_halves_the_learning_rate(self, data, tmp_path):
        spoil, guard = Spoil(2, 1), NaNGuard(on_nan="recover")
        states = {}

        class Watch(Callback):
            def on_train_epoch_end(self, trainer, pl_module):
                states[trainer.current_epoch] = (
                    {k: v.clone() for k, v in pl_module.state_dict().items()},
                    pl_module.extra_state()["recon_smth"].item(),
                    trainer.callback_metrics["valid/recon_smth"].item(),
                )

        model = LFADS.from_data(data, **SIZES)
        with pytest.warns(UserWarning, match=r"halved from 0.01 to 0.005 \(recovery 1 of 5\)"):
            fit(model, data, [spoil, guard, Watch()], tmp_path, epochs=5)
        assert spoil.rates == pytest.approx([1e-2, 1e-2, 1e-2, 5e-3, 5e-3])
        for key, value in states[1][0].items():
            assert torch.equal(states[2][0][key], value), key
        assert states[2][1:] == states[1][1:]
        assert all(math.isfinite(smoothed) for _, smoothed, _ in states.values())
        assert guard.state_dict() == {"n_recoveries": 1}

    def test_gives_up_after_max_recoveries(self, data, tmp_path):
        class Always(Spoil):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                self.when = (trainer.current_epoch, batch_idx)
                super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

        spoil = Always(0, 0)
        with (
            warnings.catch_warnings(),
            pytest.raises(DivergedError, match="halved 2 times already"),
        ):
            warnings.simplefilter("ignore")
            fit(
                LFADS.from_data(data, **SIZES),
                data,
                [spoil, NaNGuard("recover", max_recoveries=2)],
                tmp_path,
                epochs=9,
            )
        assert spoil.rates == pytest.approx([1e-2, 5e-3, 2.5e-3])

    def test_a_run_without_any_finite_epoch_is_no_run(self, data, tmp_path):
        with (
            warnings.catch_warnings(),
            pytest.raises(DivergedError, match="None of the 1 epochs had a finite loss"),
        ):
            warnings.simplefilter("ignore")
            fit(
                LFADS.from_data(data, **SIZES),
                data,
                [Spoil(0, 0), NaNGuard("recover")],
                tmp_path,
                epochs=1,
            )

    def test_silent_on_a_healthy_run(self, data, tmp_path):
        guard = NaNGuard(on_nan="recover")
        fit(LFADS.from_data(data, **SIZES), data, [guard], tmp_path)
        assert guard.n_recoveries == 0

    def test_arguments_and_resume(self):
        with pytest.raises(ConfigError, match="on_nan is 'ignore'; legal: recover, stop"):
            NaNGuard(on_nan="ignore")
        guard = NaNGuard("recover")
        guard.load_state_dict({"n_recoveries": 4})
        assert guard.n_recoveries == 4


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestEpochProgressBar:
    def test_plain_lines_without_a_terminal(self, data, tmp_path):
        out = io.StringIO()
        bar = EpochProgressBar(line_every_s=0, stream=out)
        fit(LFADS.from_data(data, **SIZES), data, [bar], tmp_path, enable_progress_bar=True)
        header, *lines = out.getvalue().splitlines()
        assert header.startswith("12 trials x 8 bins x 6 channels, ")
        assert " parameters, cpu, kernels in " in header
        assert [line.split(" | ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
        for line in lines:
            assert " | loss " in line
            assert " | valid recon (smoothed) " in line
        assert all(line.endswith(" left") for line in lines[:-1])
        assert lines[-1].endswith(" in all")

    def test_few_lines_by_default(self, data, tmp_path):
        out = io.StringIO()
        bar = EpochProgressBar(stream=out)
        fit(LFADS.from_data(data, **SIZES), data, [bar], tmp_path, enable_progress_bar=True)
        assert len(out.getvalue().splitlines()) == 2

    def test_one_bar_on_a_terminal(self, data, tmp_path):
        out = Terminal()
        bar = EpochProgressBar(refresh_s=0, stream=out)
        trainer = fit(
            LFADS.from_data(data, **SIZES), data, [bar], tmp_path, enable_progress_bar=True
        )
        assert trainer.progress_bar_callback is bar
        shown = out.getvalue().split("\r")
        assert out.getvalue().count("\n") == 2
        assert "epoch 3/3" in shown[-1]
        assert "loss" in shown[-1]
        assert any("step 2/3" in text for text in shown)
        assert any(text.rstrip().endswith(" left") for text in shown)

    def test_disabled(self, data, tmp_path):
        out = io.StringIO()
        bar = EpochProgressBar(line_every_s=0, stream=out)
        bar.disable()
        fit(LFADS.from_data(data, **SIZES), data, [bar], tmp_path, enable_progress_bar=True)
        assert out.getvalue() == ""

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7325, "2:02:05")]
    )
    def test_clock(self, seconds, text):
        assert clock(seconds) == text
