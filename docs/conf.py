"""Configuration of the documentation site, which `make docs` builds with Sphinx.

The pages of this folder are plain Markdown and read well without the site. What the site adds is made when it is built
and is not kept: a page for every model, the reference, pictures, and the Markdown files that lie elsewhere.
"""

import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from generate import models, outside, reference  # noqa: E402

import jeffnet  # noqa: E402

project = "jeffnet"
version = release = jeffnet.__version__
html_title = "jeffnet"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["generate"]
language = "en"

# Furo has one tree of pages beside the text, a dark mode, and menus for phones; it adds no scripts but its own.
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
pygments_style = "tango"
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"

myst_enable_extensions = ["colon_fence", "deflist"]
# Links to headings, as code hosts make them.
myst_heading_anchors = 4

# The reference is made of docstrings as they are at run time, since options are joined to them there.
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# Tutorials are run as the site is built, and fail it if they fail. `JEFFNET_DOCS_NOTEBOOKS=off` leaves results out.
# They show no half-drawn bars, and find the command.
os.environ["TQDM_DISABLE"] = "1"
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
nb_execution_mode = os.environ.get("JEFFNET_DOCS_NOTEBOOKS", "cache")
# The language of cells is known from running them.
suppress_warnings = ["myst-nb.lexer"] if nb_execution_mode == "off" else []
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_merge_streams = True


def relink(app: Sphinx, page: str, source: list[str]) -> None:
    """Leads links to files outside this folder to their pages."""
    folder = os.path.join(HERE.name, os.path.dirname(page))
    source[0] = outside.moved(source[0], folder, folder)
    if page == "models":
        source[0] = models.linked(source[0])


def write_pages(app: Sphinx) -> None:
    """Makes the pages that are not kept."""
    outside.write(HERE.parent)
    reference.write(HERE)
    models.write(HERE.parent)


def mark_up(app: Sphinx, kind: str, name: str, symbol: object, options: object, lines: list[str]) -> None:
    """Translates a docstring."""
    lines[:] = reference.restructured(lines)


def shorten(
    app: Sphinx, kind: str, name: str, symbol: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Shows defaults that are classes, such as dtypes, by their names."""
    return signature and re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", signature), returns


def setup(app: Sphinx) -> None:
    """Makes pages, leads links to them and translates docstrings."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", relink)
    app.connect("autodoc-process-signature", shorten)
    # Before napoleon.
    app.connect("autodoc-process-docstring", mark_up, priority=400)
