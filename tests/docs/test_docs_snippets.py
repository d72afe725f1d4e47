"""Every Python snippet of the guides runs, in the order of its page, against one real host with a stub model.

A page's snippets share their names. The first line of a snippet may say `# not run: <why>`.
"""

import re
from pathlib import Path

import pytest

from tests.support.ggufs import smollm2_lora
from tests.support.hosts import running_host

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs" / "guides").glob("*.md")), ROOT / "README.md"]
_FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"# not run: \w+")

CONFIG = """
[models.tiny]
backend = "stub"
n_ctx = 4096
"""


def snippets(page):
    """Line and text of every snippet that runs."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        if not _NOT_RUN.match(match[1]):
            yield text.count("\n", 0, match.start()) + 2, match[1]


@pytest.fixture(scope="module")
def host():
    with running_host(CONFIG) as running:
        yield running


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_run(page, host, tmp_path, monkeypatch, capsys):
    for name, value in host.paths.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora.gguf").symlink_to(smollm2_lora())
    names = {"__name__": "__main__"}
    for line, text in snippets(page):
        code = compile("\n" * (line - 1) + text, str(page), "exec")
        exec(code, names)


def test_enough_is_run():
    assert sum(1 for page in PAGES for _ in snippets(page)) >= 15
