"""The prefix index against a plain search over everything stored."""

import dataclasses

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cache_daemon.prefix_index import PrefixIndex, Prompt, depends_on_parent
from erllama_host.kv.reuse import Reuse
from erllama_host.kv.segment import SegmentKind
from erllama_host.kv.tokens import common_prefix_len, slice_tokens
from tests.support.rows import SPACE, Row

B = 4
rows = st.lists(st.integers(1, 3), min_size=1, max_size=14)


def segments_of(tokens, what, cuttable, block=B):
    row = Row(tokens, block=block, cuttable=cuttable)
    found = list(row.blocks()) if "b" in what else []
    if "t" in what and len(tokens) % block:
        found.append(row.tail())
    if "s" in what:
        found.append(row.snapshot(0))
    if "h" in what:
        found.append(row.state())
    if "o" in what and not len(tokens) % block:
        found.append(row.snapshot(len(tokens) - block))  # as in files that are no longer written
    if "p" in what:
        found.append(row.snapshot(row.chain.boundary()))
    if "l" in what:
        found.append(row.logits())
    return found


stored = st.lists(
    st.tuples(rows, st.sampled_from(["b", "bt", "btl", "t", "s", "bp", "bsl", "p", "btsl", "bh", "h", "bhl", "bo"])),
    max_size=10,
)


def prompt_of(tokens, reuse):
    row = Row(tokens, block=B)
    return Prompt(SPACE.root, row.chain.block_keys, row.packed, row.chain.key(), reuse)


def best_hit(metas, prompt, num_prompt, has_logits):
    """What a search over everything stored finds: the longest usable prefix."""
    blocks = {meta.key for meta in metas if meta.kind is SegmentKind.BLOCK}
    chain = 0
    while chain < len(prompt.block_keys) and prompt.block_keys[chain] in blocks:
        chain += 1
    if prompt.reuse is Reuse.CUT:
        parent = prompt.block_keys[chain - 1] if chain else prompt.root
        rest = slice_tokens(prompt.tokens, chain * B)
        below = [m for m in metas if m.parent == parent and m.kind in (SegmentKind.BLOCK, SegmentKind.TAIL)]
        below = [m for m in below if m.cuttable or rest.startswith(m.tokens)]
        return chain * B + max((common_prefix_len(m.tokens, rest) for m in below), default=0)
    limit = num_prompt - (0 if has_logits else 1)
    ends = [0]
    if prompt.reuse is Reuse.WHOLE:
        usable = min(chain, limit // B)
        ends.append(usable * B)
        for meta in metas:
            fits = meta.start == usable * B and meta.end <= limit
            if (
                meta.kind is SegmentKind.TAIL
                and fits
                and SPACE.key(slice_tokens(prompt.tokens, 0, meta.end)) == meta.key
            ):
                ends.append(meta.end)
    for meta in metas:
        fits = meta.kind is SegmentKind.SNAPSHOT and meta.end <= limit and meta.covers_from <= chain * B
        if fits and SPACE.key(slice_tokens(prompt.tokens, 0, meta.end)) == meta.key:
            ends.append(meta.end)
    return max(ends)


@settings(max_examples=150, deadline=None)
@given(stored, rows, st.sampled_from(list(Reuse)), st.booleans(), st.data())
def test_match_is_the_longest_usable_prefix(rows_stored, tokens, reuse, is_narrow, data):
    """`is_narrow`: the model's window is narrower than a block, so it can restore a segment only whole."""
    index, metas = PrefixIndex(B), {}
    for row_tokens, what in rows_stored:
        for meta in segments_of(row_tokens, what, cuttable=reuse is Reuse.CUT and not is_narrow):
            if (meta.key, meta.kind) not in metas:
                metas[meta.key, meta.kind] = meta
                index.add(meta)
    for identity in data.draw(st.lists(st.sampled_from(sorted(metas)), unique=True) if metas else st.just([])):
        index.remove(identity)
        del metas[identity]
    prompt = prompt_of(tokens, reuse)
    match = index.match(prompt)
    has_logits = (prompt.prompt_key, SegmentKind.LOGITS) in metas
    assert match.hit_len == best_hit(list(metas.values()), prompt, len(tokens), has_logits)
    whole = [dataclasses.replace(meta, cuttable=True) for meta in metas.values()]
    longer = best_hit(whole, prompt, len(tokens), has_logits) > match.hit_len
    assert match.uncuttable == (longer and reuse is Reuse.CUT)
    check_parts(match, metas, prompt, reuse)
    assert (match.logits is not None) == (has_logits and match.hit_len == len(tokens))


def check_parts(match, metas, prompt, reuse):
    """The parts join without a gap, hold the prompt's tokens, and are cut only where that is allowed."""
    covered = 0
    for identity, use_end in match.parts:
        meta = metas[identity]
        assert meta.kind is SegmentKind.SNAPSHOT or meta.start == covered
        assert meta.kind is not SegmentKind.SNAPSHOT or meta.covers_from <= covered
        assert slice_tokens(prompt.tokens, meta.start, use_end) == slice_tokens(meta.tokens, 0, use_end - meta.start)
        assert use_end == meta.end or (reuse is Reuse.CUT and meta.cuttable)
        covered = use_end
    assert covered == match.hit_len


@settings(max_examples=60, deadline=None)
@given(stored)
def test_dependents_and_orphans_are_counted(rows_stored):
    index, metas = PrefixIndex(B), {}
    for row_tokens, what in rows_stored:
        for meta in segments_of(row_tokens, what, cuttable=True):
            if (meta.key, meta.kind) not in metas:
                metas[meta.key, meta.kind] = meta
                index.add(meta)
    for identity, meta in metas.items():
        needing = [m for m in metas.values() if m.parent == meta.key and depends_on_parent(m)]
        assert index.num_dependents(identity) == (len(needing) if meta.kind is SegmentKind.BLOCK else 0)
        alone = depends_on_parent(meta) and (meta.parent, SegmentKind.BLOCK) not in metas
        assert index.is_orphan(meta) == alone
    for identity in list(metas):
        index.remove(identity)
    assert len(index) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, min_size=1, max_size=8))
