"""Files written whole or not at all, and tables that grow and survive a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfads_torch.errors import UserError
from lfads_torch.files import Table, absent, copy_whole, read_table, replacing, write_whole


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"ne")
        raise RuntimeError
    assert path.read_text() == "old"
    copy_whole(path, tmp_path / "deep" / "b.json")
    assert (tmp_path / "deep" / "b.json").read_text() == "old"
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["a.json", "b.json"]


def test_what_is_absent_may_be_misspelt(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    assert absent(tmp_path / "frist").endswith("frist does not exist (did you mean first?)")
    assert absent(tmp_path / "no" / "x").endswith("x does not exist")


def test_a_folder_that_is_a_file_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_whole(tmp_path / "file" / "a.csv", "x")


names = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=8)
rows = st.lists(st.dictionaries(names, names, min_size=1, max_size=4), min_size=1, max_size=5)


@given(rows, st.integers(0, 200))
def test_rows_come_back_whatever_their_names_and_where_a_kill_cuts(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("table") / "t.csv"
    for row in rows:
        Table(path).append([row])
    header, found = read_table(path)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    assert header == columns
    assert found == [{name: row.get(name, "") for name in columns} for row in rows]
    path.write_bytes(path.read_bytes()[:-cut] if cut else path.read_bytes())
    before = read_table(path)[1]
    assert before == found[: len(before)]
    Table(path).append([{"later": "1"}])
    assert [row["later"] for row in read_table(path)[1] if row.get("later")][-1] == "1"


def test_columns_with_commas_keep_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    Table(path).append([{"step": 0, "my,score": 1.5}])
    Table(path).append([{"step": 1, "my,score": 2.5, 'a "b"': 3}])
    Table(path).append([{"step": 2}])
    assert [row["my,score"] for row in read_table(path)[1]] == ["1.5", "2.5", ""]
