"""Settings of the site: Sphinx with MyST (pages in Markdown) and Furo. Build it with `make docs`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "workflow"), str(HERE)]

import generate  # noqa: E402

from millrace import __version__  # noqa: E402

project = "Millrace"
author = copyright = "The Millrace developers"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosectionlabel",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
# Parameters of several classes have one name; texts do not link to them.
# Releases have the same headings.
suppress_warnings = ["ref.python", "autosectionlabel.releases"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
autosectionlabel_prefix_document = True
# Blocks without a language are commands and listings.
highlight_language = "none"

default_role = "code"
napoleon_google_docstring = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"Millrace {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
# Formulas are the only thing that a browser fetches; pages, search and dark mode work from a folder.
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_ignore = [r"https://doi\.org/"]  # publishers refuse programs


def setup(app):
    """Write what is made from the code before pages are read."""
    app.connect("builder-inited", lambda app: generate.write(Path(app.srcdir, "generated")))
    return {"parallel_read_safe": True}
