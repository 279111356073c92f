import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfads_torch.errors import DataError, UserError
from lfads_torch.folder import EXCHANGES, POPULATION
from lfads_torch.search.history import History
from lfads_torch.search.rules import Schedule
from lfads_torch.search.space import DEFAULT_SPACE
from lfads_torch.tables import as_frame, read_exchanges, read_hyperparameters, read_population
from tests.search.synthetic import run_search

SHORT = Schedule(burn_in_period=2, perturbation_interval=3, max_epochs=12)


def write(history, epoch, generation=0, n=3, **metrics):
    values = {"lr_init": np.full(n, 1e-3) * (1 + np.arange(n))}
    metrics = metrics or {"valid/recon_smth": np.arange(n) + 0.1 * epoch}
    history.append(epoch, generation, values, metrics, np.zeros(n, bool))


def swap(history, epoch, parents):
    n = len(parents)
    old = {"lr_init": np.arange(1.0, n + 1)}
    new = {"lr_init": np.arange(1.0, n + 1)[parents] * 1.1}
    history.exchange(epoch, 0, np.array(parents), old, new, np.arange(n) / 3)


def texts(folder):
    return [(folder / name).read_text() for name in (POPULATION, EXCHANGES)]


class TestPopulation:
    def test_numbers_come_back_as_they_were(self, tmp_path):
        history = History(tmp_path / "run")
        values = {"lr_init": np.array([1 / 3, 1e-17]), "kl_co_scale": np.array([2.0, -0.0])}
        metrics = {
            "train/loss": np.array([np.nan, np.inf], np.float32),
            "valid/recon_smth": np.array([0.1, 0.2]),
            "hp/lr_init": np.array([9.0, 9.0]),
        }
        history.append(4, 1, values, metrics, [True, False])
        table = read_population(tmp_path / "run")
        assert list(table["epoch"]) == [4, 4] and list(table["generation"]) == [1, 1]
        assert list(table["member"]) == list(table["parent"]) == [0, 1]
        assert list(table["diverged"]) == [True, False]
        assert list(table["hp/lr_init"]) == [1 / 3, 1e-17]
        assert list(table["hp/kl_co_scale"]) == [2, 0]
        assert np.isnan(table["train/loss"][0]) and np.isinf(table["train/loss"][1])
        assert {k: c.dtype.kind for k, c in table.items()} == {
            **dict.fromkeys(["epoch", "generation", "member", "parent"], "i"),
            "diverged": "b",
            **dict.fromkeys(["hp/lr_init", "hp/kl_co_scale", *list(metrics)[:2]], "f"),
        }

    def test_one_header_and_a_row_for_each_epoch_and_member(self, tmp_path):
        history = History(tmp_path)
        for epoch in range(3):
            write(history, epoch)
        rows = list(csv.reader((tmp_path / POPULATION).open(newline="")))
        assert len(rows) == 1 + 9 and {len(row) for row in rows} == {7}
        assert [row[:4] for row in rows[1:3]] == [["0", "0", "0", "0"], ["0", "0", "1", "1"]]

    def test_metrics_that_come_and_go(self, tmp_path):
        history = History(tmp_path)
        write(history, 0, n=2, a=np.zeros(2))
        write(history, 1, n=2, a=np.ones(2), b=np.array([5.0, 6.0]))
        write(history, 2, n=2, b=np.array([7.0, 8.0]))
        table = read_population(tmp_path)
        assert np.array_equal(table["a"], [0, 0, 1, 1, np.nan, np.nan], equal_nan=True)
        assert np.array_equal(table["b"], [np.nan, np.nan, 5, 6, 7, 8], equal_nan=True)

    def test_some_members(self, tmp_path):
        history = History(tmp_path)
        values, metrics = {"lr_init": np.array([1.0, 2.0])}, {"valid/recon": np.array([3.0, 4.0])}
        history.append(0, 0, values, metrics, [False, False], members=[2, 5])
        assert list(read_population(tmp_path)["member"]) == [2, 5]


class TestExchange:
    def test_a_row_for_each_copy(self, tmp_path):
        history = History(tmp_path)
        write(history, 0)
        swap(history, 1, [0, 0, 2])
        table = read_exchanges(tmp_path)
        assert {name: column.tolist() for name, column in table.items()} == {
            "generation": [0],
            "epoch": [1],
            "member": [1],
            "parent": [0],
            "score": [1 / 3],
            "parent_score": [0.0],
            "old/lr_init": [2.0],
            "new/lr_init": [1.1],
        }

    def test_the_next_epoch_knows_the_parent_and_the_one_after_not(self, tmp_path):
        history = History(tmp_path)
        write(history, 0)
        swap(history, 1, [2, 2, 2])
        write(history, 1)
        write(history, 2)
        parents = read_population(tmp_path)["parent"].reshape(3, 3)
        assert parents.tolist() == [[0, 1, 2], [2, 2, 2], [0, 1, 2]]

    def test_nobody_copied(self, tmp_path):
        history = History(tmp_path)
        write(history, 0)
        swap(history, 1, [0, 1, 2])
        table = read_exchanges(tmp_path)
        assert all(len(column) == 0 for column in table.values())
        assert table["member"].dtype.kind == "i" and table["score"].dtype.kind == "f"


