"""Configuration of the documentation site, which `make docs` builds with Sphinx.

The pages of this folder are plain Markdown and read well without the site. What the site adds is made when it is built
and is not kept: a page for every model, the reference, pictures, and the Markdown files that lie elsewhere.
"""

import os
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from generate import outside  # noqa: E402

import jeffnet  # noqa: E402

project = "jeffnet"
version = release = jeffnet.__version__
html_title = "jeffnet"

extensions = ["myst_nb", "sphinx_copybutton", "sphinx_design"]
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

# Tutorials are run as the site is built, and fail it if they fail. `JEFFNET_DOCS_NOTEBOOKS=off` leaves results out.
nb_execution_mode = os.environ.get("JEFFNET_DOCS_NOTEBOOKS", "cache")
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 300
nb_merge_streams = True


def relink(app: Sphinx, page: str, source: list[str]) -> None:
    """Leads links to files outside this folder to their pages."""
    folder = os.path.join(HERE.name, os.path.dirname(page))
    source[0] = outside.moved(source[0], folder, folder)


def setup(app: Sphinx) -> None:
    """Makes what is not kept, and leads links to it."""
    app.connect("builder-inited", lambda _: outside.write(HERE.parent))
    app.connect("source-read", relink)
