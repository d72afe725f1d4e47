"""Keys of remote connections, and the authenticator that refuses everybody else. Files are ZeroMQ certificates.

    <keys>/server.key, server.key_secret     the host's pair; clients need the public one
    <keys>/clients/<name>.key                public keys that may connect; the metadata say the role
    <keys>/<name>.key_secret                 made by `erllama keys new`, to be moved to the client

tcp is served only with CURVE, and only to keys in `clients/`: a key removed there is refused at its next connection. A host that
nobody could connect to does not start (`check_remote`); one that runs goes on when the last key is removed. The role travels as
ZeroMQ's User-Id of every message, which the client cannot set.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from erllama_host.config import Config, Paths, private_directory
from erllama_host.errors import ConfigError, InvalidRequest
from erllama_host.observability import Log
from erllama_host.protocol.kinds import Role
from erllama_host.transport.certificates import read_key_pair, read_public_key
from erllama_host.transport.pump import Pump
from erllama_host.transport.sockets import router

ZAP_ADDRESS = "inproc://zeromq.zap.01"
_KEYS_DIR = "remote.keys_dir"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_ROLE = re.compile(r"^\s+role\s*=\s*(user|admin)\s*$", re.MULTILINE)

Read = Callable[[zmq.Socket[bytes]], list[bytes] | None]
Serve = Callable[[zmq.Socket[bytes], Read, Callable[[bytes], Role]], None]


@dataclass(frozen=True)
class ClientKey:
    """A key that may connect. `public`: z85 text."""

    name: str
    role: Role
    public: str


@dataclass(frozen=True)
class NewKey:
    """What a client needs: its secret file and the server's public one."""

    key: ClientKey
    secret_file: Path
    server_file: Path


def keys_directory(paths: Paths, config: Config) -> Path:
    """Where the keys of a host are."""
    return Path(config.remote.keys_dir) if config.remote.keys_dir is not None else paths.keys


def new_key(directory: Path, name: str, role: Role) -> NewKey:
    """Make the key pair of a client, and the server's when there is none yet.

    Raises:
        InvalidRequest: the name cannot be used, or is taken.
    """
    if not _NAME.match(name) or name == "server":
        raise InvalidRequest(
            f"key name {name!r} must be letters, digits, '.', '_', '-', and not 'server'", field="name"
        )
    server_key(directory)
    clients = private_directory(directory / "clients", _KEYS_DIR)
    public_file, secret_file = clients / f"{name}.key", directory / f"{name}.key_secret"
    if public_file.exists():
        raise InvalidRequest(f"there is a key {name!r} already; remove it first", field="name")
    public, secret = zmq.curve_keypair()
    _write(secret_file, public, role, secret)
    _write(public_file, public, role)
    return NewKey(ClientKey(name, role, public.decode()), secret_file, directory / "server.key")


def list_keys(directory: Path) -> list[ClientKey]:
    """Every key that may connect, by name; a file that is not a certificate with a role lets nobody in."""
    return [key for key in map(_key_or_error, _client_files(directory)) if isinstance(key, ClientKey)]


def useless_keys(directory: Path) -> list[ConfigError]:
    """What is wrong with the files of clients that let nobody in."""
    return [error for error in map(_key_or_error, _client_files(directory)) if isinstance(error, ConfigError)]


def _client_files(directory: Path) -> list[Path]:
    return sorted((directory / "clients").glob("*.key"))


def _key_or_error(file: Path) -> ClientKey | ConfigError:
    """An error is a value here: one spoilt file must not keep out the clients whose files are well."""
    remedy = f"remove it, and make another with: erllama keys new {file.stem}"
    try:
        public = read_public_key(file, _KEYS_DIR, remedy).decode()
        role = _ROLE.search(file.read_text(encoding="utf-8", errors="replace"))
    except (ConfigError, OSError) as error:
        return error if isinstance(error, ConfigError) else ConfigError(f"{file}: {error.strerror}", key=_KEYS_DIR)
    if role is None:
        return ConfigError(f"{file} has no line 'role = user' or 'role = admin'; {remedy}", key=_KEYS_DIR)
    return ClientKey(file.stem, "admin" if role[1] == "admin" else "user", public)


def remove_key(directory: Path, name: str) -> bool:
    """Let a key connect no more; False when there was none of that name."""
    if not _NAME.match(name) or not (directory / "clients" / f"{name}.key").exists():
        return False
    (directory / "clients" / f"{name}.key").unlink()
    (directory / f"{name}.key_secret").unlink(missing_ok=True)
    return True


