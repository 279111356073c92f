"""A run reads and checks each of its files once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lfads_torch.data import write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.modules.recons import Reconstruction
from lfads_torch.run_model import run_model

K = 4
SMALL: dict[str, Any] = {
    "trainer": {"max_epochs": 2, "enable_progress_bar": False, "accelerator": "cpu"},
    "model": {
        **dict.fromkeys(("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim"), 5),
        **{"fac_dim": K, "co_dim": 1},
    },
    "datamodule": {"batch_size": 16},
    "callbacks": {"raster_plot": None, "trajectory_plot": None},
    "posterior_sampling.fn.num_samples": 1,
}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Counts(Counter[str]):
    """How often a run opens, reads, checks and passes its files, by what it does.

    `passes` is in units of all entries of all files.
    """

    n_entries = 0

    @property
    def passes(self) -> float:
        return self["entries"] / self.n_entries

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Count calls by name wherever a module of the package holds the function."""
        import lfads_torch.post_run.analysis  # noqa: F401 (holds functions that are counted)

        for module in [m for n, m in sys.modules.items() if n.startswith("lfads_torch.")]:
            for name in ("read_session", "find_problems", "blocks"):
                function = vars(module).get(name)
                if callable(function):
                    patch.setattr(module, name, self._counted(name, function))
        patch.setattr(h5py, "File", self._opened(h5py.File))
        check = Reconstruction.check_data
        patch.setattr(Reconstruction, "check_data", self._counted("check_data", check, at=1))

    def _counted(self, name: str, function: Any, at: int = 0) -> Any:
        def count(*args: Any, **kwargs: Any) -> Any:
            self[name] += 1
            if name == "check_data":
                self["checked"] += args[at].numel()
            if name == "blocks" and np.ndim(args[0]) == 3:
                self["entries"] += int(np.prod(args[0].shape))
            return function(*args, **kwargs)

        return count

    def _opened(self, file: Any) -> Any:
        counts = self

        class File(file):  # type: ignore[misc]
            def __init__(self, name: Any, mode: str = "r", **options: Any) -> None:
                counts["open"] += mode == "r" and "day" in Path(str(name)).name
                super().__init__(name, mode, **options)

        return File


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counts]:
    counted = Counts()
    counted.watch(monkeypatch)
    yield counted


def write(folder: Path, n_sessions: int) -> int:
    """Write sessions with read-in maps; return the number of entries of encod_ and recon_data."""
    folder.mkdir()
    rng, n = np.random.default_rng(0), 0
    for s in range(n_sessions):
        found = lorenz(4, 15, 21, 7, 1.0, seed=s)
        data = {k: v for k, v in found.items() if k.endswith("_data")}
        n += sum(v.size for v in data.values())
        maps = {"readin_weight": rng.normal(size=(21, K)), "readout_bias": np.full(21, 0.5)}
        write_session(folder / f"day{s}.h5", {**data, **maps})
    return n


@pytest.mark.parametrize("max_memory_gb", [None, 0], ids=["in memory", "streamed"])
@pytest.mark.parametrize("n_sessions", [1, 2])
def test_a_run_reads_and_checks_each_file_once(
    tmp_path: Path, counts: Counts, n_sessions: int, max_memory_gb: float | None
) -> None:
    counts.n_entries = write(tmp_path / "data", n_sessions)
    counts.clear()
    run_model(
        {
            **{k: v for k, v in SMALL.items() if k != "model"},
            "datamodule.datafile_pattern": str(tmp_path / "data" / "day*.h5"),
            "datamodule.max_memory_gb": max_memory_gb,
            **({"model": "multisession_aligned"} if n_sessions > 1 else {}),
            **{f"model.{name}": value for name, value in SMALL["model"].items()},
        },
        config_path="multi.yaml" if n_sessions > 1 else "single.yaml",
        run_dir=tmp_path / "run",
    )
    assert counts["read_session"] == n_sessions
    assert counts["find_problems"] == n_sessions
    # A look at the files, at their memory, and the reading itself.
    assert counts["open"] == 3 * n_sessions
    # recon_data, of train and valid, are half of all entries: the likelihood sees them once.
    assert counts["checked"] == counts.n_entries / 2
    # One survey, the search for the same numbers in both arrays, and one for overlapping windows;
    # the likelihood's look at a stream, and two passes over train for the first read-outs.
    passes = 2.0 + 0.5 * (max_memory_gb == 0) + 0.8 * (n_sessions > 1)
    assert counts.passes <= passes + 0.1
