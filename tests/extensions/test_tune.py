import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn

from lfads_torch.errors import ConfigError, DataError
from lfads_torch.extensions.tune import (
    EarlyStoppingWithBurnInPeriod,
    HyperParam,
    read_pbt_fitlog,
)
from lfads_torch.search.rules import Schedule
from lfads_torch.search.space import DEFAULT_SPACE, parse_space, space_overrides
from tests.search.synthetic import run_search


class Losses(pl.LightningModule):
    """Logs a given validation loss in each epoch."""

    def __init__(self, losses):
        super().__init__()
        self.losses = losses
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        self.log("valid/recon_smth", self.losses[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def epochs_run(losses, **kwargs):
    loader = torch.utils.data.DataLoader([0])
    trainer = pl.Trainer(
        max_epochs=len(losses),
        callbacks=[EarlyStoppingWithBurnInPeriod(**kwargs)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Losses(losses), loader, loader)
    return trainer.current_epoch


RISING = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]


def test_stops_only_after_the_burn_in():
    assert epochs_run(RISING, patience=2) == 3
    assert epochs_run(RISING, burn_in_period=3, patience=2) == 6
    assert epochs_run(RISING, burn_in_period=99, patience=2) == len(RISING)


def test_the_best_value_of_the_burn_in_does_not_count():
    losses = [0.1, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert epochs_run(losses, burn_in_period=1, patience=2) == len(losses)
    assert epochs_run(losses, patience=2) == 3


def test_also_when_checked_after_validation():
    stopper = EarlyStoppingWithBurnInPeriod(
        burn_in_period=2, patience=1, check_on_train_epoch_end=False
    )
    trainer = SimpleNamespace(
        current_epoch=1,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        sanity_checking=False,
        fast_dev_run=False,
        callback_metrics={"valid/recon_smth": torch.tensor(1.0)},
        strategy=SimpleNamespace(reduce_boolean_decision=lambda stop, all: stop),
        should_stop=False,
        world_size=1,
        global_rank=0,
    )
    stopper.on_validation_end(trainer, None)
    assert torch.isinf(stopper.best_score)
    trainer.current_epoch = 2
    stopper.on_validation_end(trainer, None)
    assert stopper.best_score == 1.0


def test_arguments():
    stopper = EarlyStoppingWithBurnInPeriod("valid/loss", 0.1, 7, burn_in_period=3)
    assert (stopper.monitor, stopper.min_delta, stopper.patience) == ("valid/loss", -0.1, 7)
    assert stopper.burn_in_period == 3
    with pytest.raises(ConfigError, match="burn_in_period must be 0 or more"):
        EarlyStoppingWithBurnInPeriod(burn_in_period=-1)


def test_read_pbt_fitlog(tmp_path):
    pytest.importorskip("pandas", reason="pandas comes with the extra tune")
    run_search(tmp_path, 4, 6, Schedule(2, 3, 6))
    frame = read_pbt_fitlog(tmp_path)
    assert len(frame) == 6 * 4
    assert {"epoch", "member", "parent", "hp/lr_init", "valid/recon_smth"} <= set(frame.columns)
    assert (frame[frame.epoch == 5].parent != frame[frame.epoch == 5].member).sum() == 2
    with pytest.raises(DataError, match=r"no population.csv"):
        read_pbt_fitlog(tmp_path / "elsewhere")


def test_hyper_params_of_existing_scripts():
    space = {
        "model.lr_init": HyperParam(1e-5, 5e-3, explore_wt=0.3, enforce_limits=True, init=4e-3)
    }
    assert parse_space(space)["lr_init"] == DEFAULT_SPACE["lr_init"]


def test_hyper_params_are_functions_for_sample_from():
    fixed, drawn = HyperParam(1e-5, 5e-3, init=4e-3), HyperParam(1e-5, 5e-3)
    assert fixed.init(None) == fixed.init({}) == fixed.start == fixed.init == 4e-3
    for draw in (drawn.init, drawn, fixed, fixed.sample):
        values = {draw(None) for _ in range(20)}
        assert len(values) == 20 and all(1e-5 <= value <= 5e-3 for value in values)
    np.random.seed(3)
    again = [drawn(), drawn.init({})]
    np.random.seed(3)
    assert again == [drawn(), drawn.init({})], "NumPy's seed says what is drawn"
    assert drawn == HyperParam(1e-5, 5e-3) != fixed == pickle.loads(pickle.dumps(fixed))


def test_hyper_params_of_functions_and_whole_numbers():
    mine = HyperParam(0, 1, sample_fn=lambda spec: 0.25)
    assert mine.init(None) == mine(None) == mine.first(np.random.default_rng(0)) == 0.25
    assert HyperParam(0.1, 1, init=lambda spec: 0.5).first(np.random.default_rng(0)) == 0.5
    sizes = HyperParam(16, 64, init=32, sample_fn="randint")
    assert (sizes.min_bound, sizes.max_bound) == (16, 64)
    assert all(isinstance(value, int) for value in (sizes.init(None), sizes(None)))
    free = HyperParam(1e-3, 1.0, explore_wt=0.8)
    assert (free.min_bound, free.max_bound, free.explore_wt) == (-np.inf, np.inf, 0.8)
    with pytest.raises(ConfigError, match="sample_fn or init of x is a function"):
        space_overrides({"x": mine})
