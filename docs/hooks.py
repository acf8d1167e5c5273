"""The site's pages that lie outside docs/: README.md as its start, CHANGELOG.md and CONTRIBUTING.md; LICENSE, to which they link; the notebooks."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "LICENSE": "LICENSE"}


NOTEBOOKS = "notebooks"


@event_priority(100)  # before the plugin that makes pages of notebooks looks for them
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, their links as they are from docs/."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        text = (root / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=re.sub(r"\]\(([^)]+)\)", _link, text)))
    for path in sorted((root / NOTEBOOKS).glob("*.ipynb")):
        files.append(File(f"{NOTEBOOKS}/{path.name}", str(root), config.site_dir, config.use_directory_urls))
    return files


def _link(found: re.Match[str]) -> str:
    target = found[1].removeprefix("docs/")
    return f"]({PAGES.get(target, target)})"
