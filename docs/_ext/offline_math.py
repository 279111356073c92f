"""Formulas as MathML, made from LaTeX while the site is built: they need no script, no network."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

# Browsers know no other styles of letters than upright: script is characters of its own.
_SCRIPT = {chr(65 + k): chr(0x1D49C + k) for k in range(26)}
_SCRIPT |= dict(B="\u212c", E="\u2130", F="\u2131", H="\u210b", I="\u2110", L="\u2112")
_SCRIPT |= dict(M="\u2133", R="\u211b")  # those that were there before the others
_STYLED = r'(?:<mi mathvariant="%s">[^<]*</mi>)'


def mathml(latex: str, display: str, where: Any) -> str:
    """Convert a formula; one that cannot be is told as a warning, which fails the build."""
    # The same by names that the converter knows.
    text = latex.strip().replace(r"\,", r"\ ").replace(r"\!", "").replace("{aligned}", "{align*}")
    try:
        return _as_browsers_know(str(convert(text, display=display)))
    except Exception as error:
        logger.warning("formula %r: %s", latex, error, location=where)
        return f"<code>{latex}</code>"


def _as_browsers_know(text: str) -> str:
    for style in ("normal", "monospace", "script"):
        run = re.compile(_STYLED % style + "+")
        text = run.sub(lambda match, style=style: _word(match[0], style), text)
    return text


def _word(letters: str, style: str) -> str:
    word = re.sub("<[^>]*>", "", letters)
    if style == "script":
        return "".join(f"<mi>{_SCRIPT.get(letter, letter)}</mi>" for letter in word)
    return f'<mtext class="code">{word}</mtext>' if style == "monospace" else f"<mi>{word}</mi>"


def inline(writer: Any, node: Any) -> None:
    """Write a formula within a line."""
    from docutils.nodes import SkipNode

    writer.body.append(mathml(node.astext(), "inline", node))
    raise SkipNode


def block(writer: Any, node: Any) -> None:
    """Write a formula of its own."""
    from docutils.nodes import SkipNode

    writer.body.append(f'<div class="math-block">{mathml(node.astext(), "block", node)}</div>\n')
    raise SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
