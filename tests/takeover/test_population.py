"""Folders of populations that the existing implementation's scripts left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from lfads_torch.errors import DataError, UserError
from lfads_torch.extensions.tune import read_pbt_fitlog
from lfads_torch.post_run.pbt import plot_pbt_hps, read_pbt_hps

pytest.importorskip("pandas", reason="pandas comes with the extra tune")
POPULATION = Path(__file__).parent / "files" / "population"


def test_hyper_parameters_are_read_at_each_start_and_take_over() -> None:
    table = read_pbt_hps(str(POPULATION))
    assert len(table) == 4
    config = json.loads((POPULATION / "run_model_8c1e4_00000" / "params.json").read_text())
    assert list(table.columns) == ["trial_num", "cur_epoch", *config]
    assert table.trial_num.tolist() == [0, 1, 2, 2]
    assert table.cur_epoch.tolist() == [0, 0, 0, 2]
    taken = json.loads((POPULATION / "pbt_global.txt").read_text())
    for row, values in ((2, taken[4]), (3, taken[5])):
        assert table.iloc[row].drop(["trial_num", "cur_epoch"]).to_dict() == values


def test_without_the_file_of_take_overs_the_configurations_tell(tmp_path: Path) -> None:
    folder = shutil.copytree(POPULATION, tmp_path / "population")
    (folder / "pbt_global.txt").unlink()
    assert read_pbt_hps(folder).equals(read_pbt_hps(POPULATION))


def test_a_figure_is_named_after_its_field(tmp_path: Path) -> None:
    figure = plot_pbt_hps(POPULATION, "model.lr_init", save_dir=tmp_path, alpha=0.5, logy=True)
    assert (tmp_path / "model_lr_init.png").stat().st_size > 1000
    axis = figure.axes[0]
    assert [line.get_alpha() for line in axis.lines] == [0.5] * 3 and axis.get_yscale() == "log"
    assert np.allclose(axis.lines[2].get_ydata(), [0.000960731] * 2 + [1.74513e-05] * 2)
    assert plot_pbt_hps(POPULATION, "lr_init").axes[0].get_ylabel() == "model.lr_init"
    plt.close("all")
    with pytest.raises(UserError, match=r"no hyper-parameter .*; did you mean model\.lr_init"):
        plot_pbt_hps(POPULATION, "model.lr_inti")


def test_what_the_members_logged_is_one_table(tmp_path: Path) -> None:
    table = read_pbt_fitlog(str(POPULATION), n_processes=2)
    assert len(table) == 12
    assert table.worker_id.tolist() == [number for number in range(6) for _ in range(2)]
    assert {"epoch", "step", "hp/lr_init", "valid/recon_smth"} <= set(table.columns)
    assert table.epoch.tolist() == [0, 1, 2, 3] * 3

    folder = shutil.copytree(POPULATION, tmp_path / "population")
    log = folder / "run_model_8c1e4_00000" / "csv_logs" / "version_0" / "metrics.csv"
    log.write_text(
        "epoch,step,lr-AdamW,train/loss,valid/loss\n"
        ",0,0.01,,\n0,1,,,2.0\n0,1,,3.0,\n,2,0.001,,\n1,3,,,1.0\n"
    )
    rows = read_pbt_fitlog(folder).iloc[:2]
    assert rows["lr-AdamW"].tolist() == [0.01, 0.001]
    assert rows["train/loss"].tolist() == [3, 3] and rows["valid/loss"].tolist() == [2, 1]


def test_what_is_damaged(tmp_path: Path) -> None:
    folder = shutil.copytree(POPULATION, tmp_path / "population")
    results = folder / "run_model_8c1e4_00001" / "result.json"
    results.write_text(results.read_text()[:-20])
    assert len(read_pbt_hps(folder)) == 4, "a kill cut the last line off"
    results.write_text("{\n" + results.read_text())
    with pytest.raises(DataError, match=r"line 1 of .*result\.json is no JSON"):
        read_pbt_hps(folder)
    for log in folder.rglob("metrics.csv"):
        log.unlink()
    with pytest.raises(DataError, match="have no csv_logs"):
        read_pbt_fitlog(folder)