def test_a_longer_sibling_makes_a_tail_superfluous(all_tokens):
    index, metas = PrefixIndex(B), {}
    for tokens in all_tokens:
        for meta in segments_of(tokens, "bt", cuttable=True):
            if (meta.key, meta.kind) not in metas:
                metas[meta.key, meta.kind] = meta
                index.add(meta)
    for meta in metas.values():
        siblings = [m for m in metas.values() if m.parent == meta.parent and m.key != meta.key]
        shorter = {(m.key, m.kind) for m in siblings if m.kind is SegmentKind.TAIL and meta.tokens.startswith(m.tokens)}
        assert set(index.covered_tails(meta)) == shorter
        longer = any(m.tokens.startswith(meta.tokens) for m in siblings)
        assert index.covers(meta) == (meta.kind is SegmentKind.TAIL and longer)


branches = st.tuples(st.integers(1, 16), st.lists(st.integers(1, 3), max_size=2))
"""A beginning of one long row, and how it goes on."""

other_lengths = st.tuples(branches, st.sampled_from([2, 4, 8]), st.sampled_from(["bt", "bh", "bs", "bo"]))


@settings(max_examples=150, deadline=None)
@given(st.lists(other_lengths, max_size=8), branches, st.sampled_from([Reuse.CUT, Reuse.STATE]))
@example([((8, []), 4, "bt"), ((8, []), 2, "bo")], (9, []), Reuse.STATE)
def test_segments_of_another_block_length_are_used_right_or_not_at_all(stored_branches, branch, reuse):
    """The configuration was changed: what an earlier life has stored is still there."""
    index, metas = PrefixIndex(B), {}
    for (length, more), block, what in stored_branches:
        for meta in segments_of([*range(length), *more], what, cuttable=reuse is Reuse.CUT, block=block):
            if (meta.key, meta.kind) not in metas:
                metas[meta.key, meta.kind] = meta
                index.add(meta)
    prompt = prompt_of([*range(branch[0]), *branch[1]], reuse)
    check_parts(index.match(prompt), metas, prompt, reuse)