class TestRewind:
    def run(self, folder, epochs, history=None):
        history = history or History(folder)
        for epoch in epochs:
            if epoch and epoch % 2 == 0:
                swap(history, epoch, [0, 0, (epoch // 2) % 3])
            write(history, epoch)
        return history

    @pytest.mark.parametrize("epoch", range(8))
    def test_a_resumed_search_writes_what_the_whole_one_writes(self, tmp_path, epoch):
        self.run(tmp_path / "whole", range(7))
        self.run(tmp_path / "cut", range(7))
        again = History(tmp_path / "cut")
        again.rewind(epoch)
        assert (read_population(tmp_path / "cut")["epoch"] < epoch).all()
        assert (read_exchanges(tmp_path / "cut")["epoch"] < epoch).all()
        self.run(tmp_path / "cut", range(epoch, 7), again)
        assert texts(tmp_path / "whole") == texts(tmp_path / "cut")

    def test_an_empty_folder(self, tmp_path):
        history = History(tmp_path)
        history.rewind(3)
        write(history, 0)
        assert len(read_population(tmp_path)["epoch"]) == 3

    def test_start_over(self, tmp_path):
        self.run(tmp_path, range(5)).rewind(0)
        assert not len(read_population(tmp_path)["epoch"])
        history = History(tmp_path)
        write(history, 0, n=2, other=np.zeros(2))
        assert list(read_population(tmp_path)["other"]) == [0, 0]

    @settings(max_examples=15, deadline=None)
    @given(st.data())
    def test_a_kill_anywhere_leaves_whole_rows(self, tmp_path_factory, data):
        folder = tmp_path_factory.mktemp("killed")
        self.run(folder, range(3))
        whole = texts(folder)
        for name, text in zip((POPULATION, EXCHANGES), whole, strict=True):
            (folder / name).write_text(text[: data.draw(st.integers(0, len(text)))])
        if b"\n" in (folder / POPULATION).read_bytes():
            table = read_population(folder)
            n = len(table["epoch"])
            assert all(len(column) == n for column in table.values())
        again = History(folder)
        again.rewind(0)
        self.run(folder, range(3), again)
        assert texts(folder) == whole


class TestReading:
    def test_hyperparameters_by_generation(self, tmp_path):
        run_search(tmp_path, 4, 12, SHORT)
        table = read_hyperparameters(tmp_path)
        assert list(table)[:4] == ["generation", "epoch", "member", "parent"]
        assert list(table)[4:] == [f"model.{name}" for name in DEFAULT_SPACE]
        assert table["generation"].tolist() == np.repeat([0, 1, 2, 3], 4).tolist()
        assert table["epoch"].tolist() == np.repeat([0, 5, 8, 11], 4).tolist()
        copies = read_exchanges(tmp_path)
        for epoch, member, parent, new in zip(
            *(copies[n] for n in ("epoch", "member", "parent", "new/lr_init")), strict=True
        ):
            row = (table["epoch"] == epoch) & (table["member"] == member)
            assert table["parent"][row] == parent
            assert table["model.lr_init"][row] == new

    def test_frames(self, tmp_path):
        pd = pytest.importorskip("pandas", reason="pandas comes with the extra tune")
        run_search(tmp_path, 3, 4, SHORT)
        frame = as_frame(read_population(tmp_path))
        assert isinstance(frame, pd.DataFrame) and len(frame) == 12
        assert frame["diverged"].dtype == bool
        assert frame.pivot(index="epoch", columns="member", values="valid/recon").shape == (4, 3)

    def test_without_pandas(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(UserError, match=r"pip install 'lfads-torch\[analysis\]'"):
            as_frame({"epoch": np.zeros(1)})

    def test_a_folder_without_a_search(self, tmp_path):
        for read in (read_population, read_exchanges, read_hyperparameters):
            with pytest.raises(DataError, match=r"no population.csv in .*run folder of a search"):
                read(tmp_path)
        run_search(tmp_path / "runs" / "pbt", 2, 1, SHORT)
        (tmp_path / "runs" / "pbt" / "best_model").mkdir()
        with pytest.raises(DataError, match=r"did you mean .*pbt\?"):
            read_population(tmp_path / "runs")
        with pytest.raises(DataError, match=r"did you mean .*pbt\?"):
            read_population(tmp_path / "runs" / "pbt" / "best_model")

    def test_a_file_of_another_kind(self, tmp_path):
        (tmp_path / POPULATION).write_text("name,age\nAda,36\n")
        with pytest.raises(DataError, match="not the history of a search"):
            read_population(tmp_path)
        with pytest.raises(DataError, match="not the history of a search"):
            History(tmp_path)
        (tmp_path / POPULATION).write_text("epoch,member,parent,loss\n0,0,0,low\n")
        with pytest.raises(DataError, match=r"holds what is not a number: .*low"):
            read_population(tmp_path)

    def test_rows_that_lost_a_part_are_named(self, tmp_path):
        History(tmp_path)
        text = "epoch,generation,member,parent,loss\n0,0,0,0,1.5\n0,0,1\n0,0,2,2,2.5\n"
        (tmp_path / POPULATION).write_text(text)
        with pytest.raises(DataError, match="line 3 has 3 values for 5 columns"):
            read_population(tmp_path)


class TestWriting:
    def test_no_folder_can_be_made_below_a_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot be written"):
            History(tmp_path / "file" / "run")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_full_disk(self, tmp_path):
        history = History(tmp_path)
        write(history, 0)
        (tmp_path / POPULATION).unlink()
        os.symlink("/dev/full", tmp_path / POPULATION)
        with pytest.raises(UserError, match="the disk is full"):
            write(history, 1)
