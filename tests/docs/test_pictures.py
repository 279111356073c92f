"""The pictures of the how-to pages are drawn by code, and stand on their pages."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))

import pictures  # noqa: E402

#: How-to pages whose subject is a command line or a list, with nothing to see.
WITHOUT = {"accuracy", "clusters", "export", "old_runs", "extending", "moving"}


@pytest.mark.parametrize("page", pictures.PICTURES)
def test_a_picture_is_drawn_and_on_its_page(page: str, tmp_path: Path) -> None:
    draw = pictures.PICTURES[page]
    draw().savefig(tmp_path / "drawn.png", dpi=80)
    committed = pictures.IMAGES / f"{draw.__name__}.png"
    assert f"(images/{draw.__name__}.png)" in (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert committed.stat().st_size < 150_000
    # Fonts and versions of Matplotlib move single pixels; the picture is of the same size.
    drawn, kept = imread(tmp_path / "drawn.png"), imread(committed)
    for one, two in zip(drawn.shape[:2], kept.shape[:2], strict=True):
        assert abs(one - two) <= 0.05 * two


def test_every_how_to_has_a_picture() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    [listed] = re.findall(r":caption: How to\n:hidden:\n\n(.*?)```", index, re.DOTALL)
    pages = {page for page in listed.split() if "/" not in page}
    for page in pages - WITHOUT:
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        assert "![" in text or "{code-cell}" in text, f"docs/{page}.md shows nothing"
    for path in re.findall(r"!\[[^]]*\]\((images/[^)]+)\)", index):
        assert (ROOT / "docs" / path).is_file()
