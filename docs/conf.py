"""Configuration of Sphinx."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import hibiost

HERE = Path(__file__).parent
shutil.copytree(HERE.parent / "tutorials", HERE / "tutorials", dirs_exist_ok=True)

project = "hibiost"
author = "hibiost developers"
copyright = "2026, hibiost developers"
version = release = hibiost.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "speed"]  # docs/speed/*.md are parts of speed.md
html_theme = "sphinx_book_theme"
html_title = "hibiost"

nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# the reference follows `__all__` of each namespace, also for what private modules define
autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "RNG": "RNG"}
napoleon_google_docstring = False

# what is ours must exist; what is not is linked where the inventories can be reached
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!hibiost\.).*"),
    ("py:class", r"hibiost\..*\.T"),
    # typed by, not documented
    ("py:class", r"hibiost\.(get\.Trained|spatial\.clusters\.Clusters|model\.inference\.\w+|_ranks\.Ranks)"),
]
if os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
intersphinx_mapping = {
    "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
    "matplotlib": ("https://matplotlib.org/stable/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "pandas": ("https://pandas.pydata.org/docs/", None),
    "python": ("https://docs.python.org/3/", None),
    "scipy": ("https://docs.scipy.org/doc/scipy/", None),
    "torch": ("https://docs.pytorch.org/docs/stable/", None),
}
