"""Which stored segments a prompt can use: the longest chain of blocks, then the best continuation below it. Pure.

Owner: the catalog, which adds what is published and removes what is evicted. Blocks are found by key, one dictionary
look-up each. What goes on below a block boundary is found by tokens: the children of a parent are kept sorted by their
packed tokens, and the one with the longest common run is a neighbour of the place where the prompt would be inserted, so
a bisection finds it among any number of siblings.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from cache_daemon.entries import Identity
from erllama_host.kv.reuse import Reuse
from erllama_host.kv.segment import SegmentKind, SegmentMeta
from erllama_host.kv.tokens import TOKEN_BYTES, common_prefix_len, num_tokens

_FIRST_BYTES = 16 * TOKEN_BYTES
"""Rows that begin with these tokens are looked for in other namespaces, to explain a miss."""

_AFTER_ALL_KEYS = b"\xff" * 33

_Child = tuple[bytes, bytes, SegmentKind]
"""(tokens, key, kind): sorts by tokens."""


@dataclass(slots=True)
class Match:
    """What a prompt can use.

    Attributes:
        hit_len: tokens `[0, hit_len)` are covered.
        parts: (identity, use_end) in the order of restoring.
        logits: identity of the stored logits, only when `hit_len` is the whole prompt.
        diverged_at: position from which stored rows go on differently than the prompt; None when none does.
        uncuttable: more is stored, inside a segment that can only be restored whole.
    """

    hit_len: int = 0
    parts: list[tuple[Identity, int]] = field(default_factory=list)
    logits: Identity | None = None
    diverged_at: int | None = None
    uncuttable: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is looked for. `block_keys[i]` is the key of the first (i + 1) blocks of `tokens`."""

    root: bytes
    block_keys: Sequence[bytes]
    tokens: bytes
    prompt_key: bytes
    reuse: Reuse


Allowed = Callable[[Identity], bool]


