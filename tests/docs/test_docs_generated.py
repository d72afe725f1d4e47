"""What the documentation says of the code is what the code says."""

import pytest
import typer

from docs import generate, site
from docs.generators import command_pages, configuration_table
from docs.generators.client_page import prose
from erllama_host.cli.main import make_app

GENERATED = generate.generated()


@pytest.mark.parametrize("path", sorted(GENERATED), ids=lambda path: path.name)
def test_a_generated_page_is_up_to_date(path):
    assert path.read_text(encoding="utf-8") == GENERATED[path], "run: python -m docs.generate"


def test_every_command_with_json_is_documented():
    root = typer.main.get_command(make_app())
    with_json = set()
    for words, _ in command_pages.every_command():
        command = root
        for word in words:
            command = command.commands[word]
        if any("--json" in parameter.opts for parameter in command.params):
            with_json.add(" ".join(words))
    assert with_json == set(command_pages.JSON)


def test_every_key_of_the_configuration_has_a_meaning():
    for _, section in configuration_table.SECTIONS:
        meanings = configuration_table.meanings_of(section)
        assert all(len(meaning) > 3 for meaning in meanings.values())


def test_a_part_needs_its_markers():
    with pytest.raises(ValueError, match="begin keys"):
        generate.replace_part("no markers", "keys", "text")
    page = "before\n<!-- begin keys -->\nold\n<!-- end keys -->\nafter"
    assert (
        generate.replace_part(page, "keys", "new") == "before\n<!-- begin keys -->\n\nnew\n\n<!-- end keys -->\nafter"
    )


def test_sections_of_docstrings_become_lists():
    text = prose("Do it.\n\nArgs:\n    path: the file. scale: how\n        much.\nRaises:\n    QueueFull: too much.\n")
    assert "- `path`: the file.\n- `scale`: how much." in text
    assert "**Raises**\n\n- `QueueFull`: too much." in text


def test_links_into_the_code_become_places():
    text = "see [`f`](../../workers/a.py#L7) and [cache](../guides/caching.md)"
    assert site.on_page_markdown(text) == "see `f` (workers/a.py:7) and [cache](../guides/caching.md)"


def test_the_navigation_has_every_page_once():
    folder = generate.HERE
    entries = site.navigation(folder)
    listed = [
        page for entry in entries for page in (next(iter(entry.values())) if isinstance(entry, dict) else [entry])
    ]
    assert sorted(listed) == sorted(str(path.relative_to(folder)) for path in folder.rglob("*.md"))
    assert listed[0] == "index.md"
    assert listed.index("guides/quickstart.md") < listed.index("guides/adapters.md") < listed.index("reference/cli.md")
