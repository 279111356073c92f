"""The documentation builds into a site, offline, without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lfads_torch import _PUBLIC as PUBLIC
from lfads_torch.commands import COMMANDS
from tests.docs.pages import PAGES, ROOT

NO_NETWORK = """
import socket, sys
def refuse(*_):
    raise OSError("the site is built without network")
socket.socket.connect = refuse
from sphinx.cmd.build import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # `test_code` executes the notebooks with less training, `make docs` as they are.
    options = [
        "-D",
        "nb_execution_mode=off",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-d",
        str(folder / "doctrees"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, *options, "docs", str(folder / "html")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "html"


def test_every_page_is_there_and_can_be_reached(site: Path) -> None:
    linked = (site / "index.html").read_text("utf-8") + (site / "api/index.html").read_text("utf-8")
    for name in PAGES:
        if name.startswith("docs/") and name != "docs/index.md":
            page = name.removeprefix("docs/").replace(".md", ".html")
            assert (site / page).is_file()
            assert f'href="{page.removeprefix("api/")}"' in linked or f'href="{page}"' in linked, (
                page
            )


def test_pages_need_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r'<(?:script|img|iframe)[^>]*src="(https?:)?//|<link[^>]*href="https?://')
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        addresses = [m[0] for m in loaded.finditer(text) if 'rel="canonical"' not in m[0]]
        assert not addresses, f"{page.name}: {addresses}"


def test_formulas_are_formulas(site: Path) -> None:
    text = (site / "model.html").read_text("utf-8")
    assert text.count("<math") > 100
    assert "mathvariant" not in text  # which browsers no longer follow
    assert "\\frac" not in text and "\\text" not in text
    assert "<mi>&" not in text.replace("<mi>&#", "")  # columns that were not understood


def test_the_api_has_every_public_name(site: Path) -> None:
    text = "".join(page.read_text("utf-8") for page in (site / "api").glob("*.html"))
    missing = [name for name in PUBLIC if not re.search(rf'id="lfads_torch[\w.]*\.{name}"', text)]
    assert not missing


def test_every_command_is_spoken_of() -> None:
    text = "".join(p.read_text("utf-8") for n, p in PAGES.items() if n.startswith("docs/"))
    missing = [command for command in COMMANDS if f"lfads {command}" not in text]
    assert not missing


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = PAGES[name]
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [
        link
        for link in links
        if not link.startswith(("http", "mailto:")) and not (page.parent / link).exists()
    ]
    assert not missing, f"{name}: {missing}"
