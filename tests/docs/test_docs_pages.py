"""Links, commands, options and settings that the pages mention exist; the site builds without a warning."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from erllama_host.cli.main import make_app
from erllama_host.config import parse_config
from erllama_host.controller.deaths import EVENT_OF_END
from erllama_host.kv.reuse import MissReason

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "deploy").glob("*.md")]
)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def names(path):
    return str(path.relative_to(ROOT))


def fences(path, language):
    return [body for found, body in _FENCE.findall(path.read_text(encoding="utf-8")) if found == language]


def anchors(path):
    """Anchors of a page, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_somewhere(page):
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in _LINK.findall(text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_commands_and_options_exist(page):
    for block in fences(page, "console"):
        for line in block.splitlines():
            if line.startswith("$ erllama "):
                check_command_line(line.removeprefix("$ erllama ").split(" | ")[0].split(" #")[0])


def check_command_line(text):
    """Walk the words: commands must exist, and every option belong to where it stands."""
    command = typer.main.get_command(make_app())
    words = shlex.split(text.replace(" < ", " ").replace(" > ", " "))
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("-") and name != "-" and not re.fullmatch(r"-\d+", name):
            assert name in options | {"--help", "-h"}, f"erllama {text}: {name}"
        elif word in getattr(command, "commands", {}):
            command = command.commands[word]
            options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert not hasattr(command, "commands") or any(word.startswith("-") for word in words), (
        f"erllama {text}: no such command"
    )


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_configuration_in_pages_is_valid(page):
    for block in fences(page, "toml"):
        parse_config(block, page.name)


def test_the_example_configuration_is_valid():
    config = parse_config((ROOT / "deploy/erllama.example.toml").read_text(encoding="utf-8"))
    assert set(config.models) == {"tiny", "big", "stub"}


def test_a_wrong_command_line_would_be_noticed():
    for text in ("lod x", "load x --no-such", "cache nope"):
        with pytest.raises(AssertionError):
            check_command_line(text)
    check_command_line("--endpoint tcp://x:1 load x.gguf --id a -o n_ctx=1")


def test_every_check_of_doctor_is_explained():
    page = (ROOT / "docs/guides/operating.md").read_text(encoding="utf-8")
    checks = set()
    for path in (ROOT / "erllama_host/doctor").glob("*.py"):
        checks |= set(re.findall(r"""(?:Finding|ok)\(\s*"([a-z.-]+)",""", path.read_text(encoding="utf-8")))
    assert len(checks) > 10
    assert [name for name in sorted(checks) if f"`{name}`" not in page] == []


def test_every_event_of_the_journal_is_explained():
    page = (ROOT / "docs/guides/operating.md").read_text(encoding="utf-8")
    events = {
        "gave_up",
        "failed",
        "died",
        *EVENT_OF_END.values(),
    }  # chosen by what happened, so not written where they are added
    for path in (ROOT / "erllama_host/controller").glob("*.py"):
        events |= set(re.findall(r"""journal\.add\(\s*"([a-z_]+)""", path.read_text(encoding="utf-8")))
    assert len(events) > 10
    assert [name for name in sorted(events) if f"`{name}`" not in page] == []


def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "guides" / "quickstart" / "index.html").exists()


def test_every_reason_of_a_miss_is_explained():
    table = (ROOT / "docs/guides/caching.md").read_text(encoding="utf-8")
    assert [reason.value for reason in MissReason if f"`{reason.value}`" not in table] == []
