"""The pages' Python runs, and so do the docstrings' examples."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import shmcache
from shmcache import recipes

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs" / "recipes").glob("*.md"))
MODULES = [module.name for module in pkgutil.iter_modules(recipes.__path__)]


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch, new_name: Any) -> None:
    """Caches of the examples get names of this run, so that runs do not meet."""
    names: dict[str, str] = {}
    init = shmcache.Cache.__init__

    def open_cache(self: Any, name: str, **arguments: Any) -> None:
        init(self, names.setdefault(name, names.get(name) or new_name()), **arguments)

    monkeypatch.setattr(shmcache.Cache, "__init__", open_cache)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page: Path) -> None:
    """All blocks of a page are one program."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks, f"{page.name} has no example"
    exec(compile("\n".join(blocks), str(page), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_docstring_run(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"shmcache.recipes.{name}"))
    assert not failed
    assert tried or name.startswith("_"), "a recipe shows an example"


def test_every_recipe_has_its_page() -> None:
    recipe_modules = {name for name in MODULES if not name.startswith("_")}
    assert recipe_modules == {page.stem for page in PAGES} - {"README", "patterns"}
