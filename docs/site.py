"""Hooks of mkdocs. Navigation: the guides in the order in which one reads them, everything else by name. Links into the code, which
is not part of the site, become the place's name.
"""

import re
from pathlib import Path
from typing import Any

GUIDES = (
    "quickstart",
    "loading-models",
    "generating",
    "sessions-and-chat",
    "caching",
    "adapters",
    "embeddings",
    "operating",
    "configuration",
    "remote-access",
    "testing-with-the-stub",
)
_CODE_LINK = re.compile(r"\[(`[^`]+`)\]\((?:\.\./)+([\w/.-]+\.(?:py|mjs|ini|toml))(?:#L(\d+))?\)")
SECTIONS = ("guides", "reference", "internals")


def on_config(config: Any) -> Any:
    """Called by mkdocs once, before it looks for pages."""
    config.nav = navigation(Path(config.docs_dir))
    return config


def on_page_markdown(markdown: str, **_context: Any) -> str:
    """Called by mkdocs for every page: "[`name`](../../path.py#L7)" becomes "`name` (path.py:7)"."""
    return _CODE_LINK.sub(lambda link: f"{link[1]} ({link[2]}{':' + link[3] if link[3] else ''})", markdown)


def navigation(folder: Path) -> list[Any]:
    """Every page below `folder`, once."""
    pages = sorted(path.relative_to(folder) for path in folder.rglob("*.md"))
    sections: dict[str, list[str]] = {}
    for page in sorted(pages, key=_rank):
        section = page.parts[0].capitalize() if len(page.parts) > 1 else ""
        sections.setdefault(section, []).append(str(page))
    top = sections.pop("", [])
    return [*top, *({section: found} for section, found in sections.items())]


def _rank(page: Path) -> tuple[int, int, str]:
    """index.md first, then guides in their order, then the rest by name."""
    if page.name == "index.md":
        return (0, 0, "")
    order = GUIDES.index(page.stem) if page.parts[0] == "guides" and page.stem in GUIDES else len(GUIDES)
    section = SECTIONS.index(page.parts[0]) if page.parts[0] in SECTIONS else len(SECTIONS)
    return (1 + section, order, str(page))
