"""What the catalog wants done to files and workers. It decides; the service carries out, in order. Pure."""

from dataclasses import dataclass

from cache_daemon.entries import FileRef, Identity


@dataclass(frozen=True, slots=True)
class Unlink:
    """Remove a file. It need not exist."""

    path: str


@dataclass(frozen=True, slots=True)
class Move:
    """Rename a file within its tier: into the pool of recyclable files, or out of it to a writer."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class ForgetMapping:
    """Tell a worker to unmap a file that was unlinked; its bytes count until it has."""

    owner: str
    tier: str
    inode: int


@dataclass(frozen=True, slots=True)
class Salvage:
    """A reservation ended without a word from its writer: it may have linked the file before.

    Remove the temporary file first: after that no link can succeed. Then look at the final name, say `Catalog.salvaged`, and adopt
    what is good there. The bytes of `file` stay reserved until then.
    """

    tier: str
    identity: Identity
    temporary: str
    final: str
    target_tier: str
    file: FileRef
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Check:
    """Look at a file and say `Catalog.looked_at`: a reader did not find what it was told of, or died over it.

    `payload`: compare all of it, which takes a while, and not just the header.
    """

    identity: Identity
    tier: str
    path: str
    payload: bool = False


@dataclass(frozen=True, slots=True)
class Damaged:
    """Tell the operator: this file was not what had been written, and is given up."""

    path: str


@dataclass(frozen=True, slots=True)
class Carry:
    """Write a copy of a published file into another tier, durably; then say `carried` or `carry_failed`."""

    identity: Identity
    source: str
    tier: str
    temporary: str
    final: str
    file_bytes: int


Action = Unlink | Move | ForgetMapping | Salvage | Check | Damaged | Carry
