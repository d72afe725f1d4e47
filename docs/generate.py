"""Writes the parts of the documentation that come from the code: `python -m docs.generate [--check]`.

    guides/configuration.md     every key of erllama.toml: type, default, meaning       (between two markers)
    guides/operating.md         exit codes, and the JSON of every command               (between two markers each)
    internals/messages.md       every message kind and body               (between two markers each)
    reference/cli.md            every command with its options
    reference/errors.md         every error code
    reference/client.md         the Python client, from its docstrings
    internals/a-prompts-life.md the line numbers in its links into the code

A test runs it with `--check`: the pages in the repository are what the code says.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from docs.generators import client_page, command_pages, configuration_table, error_table, message_tables
from docs.generators.line_links import with_line_numbers

HERE = Path(__file__).parent

PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": command_pages.commands,
    "reference/errors.md": error_table.page,
    "reference/client.md": client_page.page,
}
PARTS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("guides/configuration.md", "keys", configuration_table.tables),
    ("guides/operating.md", "exit-codes", command_pages.exit_codes),
    ("guides/operating.md", "json", command_pages.json_shapes),
    ("internals/messages.md", "kinds", message_tables.kinds),
    ("internals/messages.md", "bodies", message_tables.bodies),
)


def generated() -> dict[Path, str]:
    """Every page that has generated text, as it should be."""
    found = {HERE / name: make() for name, make in PAGES.items()}
    for name, marker, make in PARTS:
        path = HERE / name
        found[path] = replace_part(found.get(path) or path.read_text(encoding="utf-8"), marker, make())
    walk = HERE / "internals/a-prompts-life.md"
    found[walk] = with_line_numbers(walk.read_text(encoding="utf-8"))
    return found


def replace_part(page: str, marker: str, text: str) -> str:
    """`page` with `text` between its markers.

    Raises:
        ValueError: the page has no such markers.
    """
    begin, end = f"<!-- begin {marker} -->", f"<!-- end {marker} -->"
    head, found_begin, rest = page.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"the markers {begin} and {end} are missing")
    return f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}"


def main() -> int:
    """Write, or with `--check` tell what would change."""
    pages = generated()
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{'stale' if '--check' in sys.argv else 'written'}: {path.relative_to(HERE.parent)}")
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages[path], encoding="utf-8")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
