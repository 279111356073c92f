import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lfads_torch.errors import UserError
from lfads_torch.post_run.plots.hyperparameters import (
    family_of,
    hyperparameter_paths,
    score_history,
    scores_by_value,
)
from lfads_torch.post_run.plots.style import look
from lfads_torch.search.rules import Schedule
from lfads_torch.search.space import HyperParam
from lfads_torch.tables import read_population
from tests.search.synthetic import run_search

FIGURES = (hyperparameter_paths, score_history, scores_by_value)


def rendered(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def table(parents, scores, hp=None, diverged=None):
    """A population of E epochs and K members, from arrays (E, K); a parent of -1 means no row."""
    parents, scores = np.asarray(parents), np.asarray(scores, float)
    epochs, members = np.nonzero(parents >= 0)
    pick = (epochs, members)
    return {
        "epoch": epochs,
        "member": members,
        "parent": parents[pick],
        "diverged": np.zeros(len(epochs), bool) if diverged is None else np.asarray(diverged)[pick],
        "valid/recon_smth": scores[pick],
        "hp/lr_init": (scores if hp is None else np.asarray(hp, float))[pick],
    }


# Member 1 copies 0 before epoch 1, member 0 copies 2 before epoch 2.
PARENTS = [[0, 1, 2], [0, 0, 2], [2, 1, 2]]


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    run_search(folder, 8, 40, Schedule(4, 6, 40), diverging=0.005)
    return read_population(folder)


class TestLineage:
    def test_by_hand(self):
        family = family_of(table(PARENTS, np.zeros((3, 3))))
        assert family.line_of(0).tolist() == [2, 2, 0]
        assert family.line_of(1).tolist() == [0, 1, 1]
        assert family.living().tolist() == [[True, False, True], [False, True, True], [True] * 3]
        assert family.blocks().tolist() == [0, 1, 2]
        assert list(family.spans())[:3] == [(0, 0, 0, 1), (0, 1, 0, 1), (0, 2, 0, 1)]

    def test_members_that_end_early(self):
        family = family_of(table([[0, 1], [0, -1], [0, -1]], np.zeros((3, 2))))
        assert family.last.tolist() == [2, 0]
        assert family.living().tolist() == [[True, True], [True, False], [True, False]]
        assert list(family.spans()) == [(0, 0, 0, 3), (0, 1, 0, 1)]

    def test_members_with_any_numbers(self):
        population = table(PARENTS, np.zeros((3, 3)))
        population["member"], population["parent"] = (
            10 * population["member"] + 5,
            10 * population["parent"] + 5,
        )
        assert family_of(population).line_of(0).tolist() == [2, 2, 0]

    def test_without_columns(self):
        assert family_of({"epoch": [], "member": []}) is None
        with pytest.raises(UserError, match="no column epoch nor member"):
            family_of({"loss": [1.0]})
        alone = family_of({"epoch": [0, 1], "member": [0, 0]})
        assert alone.blocks().tolist() == [0] and not alone.diverged.any()


class TestPaths:
    def test_lines_join_a_member_to_its_parent(self):
        values = np.array([[1.0, 2, 3], [1, 4, 3], [5, 4, 3]])
        scores = [[1, 2, 3], [1, 2, 3], [0, 2, 3]]
        axis = hyperparameter_paths(table(PARENTS, scores, values)).axes[0]
        dead, living, best = ([s.tolist() for s in c.get_segments()] for c in axis.collections)
        assert dead == [[[0, 2], [1, 2]], [[1, 1], [1, 1], [2, 1]]]
        assert best == [[[0, 3], [1, 3]], [[1, 3], [1, 3], [2, 3]], [[2, 3], [2, 5], [3, 5]]]
        assert [[0, 1], [1, 1]] in living and [[1, 1], [1, 4], [2, 4]] in living

    def test_only_what_varies_unless_named(self, population):
        fixed = {**population, "hp/weight_decay": np.zeros(len(population["epoch"]))}
        titles = [a.get_title() for a in hyperparameter_paths(fixed).axes if a.get_visible()]
        assert "lr_init" in titles and "weight_decay" not in titles and len(titles) == 7
        [axis] = hyperparameter_paths(fixed, ["model.weight_decay"]).axes
        assert axis.get_title() == "weight_decay"

    def test_scales(self, population):
        axes = {a.get_title(): a for a in hyperparameter_paths(population).axes}
        assert axes["kl_ic_scale"].get_yscale() == "log"
        assert axes["dropout_rate"].get_yscale() == axes["lr_init"].get_yscale() == "linear"

    def test_names_that_end_alike_are_written_out(self):
        population = table(PARENTS, np.arange(9.0).reshape(3, 3))
        for i in range(2):
            population[f"hp/train_aug_stack.transforms.{i}.rate"] = np.arange(9.0)
        titles = {a.get_title() for a in hyperparameter_paths(population).axes}
        assert {"lr_init", "train_aug_stack.transforms.1.rate"} <= titles


class TestScores:
    def test_the_best_final_member_and_its_forebears_stand_out(self):
        scores = np.array([[1.0, 2, 3], [1, 2, 0.5], [0.1, 2, 3]])
        figure = score_history(table(PARENTS, scores))
        [best] = [line for line in figure.axes[0].lines if line.get_color() == look().orange]
        assert best.get_ydata().tolist() == [3, 0.5, 0.1]
        [median] = [line for line in figure.axes[0].lines if line.get_label().startswith("median")]
        assert median.get_ydata().tolist() == [2, 1, 2]
        assert len(figure.axes) == 2, "scores, and who copied whom"

    def test_a_member_that_ended_early_may_be_the_best(self):
        figure = score_history(table([[0, 1], [0, 1], [0, -1]], [[3, 3], [2, 1], [1.5, 0]]))
        [best] = [line for line in figure.axes[0].lines if line.get_color() == look().orange]
        assert best.get_ydata()[:2].tolist() == [3, 1] and np.isnan(best.get_ydata()[2])
        assert len(figure.axes) == 1

    def test_a_diverged_member_is_never_the_best_and_gets_a_cross(self):
        lost = [[False, False], [False, True]]
        figure = score_history(table([[0, 1], [0, 1]], [[3, 2], [2.5, 1]], diverged=lost))
        [best] = [line for line in figure.axes[0].lines if line.get_color() == look().orange]
        assert best.get_ydata().tolist() == [3, 2.5]
        [cross] = [line for line in figure.axes[0].lines if line.get_label() == "diverged"]
        assert cross.get_xydata().tolist() == [[1, 2]]

    def test_scores_far_off_do_not_stretch_the_axis(self):
        scores = np.tile(np.linspace(2, 1, 50)[:, None], (1, 8))
        scores[25:, 0] = 1e9
        axis = score_history(table(np.tile(np.arange(8), (50, 1)), scores)).axes[0]
        assert axis.get_ylim()[1] < 2.2


class TestByValue:
    def test_last_scores_over_values(self):
        population = table([[0, 1, 2], [0, 1, -1]], [[9, 9, 0.5], [2, 1, 0]], [[1, 2, 3]] * 2)
        axis = scores_by_value(population).axes[0]
        dots, best = axis.collections
        assert dots.get_offsets().tolist() == [[1, 2], [2, 1], [3, 0.5]]
        assert best.get_offsets().tolist() == [[3, 0.5]]


@pytest.mark.parametrize("draw", FIGURES)
class TestAll:
    def test_draws(self, draw, population):
        few = {n: c for n, c in population.items() if not n.startswith(("hp/kl", "hp/l2"))}
        assert rendered(draw(few)).size

    def test_draws_data_frames(self, draw):
        pd = pytest.importorskip("pandas", reason="pandas comes with the extra tune")
        frame = pd.DataFrame(table(PARENTS, np.arange(9.0).reshape(3, 3)))
        assert rendered(draw(frame)).size

    def test_an_unknown_metric(self, draw, population):
        with pytest.raises(UserError, match=r"logged no valid/recon_smt; did you mean valid/recon"):
            draw(population, metric="valid/recon_smt")

    def test_nothing_yet(self, draw, population):
        empty = {name: column[:0] for name, column in population.items()}
        assert rendered(draw(empty)).size

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        n_epochs=st.integers(1, 4),
        n_members=st.integers(1, 3),
        score=st.sampled_from([None, np.nan, np.inf, 0.0, -1.0, 1e30]),
        value=st.sampled_from([None, 0.0, np.nan, -2.0]),
        seed=st.integers(0, 99),
    )
    def test_never_fails(self, draw, n_epochs, n_members, score, value, seed):
        rng = np.random.default_rng(seed)
        shape = (n_epochs, n_members)
        parents = rng.integers(0, n_members, shape)
        parents[0] = np.arange(n_members)
        population = table(
            parents,
            rng.normal(size=shape) if score is None else np.full(shape, score),
            rng.uniform(size=shape) if value is None else np.full(shape, value),
            rng.random(shape) < 0.3,
        )
        assert rendered(draw(population)).size


@pytest.mark.parametrize("draw", [hyperparameter_paths, scores_by_value])
def test_an_unknown_hyperparameter(draw, population):
    with pytest.raises(UserError, match="no hyper-parameter lr; "):
        draw(population, ["model.lr"])


def test_axes_follow_how_the_search_drew() -> None:
    # Two decades, drawn evenly: nothing in the values says that one was drawn in the logarithm.
    values = np.linspace(0.01, 1, 6)
    population = table([np.arange(6)], [np.arange(6.0)], [values])
    population["hp/cd_rate"] = values
    names = ["lr_init", "cd_rate"]
    space = {
        "model.lr_init": HyperParam(1e-3, 1.0),
        "cd_rate": HyperParam(0.0, 1.0, sample_fn="uniform"),
    }
    for draw in (hyperparameter_paths, scores_by_value):
        axes = [axis for axis in draw(population, names, space=space).axes if axis.get_visible()]
        kind = "get_yscale" if draw is hyperparameter_paths else "get_xscale"
        assert [getattr(axis, kind)() for axis in axes] == ["log", "linear"]
