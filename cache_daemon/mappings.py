"""Which worker may have which file mapped, and which unlinked files still occupy memory because of that. Pure.

Owner: the catalog. A worker may keep a file mapped long after its lease, since mappings are worth keeping; it says so when it
unmaps. An inode cannot be reused while a mapping exists, so (tier, inode) names a file for as long as it matters.
"""

from cache_daemon.entries import FileRef


class MappingTable:
    """Files and their mappers."""

    def __init__(self) -> None:
        self._mappers: dict[FileRef, set[str]] = {}
        self._files: dict[str, set[FileRef]] = {}
        self._unlinked: dict[FileRef, int] = {}

    def add(self, owner: str, file: FileRef) -> None:
        """`owner` may map `file` from now on."""
        files = self._files.get(owner)
        if files is None:
            files = self._files[owner] = set()
        if file not in files:
            files.add(file)
            self._mappers.setdefault(file, set()).add(owner)

    def mappers(self, file: FileRef) -> set[str]:
        """Who may have it mapped."""
        return set(self._mappers.get(file, ()))

    def unlinked(self, file: FileRef, num_bytes: int) -> bool:
        """The file was unlinked. True: somebody maps it, so its bytes stay in use until `forget` returns them."""
        if not self._mappers.get(file):
            return False
        self._unlinked[file] = self._unlinked.get(file, 0) + num_bytes
        return True

    def forget(self, owner: str, file: FileRef) -> int:
        """`owner` has unmapped it. Returns the bytes that came free by that."""
        mappers = self._mappers.get(file)
        if mappers is None or owner not in mappers:
            return 0
        mappers.discard(owner)
        self._files[owner].discard(file)
        if mappers:
            return 0
        del self._mappers[file]
        return self._unlinked.pop(file, 0)

    def forget_owner(self, owner: str) -> list[tuple[FileRef, int]]:
        """A worker is gone, and its mappings with it. Returns the files whose bytes came free."""
        freed = [(file, self.forget(owner, file)) for file in sorted(self._files.get(owner, ()))]
        self._files.pop(owner, None)
        return [(file, num_bytes) for file, num_bytes in freed if num_bytes]
