"""The live table: a line for each generation, on a terminal one that moves, time left in words."""

from __future__ import annotations

import io
import math

import pytest

from lfads_torch.search.live_table import LiveTable, Row

ROW = Row(group=2, epoch=30, best=0.51234567, median=0.6, replaced=4, diverged=1, n_members=8)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def table(stream: io.StringIO, line_every_s: float = 1e9) -> LiveTable:
    return LiveTable(True, 100, 5, line_every_s=line_every_s, stream=stream)


def test_a_line_has_generation_scores_copies_speed_and_time_left() -> None:
    stream = io.StringIO()
    live = table(stream)
    # 8 members x 5 steps in 2 s; 70 epochs left.
    live.add_time(2.0, 8)
    live.show(ROW, final=True)
    head, line = stream.getvalue().splitlines()
    assert " ".join(head.split()) == "gen epoch best median copies diverged steps/s left"
    assert line.split() == ["2", "30", "0.51235", "0.6", "4", "1", "20", "2:20"]
    assert len(head) == len(line) < 80


def test_steps_and_time_are_means_over_recent_epochs() -> None:
    stream = io.StringIO()
    live = table(stream)
    for seconds, n in ((1.0, 8), (3.0, 4)):
        live.add_time(seconds, n)
    live.show(ROW, final=True)
    # (8 + 4) x 5 steps in 4 s; 70 epochs of 2 s.
    assert stream.getvalue().split()[-2:] == ["15", "2:20"]


def test_where_there_is_no_terminal_epochs_get_a_line_now_and_then() -> None:
    stream = io.StringIO()
    live = table(stream)
    for epoch in range(5):
        live.show(ROW._replace(epoch=epoch), final=False)
    assert not stream.getvalue()
    live.show(ROW, final=True)
    assert len(stream.getvalue().splitlines()) == 2
    often = table(stream := io.StringIO(), line_every_s=0.0)
    for epoch in range(5):
        often.show(ROW._replace(epoch=epoch), final=False)
    assert len(stream.getvalue().splitlines()) == 6
    assert "\r" not in stream.getvalue()


def test_on_a_terminal_the_line_moves_until_its_generation_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    live = table(stream)
    for epoch in (1, 2):
        live.show(ROW._replace(epoch=epoch), final=False)
    live.show(ROW._replace(epoch=3), final=True)
    live.show(ROW._replace(epoch=4), final=False)
    live.say("ended")
    live.close()
    text = stream.getvalue()
    assert text.count("\r\x1b[K") == 4
    lines = text.split("\n")
    assert len(lines) == 5
    assert lines[-2:] == ["ended", ""]
    # What is rewritten fits the terminal, so that it can be taken back.
    assert all(len(part) < 40 for line in lines[1:] for part in line.split("\r\x1b[K"))


def test_scores_that_are_not_finite_are_dashes() -> None:
    stream = io.StringIO()
    table(stream).show(ROW._replace(best=math.nan, median=math.inf), final=True)
    assert stream.getvalue().split()[10:12] == ["-", "-"]
