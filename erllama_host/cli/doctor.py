"""`erllama doctor`: print what the checks find, mend what is harmless."""

import sys
from typing import Annotated

import typer

from erllama_host.cli.connection import paths_of
from erllama_host.cli.exits import Exit
from erllama_host.cli.options import JsonFlag, flag
from erllama_host.cli.output import Column, Table, print_json, print_table
from erllama_host.doctor.finding import Finding


def doctor(
    ctx: typer.Context,
    fix: Annotated[bool, flag("--fix", help="Mend what is harmless to mend.")] = False,
    show_all: Annotated[bool, flag("-a", "--all", help="Show what is fine, too.")] = False,
    as_json: JsonFlag = False,
) -> int:
    """Find what keeps a host from working, and what to do.

    Works while no host runs, too. Leaves with 1 when a problem remains.

    Examples:
        $ erllama doctor
        $ erllama doctor --fix
        $ erllama doctor --json | jq '.findings[] | select(.severity == "problem")'
    """
    from erllama_host.cli.progress import waiting
    from erllama_host.doctor.context import gather
    from erllama_host.doctor.examine import examine

    with waiting("looking around"):
        found = examine(gather(paths_of(ctx)))
    mended = mend(found) if fix else {}
    remaining = [finding for finding in found if finding.severity == "problem" and id(finding) not in mended]
    if as_json:
        print_json({"findings": [as_data(finding, mended) for finding in found], "problems": len(remaining)})
    else:
        shown = [finding for finding in found if show_all or finding.severity != "ok"]
        print_table(findings_table(shown, mended, len(found)))
        if sys.stdout.isatty() and not fix and any(finding.fixable for finding in shown):
            print("`erllama doctor --fix` mends what is marked with *.")
    return Exit.FAILED if remaining else Exit.OK


def mend(found: list[Finding]) -> dict[int, str]:
    """Carry out the fixes; by identity of the finding, what was done. A fix that fails leaves its finding as it is."""
    done = {}
    for finding in found:
        if finding.fix is not None:
            try:
                done[id(finding)] = finding.fix()
            except OSError as error:
                print(f"erllama doctor: {finding.check}: {error}", file=sys.stderr)
    return done


def as_data(finding: Finding, mended: dict[int, str]) -> dict[str, object]:
    """A finding for `--json`."""
    return {
        "check": finding.check,
        "severity": finding.severity,
        "what": finding.what,
        "todo": finding.todo,
        "fixable": finding.fixable,
        "fixed": mended.get(id(finding)),
    }


def findings_table(found: list[Finding], mended: dict[int, str], checked: int) -> Table:
    """One line per finding, with what to do below what is the case."""
    rows = []
    for finding in found:
        done = mended.get(id(finding))
        mark = "*" if finding.fixable and done is None else ""
        todo = f"done: {done}" if done is not None else finding.todo
        severity = "ok" if done is not None else finding.severity
        rows.append((severity, finding.check + mark, finding.what, todo))
    columns = (
        Column("FINDING", status=True),
        Column("CHECK"),
        Column("WHAT", fold=True),
        Column("WHAT TO DO", fold=True),
    )
    return Table(columns, rows, empty=f"All is well: {checked} things were looked at (see them with --all).")
