"""`erllama` as a person runs it: a process of its own, against private directories."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erllama_host.config import Paths

ROOT = Path(__file__).parents[2]
BOUND_S = 150.0


@dataclass
class Shell:
    """Runs command lines with the environment of one host."""

    paths: Paths
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ERLLAMA_")}
        return {**inherited, **self.paths.environment(), "PYTHONPATH": str(ROOT), "COLUMNS": "80", **self.extra}

    def run(self, *words: str, stdin: str = "", code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run to the end; `code` is the exit code it must have (None: any)."""
        done = subprocess.run(
            command(*words),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            env=self.environment,
            cwd=self.paths.home.parent,
        )
        assert code is None or done.returncode == code, (
            f"erllama {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, *words: str) -> Any:
        """The JSON that a command prints."""
        return json.loads(self.run(*words, "--json").stdout)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Start and return at once; output is piped."""
        return subprocess.Popen(
            command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=self.paths.home.parent,
        )


def command(*words: str) -> list[str]:
    """The words of a process."""
    return [sys.executable, "-m", "erllama_host.cli", *words]
