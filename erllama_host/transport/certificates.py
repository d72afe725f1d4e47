"""Reading key files: ZeroMQ certificates, as `erllama keys new` writes them. Every complaint names the file and the way out.

A secret key that others can read is refused, as ssh does: whoever copied it with a lax umask should learn of it at once, and not
from the one who used it.
"""

import os
import re
import stat
from pathlib import Path

import zmq

from erllama_host.errors import ConfigError

MAX_FILE_BYTES = 1 << 16
"""Nobody's key file is larger; what is wrong should not be read for ever."""

_KEYS = re.compile(
    rb"^\s*(public|secret)-key\s*=\s*[\"']?([0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40})[\"']?\s*$", re.MULTILINE
)
"""z85 text of 32 bytes; the alphabet has neither quotes nor blanks."""


def read_public_key(file: Path, key: str, remedy: str) -> bytes:
    """The public key in a certificate, as z85 text.

    Args:
        key: configuration key to name in a complaint. remedy: what to do about a file that is missing or of no use.

    Raises:
        ConfigError: no such file, unreadable, or no certificate.
    """
    return _keys(file, _read(file, key, remedy), key, remedy)[0]


def read_key_pair(file: Path, key: str, remedy: str) -> tuple[bytes, bytes]:
    """The pair (public, secret) in a secret key file, as z85 text.

    Raises:
        ConfigError: as `read_public_key`; or others can read the file, or it has no secret key that belongs to the public one.
    """
    public, secret = _keys(file, _read(file, key, remedy, is_secret=True), key, remedy)
    if secret is None:
        raise ConfigError(f"{file} has no secret key; {remedy}", key=key)
    if zmq.curve_public(secret) != public:
        raise ConfigError(f"{file}: its public key does not belong to its secret key; {remedy}", key=key)
    return public, secret


def _read(file: Path, key: str, remedy: str, is_secret: bool = False) -> bytes:
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            if is_secret and mode & 0o077:
                raise ConfigError(
                    f"{file} holds a secret key and is open to others (mode {mode:04o}); run: chmod 600 {file}", key=key
                )
            return opened.read(MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise ConfigError(f"key file {file} does not exist; {remedy}", key=key) from error
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        raise ConfigError(
            f"cannot read key file {file}: {getattr(error, 'strerror', None) or error}", key=key
        ) from error


def _keys(file: Path, text: bytes, key: str, remedy: str) -> tuple[bytes, bytes | None]:
    found = {match[1]: match[2] for match in _KEYS.finditer(text)}
    if b"public" not in found:
        raise ConfigError(f"{file} is no key file: it has no public-key line of 40 characters; {remedy}", key=key)
    return found[b"public"], found.get(b"secret")
