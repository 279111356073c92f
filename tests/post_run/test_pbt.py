import numpy as np
import pytest

from lfads_torch.errors import DataError, UserError
from lfads_torch.post_run.pbt import plot_pbt_hps, read_pbt_hps
from lfads_torch.search.rules import Schedule
from tests.search.synthetic import run_search


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pbt")
    run_search(place, 6, 12, Schedule(2, 3, 12))
    return place


def test_read_pbt_hps(folder):
    pytest.importorskip("pandas", reason="pandas comes with the extra tune")
    frame = read_pbt_hps(folder)
    assert frame.shape == (4 * 6, 4 + 7)
    assert (frame[frame.generation == 0]["model.lr_init"] == 4e-3).all()
    moved = frame[frame.parent != frame.member]
    assert len(moved) == 3 * 3, "half of six members lose, three times"
    assert frame[frame.generation == 3]["model.lr_init"].nunique() > 1


@pytest.mark.parametrize("field", ["model.lr_init", "lr_init"])
def test_plot_pbt_hps(folder, field, tmp_path):
    figure = plot_pbt_hps(folder, field, color="green", save_dir=tmp_path / "figures")
    assert [axis.get_title() for axis in figure.axes] == ["lr_init"]
    assert np.allclose(figure.axes[0].collections[-1].get_colors()[0], (0, 128 / 255, 0, 1))
    file = tmp_path / "figures" / f"{field.replace('.', '_')}.png"
    assert file.stat().st_size > 1000


def test_all_of_them(folder, tmp_path):
    assert len(plot_pbt_hps(folder, save_dir=tmp_path).axes) == 8
    assert (tmp_path / "hyperparameters.png").is_file()


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="no hyper-parameter lr_inti; did you mean lr_init"):
        plot_pbt_hps(folder, "model.lr_inti")
    with pytest.raises(DataError, match=r"no population.csv"):
        plot_pbt_hps(tmp_path, "lr_init")
