"""What mkdocs does besides mkdocs.yml: pages that the navigation does not name, and links that leave docs/."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def named(nav: Any) -> set[str]:
    """The pages that a navigation names."""
    if isinstance(nav, str):
        return {nav}
    return set().union(*map(named, nav.values() if isinstance(nav, dict) else nav))


def on_config(config: Any) -> Any:
    """Append the pages that nobody has put in a place to the guides."""
    docs = Path(config.docs_dir)
    pages = {page.relative_to(docs).as_posix() for page in docs.glob("**/*.md")}
    guides = next(section["How-to guides"] for section in config.nav if "How-to guides" in section)
    guides.extend(sorted(pages - named(config.nav)))
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link to a file of the repository that is no page keeps its text and loses its target."""
    folder = posixpath.dirname(page.file.src_uri)

    def inside(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[3]))
        return match[2] if target.startswith("..") and not match[1] else match[0]

    return LINK.sub(inside, markdown)