class PrefixIndex:
    """Index of published segments."""

    def __init__(self, block_tokens: int) -> None:
        """`block_tokens`: the length in force. Blocks of another may be there too, from before it was changed."""
        self._block_bytes = block_tokens * TOKEN_BYTES
        self._block_tokens = block_tokens
        self._metas: dict[Identity, SegmentMeta] = {}
        self._children: dict[bytes, list[_Child]] = {}
        """Blocks and tails by parent; snapshots apart, since only models that cannot be cut look for them."""
        self._snapshots: dict[bytes, list[_Child]] = {}
        self._num_dependents: dict[bytes, int] = {}
        self._first_tokens: dict[bytes, dict[bytes, int]] = {}

    def __len__(self) -> int:
        return len(self._metas)

    def __contains__(self, identity: Identity) -> bool:
        return identity in self._metas

    def add(self, meta: SegmentMeta) -> None:
        """Add a segment that is not there yet; its parent may be missing (see `is_orphan`)."""
        identity = (meta.key, meta.kind)
        assert identity not in self._metas
        self._metas[identity] = meta
        if meta.kind is not SegmentKind.LOGITS:
            insort(self._table(meta.kind).setdefault(meta.parent, []), (meta.tokens, meta.key, meta.kind))
        if depends_on_parent(meta):
            self._num_dependents[meta.parent] = self._num_dependents.get(meta.parent, 0) + 1
        if meta.start == 0:
            roots = self._first_tokens.setdefault(meta.tokens[:_FIRST_BYTES], {})
            roots[meta.root] = roots.get(meta.root, 0) + 1

    def remove(self, identity: Identity) -> None:
        """Remove a segment that is there."""
        meta = self._metas.pop(identity)
        if meta.kind is not SegmentKind.LOGITS:
            table = self._table(meta.kind)
            siblings = table[meta.parent]
            del siblings[bisect_left(siblings, (meta.tokens, meta.key, meta.kind))]
            if not siblings:
                del table[meta.parent]
        if depends_on_parent(meta):
            decrement(self._num_dependents, meta.parent)
        if meta.start == 0:
            first = meta.tokens[:_FIRST_BYTES]
            decrement(self._first_tokens[first], meta.root)
            if not self._first_tokens[first]:
                del self._first_tokens[first]

    def num_dependents(self, identity: Identity) -> int:
        """How many segments need this one before them. Only blocks are ever needed."""
        key, kind = identity
        return self._num_dependents.get(key, 0) if kind is SegmentKind.BLOCK else 0

    def is_orphan(self, meta: SegmentMeta) -> bool:
        """Whether the block before this segment is missing: then it cannot be reached until that is saved again."""
        return depends_on_parent(meta) and (meta.parent, SegmentKind.BLOCK) not in self._metas

    def covered_tails(self, meta: SegmentMeta) -> list[Identity]:
        """Tails that a block or longer tail makes superfluous: cuttable ones whose tokens it begins with."""
        if not meta.cuttable or meta.kind not in (SegmentKind.BLOCK, SegmentKind.TAIL):
            return []
        found = _prefixes_of(self._children.get(meta.parent, []), meta.tokens)
        return [(key, kind) for _, key, kind in found if kind is SegmentKind.TAIL and key != meta.key]

    def covers(self, meta: SegmentMeta) -> bool:
        """Whether a longer cuttable sibling that begins with this tail's tokens is stored already."""
        siblings = self._children.get(meta.parent, [])
        place = bisect_right(siblings, (meta.tokens, _AFTER_ALL_KEYS, SegmentKind.LOGITS))
        return (
            meta.kind is SegmentKind.TAIL
            and meta.cuttable
            and place < len(siblings)
            and siblings[place][0].startswith(meta.tokens)
        )

    def children(self, parent: bytes) -> list[Identity]:
        """Segments that start where `parent` ends."""
        both = self._children.get(parent, []) + self._snapshots.get(parent, [])
        return [(key, kind) for _, key, kind in both]

    def known_elsewhere(self, root: bytes, tokens: bytes) -> bool:
        """Whether a row that begins like `tokens` is stored under another root."""
        roots = self._first_tokens.get(tokens[:_FIRST_BYTES], {})
        return any(other != root for other in roots)

    def _table(self, kind: SegmentKind) -> dict[bytes, list[_Child]]:
        return self._snapshots if kind is SegmentKind.SNAPSHOT else self._children

    # ---- matching ------------------------------------------------------------------------------------------------

    def match(self, prompt: Prompt, allowed: Allowed = lambda _identity: True) -> Match:
        """The longest prefix of a prompt that its model can restore. Read-only.

        Args:
            prompt: at least one token.
            allowed: says no to segments that must not be offered; the chain ends before the first such one.
        Returns:
            See `Match`. A model that cannot be cut gets less than the whole prompt unless the logits after it are stored,
            because it could not decode its last token again.
        """
        blocks = self._chain(prompt, allowed)
        logits = (prompt.prompt_key, SegmentKind.LOGITS)
        has_logits = logits in self._metas
        if prompt.reuse is Reuse.CUT:
            found = self._match_cut(prompt, blocks, allowed)
        else:
            limit = num_tokens(prompt.tokens) - (0 if has_logits else 1)
            found = self._match_whole(prompt, blocks, allowed, limit)
        if has_logits and found.hit_len == num_tokens(prompt.tokens):
            found.logits = logits
        return found

    def _chain(self, prompt: Prompt, allowed: Allowed) -> list[Identity]:
        blocks: list[Identity] = []
        for key in prompt.block_keys:
            identity = (key, SegmentKind.BLOCK)
            meta = self._metas.get(identity)
            if meta is None or meta.num_tokens != self._block_tokens or not allowed(identity):
                break
            blocks.append(identity)
        return blocks

    def _parts(self, blocks: Sequence[Identity]) -> list[tuple[Identity, int]]:
        return [(block, (i + 1) * self._block_tokens) for i, block in enumerate(blocks)]

    def _boundary(self, prompt: Prompt, num_blocks: int) -> tuple[bytes, bytes]:
        """(key at the boundary, the prompt's tokens after it)."""
        key = prompt.block_keys[num_blocks - 1] if num_blocks else prompt.root
        return key, prompt.tokens[num_blocks * self._block_bytes :]

    def _match_cut(self, prompt: Prompt, blocks: Sequence[Identity], allowed: Allowed) -> Match:
        start = len(blocks) * self._block_tokens
        found = Match(start, self._parts(blocks))
        parent, rest = self._boundary(prompt, len(blocks))
        best: Identity | None = None
        usable, longest, goes_on = 0, 0, False
        for tokens, key, kind in self._neighbours(parent, rest):
            run = common_prefix_len(tokens, rest)
            goes_on = goes_on or (run < num_tokens(tokens) and run < num_tokens(rest))
            if run <= usable or not allowed((key, kind)):
                continue
            longest = max(longest, run)
            if run == num_tokens(tokens) or self._metas[key, kind].cuttable:
                best, usable = (key, kind), run
        if longest > usable:
            whole = self._longest_within(parent, rest, longest, SegmentKind.TAIL, allowed)
            if whole is not None and self._metas[whole].num_tokens > usable:
                best, usable = whole, self._metas[whole].num_tokens
        if best is not None:
            found.hit_len = start + usable
            found.parts.append((best, found.hit_len))
        found.uncuttable = longest > usable
        if rest and start + longest < num_tokens(prompt.tokens) and goes_on:
            found.diverged_at = start + longest
        return found

    def _neighbours(self, parent: bytes, rest: bytes) -> list[_Child]:
        """The children around the place of `rest`: one of them has the longest common run with it, the others are second best."""
        siblings = self._children.get(parent)
        if not siblings or not rest:
            return []
        place = bisect_left(siblings, (rest, b"", SegmentKind.BLOCK))
        return siblings[max(0, place - 2) : place + 3]

    def _match_whole(self, prompt: Prompt, blocks: Sequence[Identity], allowed: Allowed, limit: int) -> Match:
        best = Match()
        if prompt.reuse is Reuse.WHOLE:
            usable = min(len(blocks), limit // self._block_tokens)
            best = Match(usable * self._block_tokens, self._parts(blocks[:usable]))
            parent, rest = self._boundary(prompt, usable)
            tail = self._longest_within(parent, rest, limit - best.hit_len, SegmentKind.TAIL, allowed)
            if tail is not None:
                best.hit_len = self._metas[tail].end
                best.parts.append((tail, best.hit_len))
        snapshot = self._best_snapshot(prompt, blocks, allowed, limit, best.hit_len)
        return snapshot or best

    def _best_snapshot(
        self, prompt: Prompt, blocks: Sequence[Identity], allowed: Allowed, limit: int, more_than: int
    ) -> Match | None:
        for num_blocks in range(len(prompt.block_keys), -1, -1):
            start = num_blocks * self._block_tokens
            if start + self._block_tokens <= more_than:
                return None
            parent, rest = self._boundary(prompt, num_blocks)
            usable = self._allowed_snapshot(allowed, len(blocks))
            identity = self._longest_within(parent, rest, limit - start, SegmentKind.SNAPSHOT, usable)
            if identity is not None and self._metas[identity].end > more_than:
                meta = self._metas[identity]
                before = self._parts(blocks[: meta.covers_from // self._block_tokens])
                return Match(meta.end, [*before, (identity, meta.end)])
        return None

    def _allowed_snapshot(self, allowed: Allowed, num_blocks: int) -> Allowed:
        def usable(identity: Identity) -> bool:
            covers_from = self._metas[identity].covers_from
            return covers_from <= reach and not covers_from % self._block_tokens and allowed(identity)

        reach = num_blocks * self._block_tokens
        return usable

    def _longest_within(
        self, parent: bytes, rest: bytes, limit: int, wanted: SegmentKind, allowed: Allowed
    ) -> Identity | None:
        """The longest child of that kind whose tokens `rest` begins with, at most `limit` tokens long."""
        if limit < 0:
            return None
        found = _prefixes_of(self._table(wanted).get(parent, []), rest[: limit * TOKEN_BYTES])
        return next(((key, kind) for _, key, kind in found if kind is wanted and allowed((key, kind))), None)


def _prefixes_of(siblings: Sequence[_Child], packed: bytes) -> Iterator[_Child]:
    """Those whose tokens `packed` begins with, longest first.

    Walks left from the place of `packed`. A sibling that is no prefix says how much the two have in common, and everything
    between is skipped by bisecting for that shorter run: siblings that share a long beginning cost a few steps, not all.
    """
    place = bisect_right(siblings, (packed, _AFTER_ALL_KEYS, SegmentKind.LOGITS))
    while place > 0:
        child = siblings[place - 1]
        if packed.startswith(child[0]):
            yield child
            place -= 1
        else:
            packed = packed[: common_prefix_len(child[0], packed) * TOKEN_BYTES]
            place = bisect_right(siblings, (packed, _AFTER_ALL_KEYS, SegmentKind.LOGITS), hi=place)


def depends_on_parent(meta: SegmentMeta) -> bool:
    """Whether a segment is useless without the block before it.

    A snapshot of everything from 0 on is not. Nor are logits counted: they go first in any case, and must not
    keep a block.
    """
    return meta.start > 0 and meta.kind is not SegmentKind.LOGITS and meta.covers_from == meta.start


def decrement(counts: dict[bytes, int], key: bytes) -> None:
    """One less of `key`; a count of none is not kept."""
    if counts[key] == 1:
        del counts[key]
    else:
        counts[key] -= 1
