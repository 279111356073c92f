"""Settings of the documentation site; `make docs` builds it into docs/_build/html, offline."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import lfads_torch  # noqa: E402

project = "lfads-torch"
author = "The lfads-torch contributors"
copyright = author
version = release = lfads_torch.__version__

extensions = [
    "myst_nb",
    "sphinx_copybutton",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "offline_math",
]
exclude_patterns = ["_build", "_ext"]

# The notebooks are executed when the site is built; what has not changed since is kept. The code
# of the other pages is executed by tests/docs.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 600
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc says the types, with shapes
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"lfads-torch {version.partition('+')[0]}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"
pygments_style = "default"
pygments_dark_style = "github-dark"


def _keep_names(app, what, name, obj, options, lines):
    """Write attributes as reST takes them: `model_` is no reference, and `a, b` are two."""
    shown = []
    for line in lines:
        field = re.match(r":(ivar|vartype) ([\w, ]+):(.*)", line)
        names = field[2].split(", ") if field else []
        shown += [f":{field[1]} {name.replace('_', chr(92) + '_')}:{field[3]}" for name in names]
        shown += [] if field else [line]
    lines[:] = shown


def setup(app):
    app.connect("autodoc-process-docstring", _keep_names, priority=900)  # after napoleon