def server_key(directory: Path) -> tuple[bytes, bytes]:
    """The host's pair (public, secret), z85; made when there is none.

    Raises:
        ConfigError: others can look into the directory or the file, or the file is spoilt.
    """
    private_directory(directory, _KEYS_DIR)
    secret_file = directory / "server.key_secret"
    if not secret_file.exists():
        public, secret = zmq.curve_keypair()
        _write(directory / "server.key", public, None)
        _write(secret_file, public, None, secret)
    remedy = f"if it is lost, remove {directory / 'server.key'} too: the next start makes a pair, and clients need its server.key"
    return read_key_pair(secret_file, _KEYS_DIR, remedy)


class Authenticator:
    """Answers libzmq's question (ZAP) whether a key may connect. Looks at the files every time: changes count at once."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], directory: Path, log: Log) -> None:
        self._directory = directory
        self._log = log
        socket = context.socket(zmq.REP)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(ZAP_ADDRESS)
        self._pump = Pump(socket, self._answer)

    def start(self) -> None:
        """Begin to answer."""
        self._pump.start()

    def close(self) -> None:
        """Close the socket; nobody new can connect then."""
        self._pump.close()

    def _answer(self, frames: list[bytes]) -> None:
        """[version, id, domain, address, identity, mechanism, credentials…] → [version, id, status, text, user, metadata]."""
        version, request_id, _, address = frames[:4]
        key = self._known(frames[6:]) if frames[5] == b"CURVE" else None
        if key is None:
            self._log.rate_limited("client_refused", address=address.decode(errors="replace"))
            self._pump.send([version, request_id, b"400", b"unknown key", b"", b""])
        else:
            self._pump.send([version, request_id, b"200", b"", f"{key.role}:{key.name}".encode(), b""])

    def _known(self, credentials: list[bytes]) -> ClientKey | None:
        public = z85.encode(credentials[0]).decode() if credentials and len(credentials[0]) == 32 else ""
        return next((key for key in list_keys(self._directory) if key.public == public), None)


def check_remote(paths: Paths, config: Config) -> None:
    """See, before a host is started, that its keys can be used and that some client has one. Nothing without `remote.listen`.

    Raises:
        ConfigError: not a tcp address, no client has a key, or a key file is spoilt or open to others.
    """
    if config.remote.listen is None:
        return
    _check_address(config.remote.listen)
    directory = keys_directory(paths, config)
    server_key(directory)
    for error in useless_keys(directory):
        raise error
    if not list_keys(directory):
        raise ConfigError(
            f"remote.listen is set and no client has a key in {directory / 'clients'}: nobody could connect. Run: "
            "erllama keys new NAME --role user; or remove remote.listen",
            key="remote.listen",
        )


def _check_address(listen: str) -> None:
    if not listen.startswith("tcp://"):
        raise ConfigError(f"remote.listen {listen!r} must begin with tcp://", key="remote.listen")


def open_remote(
    context: zmq.Context[zmq.Socket[bytes]], config: Config, paths: Paths, log: Log, serve: Serve
) -> Authenticator:
    """Bind `remote.listen` and hand the socket to `serve`.

    Raises:
        ConfigError: not a tcp address, it cannot be bound, or the host's own pair cannot be used.
    """
    listen = config.remote.listen or ""
    _check_address(listen)
    directory = keys_directory(paths, config)
    _, secret = server_key(directory)
    authenticator = Authenticator(context, directory, log)
    authenticator.start()
    socket = router(context, config.host.max_clients_pending)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
    try:
        socket.bind(listen)
    except zmq.ZMQError as error:
        raise ConfigError(f"remote.listen {listen!r}: {error.strerror}", key="remote.listen") from error
    serve(socket, receive_with_user, role_of)
    log.info("serving_remote", endpoint=listen, keys=str(directory))
    return authenticator


def receive_with_user(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    """The next message with the authenticated user put before its frames; None when none is there."""
    try:
        frames = socket.recv_multipart(flags=zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None
    return [str(frames[-1].get("User-Id")).encode(), *(frame.bytes for frame in frames)]


def role_of(user: bytes) -> Role:
    """The role in a User-Id."""
    return "admin" if user.startswith(b"admin:") else "user"


def _write(file: Path, public: bytes, role: Role | None, secret: bytes | None = None) -> None:
    """A ZeroMQ certificate, readable by its owner alone."""
    lines = ["metadata", *([f"    role = {role}"] if role else []), "curve", f'    public-key = "{public.decode()}"']
    if secret is not None:
        lines.append(f'    secret-key = "{secret.decode()}"')
    file.touch(mode=0o600)
    file.chmod(0o600)
    file.write_text("\n".join(lines) + "\n", encoding="ascii")
