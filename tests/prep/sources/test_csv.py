"""Tables of text in the dialects of programs and countries."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from lfads_torch.cli import main
from lfads_torch.errors import DataError, UserError
from lfads_torch.prep import SourceOptions, open_recording, prepare
from lfads_torch.prep.sources import BinnedSpikes, SpikeTimes
from lfads_torch.prep.sources.csv import read_table

RNG = np.random.default_rng(0)
UNITS = [np.sort(RNG.uniform(0, 60, n)).round(4) for n in (300, 150, 220)]
# Every spike: its unit and time, in order of time.
PAIRS = sorted((t, u) for u, times in enumerate(UNITS) for t in times.tolist())


def columns(separator: str, comma: bool = False, unit_ms: bool = False, digits: int = 4) -> str:
    def show(t: float) -> str:
        text = f"{t * 1000:.1f}" if unit_ms else f"{t:.{digits}f}"
        return text.replace(".", ",") if comma else text

    rows = [separator.join(show(u[i]) if i < len(u) else "" for u in UNITS) for i in range(300)]
    return "\n".join(rows)


def pairs(line: Callable[[float, int], str]) -> str:
    return "\n".join(line(t, u) for t, u in PAIRS)


def comma(value: float) -> str:
    return f"{value:.4f}".replace(".", ",")


FILES = {
    "a column per unit": "SPK01a,SPK02a,SPK03b\n" + columns(","),
    "decimal comma": "a;b;c\n" + columns(";", comma=True),
    "tabs, ms in brackets": "Neuron 1 (ms)\tNeuron 2 (ms)\tNeuron 3 (ms)\n"
    + columns("\t", unit_ms=True),
    "a title, and a line of units": "Exported by X;;\nn1;n2;n3\n(s);(s);(s)\n"
    + columns(";", comma=True),
    "Excel's line, and a mark at its start": "\ufeffsep=;\nn1;n2;n3\n" + columns(";"),
    "comments": "% made by hand\n# a second line\n\nx,y,z\n" + columns(","),
    "every row ends with a comma": "x,y,z,\n" + columns(",").replace("\n", ",\n") + ",",
    "a spike per row": "time,unit\n" + pairs(lambda t, u: f"{t},{u}"),
    "a spike per row, white space": "unit   time\n" + pairs(lambda t, u: f"  {u}    {t:.4f}"),
    "names of columns in a comment": "# time unit\n" + pairs(lambda t, u: f"{t:.4f} {u}"),
    "two lines of header": "Time;Unit ID\ns;-\n" + pairs(lambda t, u: f"{comma(t)};{u}"),
    "ms in brackets": "spike_time [ms],neuron\n" + pairs(lambda t, u: f"{t * 1000:.1f},n{u}"),
    "us in the name": "Time_us\tCluster\n" + pairs(lambda t, u: f"{round(t * 1e6)}\t{u}"),
    "spaces after commas, quotes": '"time", "unit"\n' + pairs(lambda t, u: f'{t}, "n{u}"'),
    "rows are numbered": ",x,y,z\n"
    + "\n".join(f"{i},{line}" for i, line in enumerate(columns(",").split("\n"))),
    "channel and unit": "channel,unit,time\n"
    + pairs(lambda t, u: f"{(3, 3, 10)[u]},{(1, 2, 1)[u]},{t}"),
    "channel and unit by name": "Channel;Unit;Time (s)\n"
    + pairs(lambda t, u: f"ch{(1, 1, 2)[u]};{'aba'[u]};{comma(t)}"),
}


@pytest.mark.parametrize("what", FILES)
def test_spike_times_in_any_dialect(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(FILES[what], encoding="utf-8")
    recording = open_recording(path)
    spikes = recording.spikes
    assert isinstance(spikes, SpikeTimes)
    seconds = [spikes.clock.seconds(spikes.units[i][:]) for i in range(spikes.n_units)]
    assert len(seconds) == len(UNITS)
    for got, right in zip(seconds, UNITS, strict=True):
        np.testing.assert_allclose(got, right, atol=1e-9)
    if what == "channel and unit":
        assert recording.units["name"].tolist() == ["3_1", "3_2", "10_1"]
        assert recording.units["channel"].tolist() == [3, 3, 10]
    if what == "channel and unit by name":
        assert recording.units["name"].tolist() == ["ch1_a", "ch1_b", "ch2_a"]


def test_utf16_of_spreadsheets(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("time\tunit\n" + pairs(lambda t, u: f"{comma(t)}\t{u}"), encoding="utf-16")
    spikes = open_recording(path).spikes
    assert isinstance(spikes, SpikeTimes)
    np.testing.assert_array_equal(spikes.units[0][:], UNITS[0])


def test_units_numbered_through_all_channels_keep_their_number(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("unit,channel,time\n7,9,0.5\n2,30,0.25\n7,9,0.75\n")
    recording = open_recording(path)
    assert recording.units["name"].tolist() == [2, 7]
    assert recording.units["channel"].tolist() == [30, 9]
    assert [u[:].tolist() for u in recording.spikes.units] == [[0.25], [0.5, 0.75]]  # type: ignore[union-attr]


@pytest.mark.parametrize("style", ["nex", "decimal comma"])
def test_columns_of_times_are_counted(
    tmp_path: Path, style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    # Whole 0.1 ms, so that integers decide the bin of each spike.
    ticks = [np.sort(rng.integers(0, 600_000, rng.integers(200, 500))) for _ in range(8)]
    mark = "," if style == "decimal comma" else "."
    rows = [
        [f"{t[r] // 10**4}{mark}{t[r] % 10**4:04d}" if r < len(t) else "" for t in ticks]
        for r in range(max(map(len, ticks)))
    ]
    path = tmp_path / "nex.csv"
    lines = [[f"SPK{i + 1:02d}a" for i in range(8)], *rows]
    path.write_text("\n".join((";" if mark == "," else ",").join(row) for row in lines))
    assert main(["prep", str(path), "--list"]) == 0
    assert "Units: 8" in capsys.readouterr().out
    done = prepare(path, tmp_path / "o.h5", bin_ms=20, chop_ms=1000)
    first = min(t.min() for t in ticks) // 200
    counts = np.stack([np.bincount(t // 200, minlength=3000)[first:] for t in ticks], axis=1)
    with h5py.File(done.path) as file:
        for split in ("train", "valid"):
            starts, data = file[f"{split}_chop_start"][()], file[f"{split}_encod_data"][()]
            for start, window in zip(starts, data, strict=True):
                np.testing.assert_array_equal(window, counts[start : start + 50])


def test_columns_of_events_are_trials_not_units(tmp_path: Path) -> None:
    events = np.arange(1, 55, 3.0)
    rows = [
        ",".join(f"{c[i]:.4f}" if i < len(c) else "" for c in [UNITS[0], events, UNITS[1]])
        for i in range(300)
    ]
    path = tmp_path / "x.csv"
    path.write_text("sig001a,Event003,sig002a\n" + "\n".join(rows))
    recording = open_recording(path)
    assert recording.units["name"].tolist() == ["sig001a", "sig002a"]
    assert recording.tables == {"Event003": len(events)}
    done = prepare(path, tmp_path / "o.h5", bin_ms=10, trials="Event003", align="timestamps:0:500")
    assert sum(done.trials.values()) == len(events)


def test_bins_or_times_is_asked_where_nothing_decides(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n" + "\n".join(f"{i},{2 * i + 1}" for i in range(30)))
    with pytest.raises(UserError, match=r"several ways(.|\n)*--axes unit(.|\n)*--axes time,unit"):
        open_recording(path)
    times = open_recording(path, SourceOptions(axes="unit")).spikes
    assert isinstance(times, SpikeTimes) and times.count(0) == 30
    bins = open_recording(path, SourceOptions(axes="time,unit", input_bin_ms=10)).spikes
    assert isinstance(bins, BinnedSpikes) and bins.n_bins == 30
    # Counts rise and fall, which times of spikes do not.
    path.write_text("a,b\n" + "\n".join(f"{i % 3},{i % 2}" for i in range(30)))
    with pytest.raises(UserError, match="--input-bin-ms"):
        open_recording(path)
    assert isinstance(open_recording(path, SourceOptions(input_bin_ms=5)).spikes, BinnedSpikes)
    # A regular time base is that of bins, whatever the columns look like.
    path.write_text("time (ms);a;b\n" + "\n".join(f"{20 * i},0;{i};{i + 1}" for i in range(30)))
    bins = open_recording(path).spikes
    assert isinstance(bins, BinnedSpikes) and bins.bin_s == 0.02
    path.write_text("time,amplitude\n0.1,3\n0.15,4\n0.9,2\n1.3,7\n")
    with pytest.raises(UserError, match=r"steps by 0\.05 to 0\.75 s.*--spike-units"):
        open_recording(path)


def test_bins_with_text_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("time\tn1\tn2\tstate\n0\t1\t0\trest\n0.02\t0\t2\tgo\n0.04\t1\t\tgo\n")
    recording = open_recording(path)
    assert isinstance(recording.spikes, BinnedSpikes)
    np.testing.assert_array_equal(recording.spikes.read(0, 3), [[1, 0], [0, 2], [1, np.nan]])
    assert any("'state'" in note or "state" in note for note in recording.notes)


def test_tables_of_trials_in_another_country(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("go;side;good\n1,5;left, far;true\n2,25;right;false\n;left;true\n")
    table = read_table(path)
    np.testing.assert_array_equal(table["go"], [1.5, 2.25, np.nan])
    assert table["side"].tolist() == ["left, far", "right", "left"]
    assert table["good"].tolist() == [True, False, True]
    path.write_text("go,side\n1\n")
    with pytest.raises(DataError, match="another number of fields"):
        read_table(path)


def test_words_of_another_language_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("Einheit;Zeit\n" + pairs(lambda t, u: f"{u};{comma(t)}"))
    with pytest.raises(UserError, match="--spikes COLUMN --spike-units COLUMN"):
        open_recording(path)
    spikes = open_recording(path, SourceOptions(spikes="Zeit", spike_units="Einheit")).spikes
    assert isinstance(spikes, SpikeTimes)
    np.testing.assert_array_equal(spikes.units[1][:], UNITS[1])
    path.write_text("time,unit\n")
    with pytest.raises(DataError, match="no rows"):
        open_recording(path)


def test_spikes_without_a_unit_and_columns_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    for lost in ("", "NaN"):
        path.write_text("time,unit\n0.1,1\n0.2," + lost + "\n0.3,2\n")
        with pytest.raises(DataError, match="1 spikes name no unit"):
            open_recording(path)
    path.write_text("time,unit,trial\n0.1,1,1\n0.2,2,1\n0.3,2,1\n")
    for option in ({"spike_units": "neuron"}, {"spike_trials": "trail"}):
        with pytest.raises(UserError, match="There is no column"):
            open_recording(path, SourceOptions(**option))


def test_a_table_of_trials_that_is_none(tmp_path: Path) -> None:
    path, table = tmp_path / "s.csv", tmp_path / "trials.csv"
    path.write_text("time,unit\n0.1,1\n0.2,2\n0.3,2\n")
    table.write_text("go,side\n")
    with pytest.raises(DataError, match="and no rows"):
        open_recording(path, SourceOptions(trials=str(table)))
    with pytest.raises(UserError, match=r"no table 't\.xlsx'.*save a spreadsheet as CSV"):
        open_recording(path, SourceOptions(trials="t.xlsx"))
    # Missing numbers as R writes them; among words, none may be a word.
    table.write_text("go,side\n1.5,left\nNA,none\n2.5,none\n")
    trials = open_recording(path, SourceOptions(trials=str(table))).trials
    np.testing.assert_array_equal(trials["go"], [1.5, np.nan, 2.5])
    assert trials["side"].tolist() == ["left", "none", "none"]


def test_events_beside_columns_of_units(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    rows = [f"{k + 0.11:.2f},{k + 0.23:.2f},{k + 0.5 if k < 5 else ''}" for k in range(9)]
    path.write_text("ch1,ch2,go_cue\n" + "\n".join(rows))
    recording = open_recording(path)
    assert recording.units["name"].tolist() == ["ch1", "ch2"]
    assert recording.tables == {"go_cue": 5}


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8", "utf-16"])
def test_letters_of_older_programs(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes("time|Zähler\n0.1|é\n0.2|é\n".encode(encoding))
    recording = open_recording(path, SourceOptions(spike_units="Zähler"))
    assert recording.units["name"].tolist() == ["é"]
