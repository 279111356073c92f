"""The chain of days of the benchmark of alignments, at sizes that show nothing but that it runs."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import alignment
import pytest
from alignment import days

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.slow
def test_a_chain_of_days_is_aligned_to_the_first_and_to_the_day_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = partial(days, n_units=8, n_windows=60, n_bins=10)
    monkeypatch.setattr(alignment, "days", small)
    sizes = ["--days", "3", "--units", "8", "--epochs", "2", "--align-epochs", "1", "--seeds", "1"]
    place = ["chain", str(tmp_path), "--samples", "1", "--figure", str(tmp_path / "chain.png")]
    monkeypatch.setattr(sys, "argv", ["alignment.py", *place, *sizes])
    alignment.main()
    rows = capsys.readouterr().out.splitlines()[-3:]
    assert rows[0].startswith("day 0  itself")
    for row in rows[1:]:
        for name in ("unaligned", "normalised", "to day 0", "to the day before"):
            assert f"{name} " in row
    assert (tmp_path / "chain.png").stat().st_size > 5_000
    assert (tmp_path / "to_the_day_before_2").is_dir()
