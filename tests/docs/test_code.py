"""Every block of code in the documentation is executed, or says why not."""

from __future__ import annotations

import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from markdown_it import MarkdownIt

from lfads_torch.data import write_session
from lfads_torch.data.synthetic import lorenz
from tests.docs.pages import EXECUTED, NO_CODE, PAGES, Block, blocks, check_only, commands, execute

TAKEOVER = Path(__file__).parents[1] / "takeover" / "files"

ALL = {page: blocks(page) for page in PAGES}
RUN = {
    page: [b for b in page_blocks if not b.not_run and b.language in EXECUTED]
    for page, page_blocks in ALL.items()
}
NOT_RUN = [block for page_blocks in ALL.values() for block in page_blocks if block.not_run]


def write_my_data(folder: Path) -> None:
    """A file of one's own, small."""
    write_session(folder / "my_data.h5", lorenz(6, 10, 8, 20, 0.4), {"bin_ms": 20.0})


def write_sessions(folder: Path) -> None:
    """Three days with the same targets and other units."""
    (folder / "sessions").mkdir()
    for day, n_units in enumerate((8, 6, 7)):
        data = lorenz(6, 10, 8, 20, 0.6)
        for key in [key for key in data if key.endswith(("_encod_data", "_recon_data", "_truth"))]:
            data[key] = data[key][..., :n_units]
        for split in ("train", "valid"):
            data[f"{split}_target"] = data.pop(f"{split}_cond_idx")
        write_session(folder / "sessions" / f"day{day}.h5", data, {"bin_ms": 20.0})


def write_old_run(folder: Path) -> None:
    """A run folder of the existing implementation."""
    shutil.copytree(TAKEOVER / "run_reach", folder / "old_run")


def write_old_lab(folder: Path) -> None:
    """Configurations, checkpoints and data that go with it."""
    shutil.copytree(TAKEOVER / "lab" / "configs", folder / "configs")
    for name, source in (("gaussian", "gaussian"), ("zig", "zig_list")):
        shutil.copy(TAKEOVER / "checkpoints" / f"{source}.ckpt", folder / f"{name}.ckpt")
    (folder / "configs" / "model" / "gaussian.yaml").write_text(
        "reconstruction:\n  - _target_: lfads_torch.modules.recons.Gaussian\n"
    )
    (folder / "datasets").mkdir()
    for source, path in (("run_reach", "datasets/reach.h5"), ("gaussian", "wide.h5")):
        with np.load(TAKEOVER / "means" / f"{source}.npz") as file:
            arrays = {key: file[f"input/0/{key}"] for key in ("encod_data", "recon_data")}
        splits = ("train", "valid")
        trials = {f"{split}_{key}": value for key, value in arrays.items() for split in splits}
        write_session(folder / path, trials)


STARTS = {
    "README.md": [write_old_run],
    "docs/continuous.md": [],
    "docs/data.md": [],
    "docs/old_runs.md": [write_old_run, write_old_lab],
    "docs/sessions.md": [write_sessions],
}
"""What lies in the folder where a page begins, where that is not `write_my_data`."""

LEAVES = {
    "README.md": ["runs/first/lfads_output_my_data.h5", "new_rates.h5"],
    "docs/data.md": ["chopped.h5"],
    "docs/continuous.md": ["merged.png", "chopped_merged.h5"],
    "docs/extending.md": ["runs/figure/figures/mean_rates.png", "runs/silent/status.json"],
}
"""What a page promises to write."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what commands change for their process is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr("warnings.showwarning", warnings.showwarning)
    levels = {n: logging.getLogger(n).level for n in ("pytorch_lightning", "lightning_fabric")}
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    plt.close("all")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page, page_blocks in RUN.items() if page_blocks])
def test_a_page_runs_from_top_to_bottom(page: str, folder: Path) -> None:
    for write in STARTS.get(page, [write_my_data]):
        write(folder)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in RUN[page]:
        np.random.seed(0)
        execute(block, names)
    missing = [name for name in LEAVES.get(page, []) if not (folder / name).is_file()]
    assert not missing


@pytest.mark.parametrize("block", NOT_RUN, ids=str)
def test_what_is_not_run_could_be(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(block.not_run or "") > 5, f"{block} does not say why"
    check_only(block)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    unknown = [str(b) for b in ALL[page] if b.language not in (*EXECUTED, *NO_CODE)]
    assert not unknown, f"name the language: {', '.join((*EXECUTED, *NO_CODE))}"
    loose = [str(b) for b in RUN[page] if b.language == "yaml" and not b.file]
    assert not loose, "begin with `# path/of/the/file.yaml`, or say `not run: why`"
    stray = [str(b) for b in ALL[page] if b.not_run and b.language not in EXECUTED]
    assert not stray, "only code can be left unexecuted"


@pytest.mark.parametrize("page", PAGES)
def test_no_code_hides_without_fences(page: str) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(PAGES[page].read_text("utf-8"))
    hidden = [token.content for token in tokens if token.type == "code_block"]
    assert not hidden, "put it between ``` lines"


def test_the_mechanism_sees_what_there_is() -> None:
    assert sum(map(len, RUN.values())) > 30
    # a parser that loses blocks would make every test above pass
    n_fences = sum(path.read_text("utf-8").count("\n```") for name, path in PAGES.items())
    texts = [path.read_text("utf-8") for path in PAGES.values()]
    n_directives = sum(text.count("\n```{") - text.count("\n```{code-cell}") for text in texts)
    starts = sum(path.read_text("utf-8").startswith("```") for path in PAGES.values())
    assert sum(map(len, ALL.values())) == (n_fences + starts) // 2 - n_directives - starts
    assert list(commands("a b \\\n  c  # d\n\ne 'f g'")) == [["a", "b", "c"], ["e", "f g"]]
