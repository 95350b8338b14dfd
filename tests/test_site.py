"""The documentation site's sources: every page is in a table of contents, and links lead somewhere. Needs no Sphinx."""

import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest

from jeffnet.arch import zoo
from jeffnet.arch.model import Model
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec

pytestmark = pytest.mark.users

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if "generated" not in path.parts}


def _module(name):
    """A file of `docs/generate`, which is no package of the library."""
    path = DOCS / "generate" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"generate_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _contents(texts):
    """Pages that tables of contents list, by the page of the table, as paths from `docs/`."""
    for page, text in texts.items():
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            for line in filter(None, (line.strip() for line in block.splitlines() if not line.startswith(":"))):
                name = re.sub(r"^.*<(.*)>$", r"\1", line)
                yield os.path.normpath(os.path.join(os.path.dirname(page), f"{name}.md"))


def test_every_page_is_in_one_table_of_contents():
    listed = list(_contents({page: (DOCS / page).read_text(encoding="utf-8") for page in PAGES}))
    assert len(listed) == len(set(listed))
    assert {page for page in listed if not page.startswith("generated/")} == PAGES - {"index.md"}
    assert {f"docs/{page}" for page in listed} >= set(_module("outside").PAGES.values())


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_of_pages_lead_to_files(page):
    """Headings are checked with the README's."""
    folder = (DOCS / page).parent
    links = re.findall(r"\]\((?!\w+:|#)([^)#]+)", (DOCS / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (folder / link).exists()] == []


def test_contents_are_found():
    page = "# Title\n\n```{toctree}\n:caption: Start\n\nfirst\nName <../other>\n```\n"
    assert list(_contents({"folder/index.md": page})) == ["folder/first.md", "other.md"]


def test_links_to_files_outside_lead_to_their_pages():
    outside = _module("outside")
    text = "[a](../CHANGELOG.md#added) [b](models.md#x) [c](#d) [e](https://x.org/f.md) [g](../benchmarks/h.py)"
    assert outside.moved(text, "docs", "docs") == text.replace("../CHANGELOG.md", "generated/changelog.md")
    assert outside.moved("[a](docs/python.md)", "", "docs/generated") == "[a](../python.md)"
    for source in outside.PAGES:
        assert (DOCS.parent / source).exists()


def test_the_tabs_of_the_quick_start_compute_the_same(monkeypatch):
    stages = tuple((f"cn_r1_k1_s{stride}_c8",) for stride in (1, 2, 2, 2, 2))
    model = Model(ModelSpec(stages=stages, stem=8, features=64), Preprocessing(32, 1.0))
    monkeypatch.setitem(zoo.MODELS, "mobilenetv3_small_100", model)
    text = (DOCS / "quick_start.md").read_text(encoding="utf-8")
    tabs = re.findall(r"^:::\{tab-item\} (\w+)\n```python\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    results = {}
    for tab, code in tabs:
        scope = {}
        exec(compile(code.replace("224, 224", "32, 32"), f"docs/quick_start.md, {tab}", "exec"), scope)
        results[tab] = [scope["logits"], *scope["maps"]]
    assert [*results] == ["Linen", "NNX", "Objax", "Functions"] and len(results["Linen"]) == 4
    for tab in results:
        for ours, linen in zip(results[tab], results["Linen"], strict=True):
            np.testing.assert_allclose(ours, linen, rtol=1e-5, atol=1e-5)
