"""MkDocs hooks: the rooms' READMEs are pages of the site, and links to them lead there."""
# ruff: noqa: INP001 - a script of MkDocs, not a package

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOMS = ("server", "client_sdk", "model", "privacy", "delta_updates", "docker")
# Where a page of the site comes from in the repository.
SOURCES = {f"rooms/{room}.md": f"{room}/README.md" for room in ROOMS}
PAGES = {source: page for page, source in SOURCES.items()}
_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the READMEs, which lie outside of docs/."""
    repository = Path(config.config_file_path).parent
    for page, source in SOURCES.items():
        files.append(File.generated(config, page, content=(repository / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Point links between files of the repository at the pages made from them."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        there = PAGES.get(target, target.removeprefix("docs/"))
        if there == target:
            return link[0]
        return link[1] + posixpath.relpath(there, posixpath.dirname(here) or ".") + link[3]

    return _LINK.sub(moved, markdown)
