"""HTML pages that need nothing but themselves: figures embedded, for light and for dark."""

from __future__ import annotations

import base64
import io
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ...errors import WriteError
from ...files import save_figure
from ...version import read_version
from ..plots.style import LOOKS, paper

DPI = 144
"""Two pixels for a point of the screen at the width at which figures are shown."""
_SEEN, _SHARE_SEEN = 8, 0.02  # difference of a channel of 255 that the eye may see
FORMATS = ("png", "pdf", "svg")


class Picture(NamedTuple):
    """A figure before it is drawn; `key` is its short name for files and anchors."""

    key: str
    title: str
    caption: str
    draw: Callable[[], Figure]


class Shown(NamedTuple):
    """A picture on a page."""

    key: str
    title: str
    caption: str
    # Data address of a PNG for each paper; empty where drawing failed
    images: Mapping[str, str]
    # Why drawing failed
    failure: str = ""
    # In pixels of the page
    width: int = 0


class Press:
    """Draws pictures for a page, and into files of a folder where one is given."""

    def __init__(
        self,
        folder: Path | None = None,
        file_format: str = "png",
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder, self.file_format, self.tell = folder, file_format, tell
        self.files: list[Path] = []

    def show(self, picture: Picture, prefix: str = "") -> Shown:
        """Draw a picture on every paper; one that fails leaves a note in its place."""
        self.tell(picture.title)
        images, width = {}, 0
        try:
            for name in LOOKS:
                with paper(name):
                    figure = picture.draw()
                images[name] = _data_address(figure)
                width = round(96 * float(figure.get_figwidth()))
                if name == "light" and self.folder is not None:
                    # A session's name comes from a file, and may hold what leads elsewhere.
                    stem = re.sub(r"[^\w.+-]", "_", prefix) + picture.key
                    path = self.folder / f"{stem}.{self.file_format}"
                    figure.set_layout_engine("none")  # it has been laid out for the page
                    save_figure(figure, path, dpi=2 * DPI)
                    self.files.append(path)
        except WriteError:
            raise
        except Exception as error:  # the rest of a report is worth having without one figure
            why = f"{type(error).__name__}: {error}"
            return Shown(*picture[:3], {}, failure=why)
        return Shown(*picture[:3], images, width=width)


def _data_address(figure: Any) -> str:
    """Return the figure as PNG, of 256 colours where that looks the same: a third of the size."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    image = Image.open(buffer).convert("RGB")
    # Lines and text have few colours, maps of rates have many: tried, and kept where at most 2 % of
    # the pixels differ visibly.
    few = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    error = np.abs(np.asarray(few.convert("RGB"), np.int16) - np.asarray(image, np.int16))
    if (error.max(axis=-1) > _SEEN).mean() < _SHARE_SEEN:
        image = few
    small = io.BytesIO()
    image.save(small, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode("ascii")


def render(template: str, **content: Any) -> str:
    """Fill in a file of ``templates/``; return HTML in which text from outside is escaped."""
    environment = Environment(
        loader=PackageLoader(__package__ or "lfads_torch.post_run.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, interval=interval)
    written = time.strftime("%Y-%m-%d %H:%M")
    made = {"looks": LOOKS, "written": written, "version": read_version().version}
    page = environment.get_template(template).render(**made, **content)
    return page.encode(errors="backslashreplace").decode()  # names of files need be no text


def number(value: float | None, digits: int = 3) -> str:
    """Write a score for people; a dash where it is missing. Minus signs are minus signs."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    text = f"{value:.{digits}f}"
    if float(text) == 0:  # no minus zero
        text = text.removeprefix("-")
    return text.replace("-", "\u2212")


def interval(estimate: Mapping[str, float | None]) -> Markup:
    """Write the ends of an interval, nothing where it is not known."""
    low, high = estimate.get("low"), estimate.get("high")
    if low is None or high is None:
        return Markup("")
    return Markup("{} to {}").format(number(low), number(high))
