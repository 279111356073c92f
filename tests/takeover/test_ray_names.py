"""Names that Ray has removed, asked for after this package is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lfads_torch.compat.configs import RENAMED, translate
from lfads_torch.errors import ConfigError
from lfads_torch.runs.check_config import find_target

pytest.importorskip("ray.tune", reason="Ray comes with the extra tune")

IMPORTS = """
import sys
from lfads_torch.run_model import run_model
assert "ray" not in sys.modules, "one model needs no Ray"
from ray import tune
from ray.tune.suggest import ConcurrencyLimiter
from ray.tune.suggest.basic_variant import BasicVariantGenerator
from ray.tune.suggest.suggestion import Searcher
import ray.tune.search.basic_variant as present
assert present.BasicVariantGenerator is BasicVariantGenerator
assert present.__spec__.name == "ray.tune.search.basic_variant"
assert tune.suggest.BasicVariantGenerator is BasicVariantGenerator
assert tune.get_trial_dir() == __import__("os").getcwd() and tune.get_trial_name() is None
from ray.tune.integration.pytorch_lightning import TuneReportCallback
assert TuneReportCallback.__module__.startswith("lfads_torch")
assert tune.Checkpoint("/x/checkpoint_1")._local_path == "/x/checkpoint_1"
assert tune.with_parameters(run_model, config_path="x").__name__ == "run_model"
from functools import partial
from lfads_torch.compat.ray_names import as_trial
assert as_trial(partial(run_model, config_path="x")).__name__ == "run_model"
"""


def test_imports(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_targets_of_yaml() -> None:
    for old in RENAMED:
        name = f"{old}loggers.CSVLogger" if old.startswith("lightning") else old
        if not name.endswith("."):
            node: dict[str, Any] = {"x": [{"_target_": name}]}
            translate(node)
            assert callable(find_target(node["x"][0]["_target_"], "x"))


def test_the_callback_reports_at_the_end_of_a_validated_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray import tune

    from lfads_torch.compat.ray_names import TuneReportCallback, TuneReportCheckpointCallback

    reports: list[Any] = []

    def report(metrics: Any, checkpoint: Any = None) -> None:
        files = (
            [] if checkpoint is None else [path.name for path in Path(checkpoint.path).iterdir()]
        )
        reports.append((metrics, files))

    monkeypatch.setattr(tune, "report", report)
    trainer: Any = SimpleNamespace(
        sanity_checking=True,
        current_epoch=3,
        callback_metrics={"valid/recon_smth": torch.tensor(0.5), "cur_epoch": torch.tensor(2.0)},
        save_checkpoint=lambda path: Path(path).write_text(""),
    )
    metrics = ["valid/recon_smth", "cur_epoch"]
    callback = TuneReportCheckpointCallback(metrics, "tune.ckpt", "validation_end")
    model: Any = None
    callback.on_validation_end(trainer, model)
    callback.on_train_epoch_end(trainer, model)
    assert not reports, "a sanity check is no validation"
    trainer.sanity_checking = False
    for one in (callback, TuneReportCallback({"score": "valid/recon_smth"})):
        one.on_validation_end(trainer, model)
        one.on_train_epoch_end(trainer, model)
        one.on_train_epoch_end(trainer, model)
    assert reports == [
        ({"valid/recon_smth": 0.5, "cur_epoch": 3}, ["tune.ckpt"]),
        ({"score": 0.5}, []),
    ]
    with pytest.warns(UserWarning, match="is to report valid/recon_smht, which is not logged"):
        late = TuneReportCallback(["valid/recon_smht", "cur_epoch"], on="train_epoch_end")
        late.on_train_epoch_end(trainer, model)
    assert reports[-1] == ({"cur_epoch": 3}, [])
    with pytest.raises(ConfigError, match="on is 'validation_ends'; did you mean"):
        TuneReportCallback(on="validation_ends")
