"""The site's pages and links, as `mkdocs build --strict` checks them in CI, without mkdocs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = ROOT / "notebooks"
SITE: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def outside() -> dict[str, str]:
    """The pages from outside docs/, by where they are."""
    tree = ast.parse((DOCS / "hooks.py").read_text(encoding="utf-8"))
    values = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}
    pages: dict[str, str] = ast.literal_eval(values["PAGES"])
    return pages


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for each in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(each)


def test_every_page_is_in_the_navigation() -> None:
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    pages += [page for page in outside().values() if page.endswith(".md")]
    pages += [path.relative_to(ROOT).as_posix() for path in NOTEBOOKS.glob("*.ipynb")]
    assert sorted(leaves(SITE["nav"])) == sorted(pages)


@pytest.mark.parametrize("source", [*outside(), *(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))])
def test_links_lead_to_files_of_the_site(source: str) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / source).read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:", link)]
    for link in filter(None, links):
        target = ((ROOT / source).parent / link).resolve()
        assert target.is_file(), f"{source}: {link}"
        inside = target.is_relative_to(DOCS) or target.is_relative_to(NOTEBOOKS)
        assert inside or target.relative_to(ROOT).as_posix() in outside(), f"{source}: {link} is no page of the site"


def test_the_reference_names_modules() -> None:
    named = [name for path in (DOCS / "reference").glob("*.md") for name in re.findall(r"^::: (\S+)$", path.read_text(), flags=re.MULTILINE)]
    assert len(named) > 20
    for name in named:
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), name


def test_the_release_workflow_finds_its_version() -> None:
    """What .github/workflows/release.yml greps for in pyproject.toml and CHANGELOG.md has the form that they have."""
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert version is not None
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert 'grep --fixed-strings --line-regexp "## $version" CHANGELOG.md' in (ROOT / ".github/workflows/release.yml").read_text()
