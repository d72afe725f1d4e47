"""Where a host lives: its directories and sockets, all private to the user. The only reader of the environment.

ERLLAMA_HOME      models.json, kv/, keys/, logs/          (~/.local/share/erllama)
ERLLAMA_RUN       sockets, pid files, models/<id>.json    ($XDG_RUNTIME_DIR/erllama, else <tmp>/erllama-<uid>)
ERLLAMA_CONFIG    erllama.toml                            ($ERLLAMA_HOME/erllama.toml)
ERLLAMA_ENDPOINT  where clients connect                   (ipc://$ERLLAMA_RUN/clients.sock)
"""

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from erllama_host.errors import ConfigError

MAX_IPC_PATH_BYTES = 107
_SOCKETS = ("clients.sock", "workers.sock", "cache.sock", "circus.sock", "circus-events.sock", "circus-stats.sock")


@dataclass(frozen=True)
class Paths:
    """Directories of one host.

    Attributes:
        home: survives everything. run: sockets and pid files; two hosts with different ones never meet.
        config_file: erllama.toml, which need not exist.
    """

    home: Path
    run: Path
    config_file: Path
    endpoint_override: str | None = None

    @property
    def instance(self) -> str:
        """12 hex digits that name this host in shared places such as /dev/shm."""
        return hashlib.sha256(os.path.realpath(self.run).encode()).hexdigest()[:12]

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        return self.endpoint_override or self.ipc("clients.sock")

    @property
    def models_file(self) -> Path:
        """The desired state."""
        return self.home / "models.json"

    @property
    def logs(self) -> Path:
        """Logs of all processes, one file each."""
        return self.home / "logs"

    @property
    def kv_disk(self) -> Path:
        """The built-in disk tier."""
        return self.home / "kv"

    @property
    def keys(self) -> Path:
        """CURVE keys."""
        return self.home / "keys"

    def spec_file(self, model_id: str) -> Path:
        """What the worker of `model_id` reads at start."""
        return self.run / "models" / f"{model_id}.json"

    def failure_file(self, model_id: str) -> Path:
        """Why the last load of `model_id` failed, for whoever looks while the controller is down."""
        return self.run / "failed" / f"{model_id}.json"

    def socket(self, name: str) -> Path:
        """Path of a socket by file name."""
        return self.run / name

    def ipc(self, name: str) -> str:
        """ZeroMQ address of a socket.

        Raises:
            ConfigError: the path is longer than the kernel allows.
        """
        path = os.fsencode(self.run / name)
        if len(path) > MAX_IPC_PATH_BYTES:
            raise ConfigError(
                f"ERLLAMA_RUN is too long: {os.fsdecode(path)} has {len(path)} bytes and a socket path may have "
                f"{MAX_IPC_PATH_BYTES}; set ERLLAMA_RUN to a shorter directory",
                key="ERLLAMA_RUN",
            )
        return "ipc://" + os.fsdecode(path)

    def environment(self) -> dict[str, str]:
        """Variables that make a child process find the same host."""
        values = {"ERLLAMA_HOME": str(self.home), "ERLLAMA_RUN": str(self.run), "ERLLAMA_CONFIG": str(self.config_file)}
        if self.endpoint_override:
            values["ERLLAMA_ENDPOINT"] = self.endpoint_override
        return values

    def prepare(self) -> None:
        """Create the directories, private, and check that nobody else can write to them.

        Raises:
            ConfigError: a directory belongs to somebody else, is open to others, or a socket path would be too long.
        """
        for key, path in (("ERLLAMA_HOME", self.home), ("ERLLAMA_RUN", self.run)):
            private_directory(path, key)
        for path in (self.run / "models", self.run / "failed", self.logs):
            private_directory(path, str(path))
        for name in _SOCKETS:
            self.ipc(name)


def private_directory(path: Path, key: str) -> Path:
    """Create `path` with mode 0700, or check that it is one of ours.

    Raises:
        ConfigError: names `key`, the cause and the way out.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        link_uid = path.lstat().st_uid
    except OSError as error:
        raise ConfigError(f"{key}: cannot use directory {path}: {error.strerror}", key=key) from error
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"{key}: {path} belongs to uid {status.st_uid}, not to you; choose another directory", key=key
        )
    if link_uid not in (0, os.geteuid()):
        # Somebody who links a name in the temp directory to our home would have us clean up there.
        raise ConfigError(f"{key}: {path} is a link made by uid {link_uid}; choose another directory", key=key)
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(
            f"{key}: {path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}); run: chmod 700 {path}", key=key
        )
    return path


def find_paths(environ: Mapping[str, str] | None = None) -> Paths:
    """The directories the environment names, or the defaults. Creates nothing."""
    env = os.environ if environ is None else environ
    home = Path(env.get("ERLLAMA_HOME") or Path(env.get("HOME", "~")).expanduser() / ".local/share/erllama")
    if env.get("ERLLAMA_RUN"):
        run = Path(env["ERLLAMA_RUN"])
    elif env.get("XDG_RUNTIME_DIR"):
        run = Path(env["XDG_RUNTIME_DIR"]) / "erllama"
    else:
        import tempfile  # seldom needed, and four compression modules come with it

        run = Path(tempfile.gettempdir()) / f"erllama-{os.geteuid()}"
    config = Path(env.get("ERLLAMA_CONFIG") or home / "erllama.toml")
    return Paths(
        home=home.absolute(),
        run=run.absolute(),
        config_file=config.absolute(),
        endpoint_override=env.get("ERLLAMA_ENDPOINT") or None,
    )
