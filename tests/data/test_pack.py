"""Packing: every response placed once, nothing overflows."""

import collections
import itertools

import numpy as np
import pytest

from rm_jax.data import pack
from rm_jax.data.pack import Item, PackError, Segment, Shape

SHAPES = pack.shapes((16, 32, 64), 256, 4)


def items_of(data, rng=None):
    order = lambda k: rng.permutation(k) if rng else range(k)
    return [
        Item(i, tuple(int(j) for j in order(data.count(i)))) for i in range(len(data))
    ]


def lay_out(data, items, shapes=SHAPES, shared=True):
    groups = pack.segments(data, items, shapes[-1], shared)
    return groups, pack.layout(groups, shapes, alone=not shared)


def test_shapes_have_equal_tokens():
    assert list(SHAPES) == [Shape(16, 16, 4), Shape(8, 32, 8), Shape(4, 64, 16)]
    assert pack.shapes((8,), 64, 16) == (Shape(8, 8, 1),)  # one slot at least


@pytest.mark.parametrize("shared", [True, False])
def test_every_response_is_placed_once_and_nothing_overflows(random_set, shared):
    data = random_set(1)
    items = items_of(data, np.random.default_rng(2))
    shapes = SHAPES if shared else pack.shapes((16, 32, 64), 64 * 9, 4)
    _, chunks = lay_out(data, items, shapes, shared)
    seen = collections.Counter()
    chunk_of = collections.defaultdict(set)
    for number, chunk in enumerate(chunks):
        assert chunk.shape in shapes and len(chunk.rows) == chunk.shape.rows
        assert chunk.items == tuple(sorted({s.item for r in chunk.rows for s in r}))
        for row in chunk.rows:
            assert sum(s.length for s in row) <= chunk.shape.length
            assert sum(len(s.columns) for s in row) <= chunk.shape.slots
            assert shared or len(row) <= 1
            for s in row:
                chunk_of[s.item].add(number)
                assert shared or len(s.columns) == 1
                seen.update((s.item, c) for c in s.columns)
                lengths = data.lengths(items[s.item].example)
                own = [lengths[items[s.item].order[c]] for c in s.columns]
                assert s.length == s.keep + sum(own)
    every = {(i, c) for i, item in enumerate(items) for c in range(len(item.order))}
    assert set(seen) == every and set(seen.values()) == {1}
    assert all(len(where) == 1 for where in chunk_of.values())


def test_prompts_are_shared_until_a_row_is_full(toy_set):
    data = toy_set([(30, [20, 10, 20, 4])])
    (segments,), _ = lay_out(data, items_of(data))
    # Longest first: 30 + 20 + 10 + 4 fill one row, the other 20 repeats the prompt.
    assert segments == [Segment(0, 30, (0, 1, 3), 64), Segment(0, 30, (2,), 50)]


def test_responses_with_other_truncation_get_a_segment_of_their_own(toy_set):
    data = toy_set([(40, [3, 11, 3])], max_length=20)
    (segments,), _ = lay_out(data, items_of(data))
    assert segments == [Segment(0, 9, (1,), 20), Segment(0, 17, (0, 2), 23)]


def test_slots_limit_a_segment(toy_set):
    data = toy_set([(4, [1] * 9)])
    (segments,), (chunk,) = lay_out(data, items_of(data), pack.shapes((32,), 96, 8))
    assert [len(s.columns) for s in segments] == [4, 4, 1]
    # A row has tokens for three of them, but slots for one of four.
    assert [[len(s.columns) for s in row] for row in chunk.rows] == [[4], [4], [1]]


def group(item, *lengths):
    return [Segment(item, 1, (i,), n) for i, n in enumerate(lengths)]


def contents(chunks):
    return [[[s.length for s in row] for row in chunk.rows] for chunk in chunks]


def test_a_segment_goes_where_least_is_left_over():
    groups = [group(i, n) for i, n in enumerate([6, 5, 4, 3, 2])]
    found = pack.layout(groups, [Shape(2, 10, 9)])
    assert contents(found) == [[[6, 4], [5, 3, 2]]]


def test_an_example_that_does_not_fit_whole_leaves_no_trace():
    groups = [group(0, 9, 9), group(1, 6, 6), group(2, 10)]
    first, second = pack.layout(groups, [Shape(3, 10, 9)])
    assert contents([first]) == [[[9], [9], [10]]] and first.items == (0, 2)
    assert contents([second]) == [[[6], [6], []]] and second.items == (1,)


def test_a_chunk_takes_the_shape_that_it_fills_best():
    wide, tall = Shape(1, 16, 9), Shape(2, 8, 9)
    for n, want in (([6, 6, 4], wide), ([8, 8], tall), ([9, 7], wide)):
        (chunk,) = pack.layout([group(i, x) for i, x in enumerate(n)], [tall, wide])
        assert chunk.shape == want and chunk.tokens == 16


def test_what_shares_a_segment_does_not_depend_on_the_order(toy_set):
    data = toy_set([(20, [20, 4, 30, 9, 9])])
    found = set()
    for order in itertools.permutations(range(5)):
        (group,) = pack.segments(data, [Item(0, order)], SHAPES[-1], True)
        shares = [frozenset(order[c] for c in s.columns) for s in group]
        found.add(tuple(shares))
        assert all(list(s.columns) == sorted(s.columns) for s in group)
    assert len(found) == 1


@pytest.mark.parametrize("seed", range(3))
def test_padding_is_small(random_set, seed):
    data = random_set(seed, n=100)
    _, chunks = lay_out(data, items_of(data))
    assert 1 - sum(c.tokens for c in chunks) / (256 * len(chunks)) < 0.15


def test_a_response_longer_than_every_row_names_the_example(toy_set):
    data = toy_set([(3, [2, 2]), (5, [70, 3])], max_length=100)
    with pytest.raises(PackError, match="example toy-1: 75 tokens do not fit the long"):
        lay_out(data, items_of(data))


@pytest.mark.parametrize("shared", [True, False])
def test_an_example_that_no_chunk_holds_is_found_before_training(toy_set, shared):
    data = toy_set([(3, [2, 2]), (30, [20] * 5)])
    shapes = pack.shapes((64,), 128, 4)
    with pytest.raises(PackError) as error:
        pack.check_fits(data, shapes, shared)
    text = str(error.value)  # 30 + 20 + 20 is more than a row: five times the prompt
    assert "example toy-1: 250 tokens in 5 segments fit no chunk" in text
    assert "raise config.batch.chunk_tokens" in text
    pack.check_fits(data, pack.shapes((64,), 64 * 5, 4), shared)


@pytest.mark.parametrize("shared", [True, False])
def test_evaluation_takes_as_many_rows_as_the_largest_example_needs(toy_set, shared):
    data = toy_set([(3, [2, 2]), (30, [20] * 5)])
    narrow, wide = pack.shapes((32, 64), 128, 4)
    said = []
    found = pack.roomy(data, [narrow, wide], shared, say=said.append)
    assert [s.rows for s in found] == [4 * narrow.rows, 4 * wide.rows]  # 5 of 2 rows
    assert [s[1:] for s in found] == [narrow[1:], wide[1:]]
    pack.check_fits(data, found, shared)
    (line,) = said
    assert "chunks of 512 tokens, 4 times config.batch.chunk_tokens" in line
    assert pack.roomy(data, found, shared, say=said.append) == found
    assert said == [line]
    with pytest.raises(PackError, match="toy-1: .* longest row"):
        pack.roomy(data, pack.shapes((32,), 128, 4), shared)


def test_check_passes_what_fits(random_set):
    data = random_set(5)
    pack.check_fits(data, SHAPES, True)
    pack.check_fits(data, pack.shapes((64,), 64 * 9, 4), False)
    with pytest.raises(PackError, match="in 9 segments"):  # of 4 rows
        pack.check_fits(data, SHAPES[-1:], False)


def plain_segments(data, index, item, largest, shared):
    """As `pack.segments` says, response by response."""
    keeps = data.per_response("prompt_keep", item.example).tolist()
    lengths = data.lengths(item.example).tolist()
    out = []
    longest_first = lambda c: (-lengths[item.order[c]], item.order[c])
    for c in sorted(range(len(item.order)), key=longest_first):
        keep, n = keeps[item.order[c]], lengths[item.order[c]]
        for i, s in enumerate(out if shared else ()):
            room = s.length + n <= largest.length and len(s.columns) < largest.slots
            if s.keep == keep and room:
                columns = tuple(sorted((*s.columns, c)))
                out[i] = s._replace(columns=columns, length=s.length + n)
                break
        else:
            out.append(Segment(index, keep, (c,), keep + n))
    return out


def plain_chunk(groups, shape, alone):
    """(rows, groups taken): every group in turn, every row looked at for a segment."""
    rows, taken = [[] for _ in range(shape.rows)], []
    for g, group in enumerate(groups):
        tried = [list(row) for row in rows]
        for s in group:
            free = {
                r: shape.length - sum(other.length for other in row)
                for r, row in enumerate(tried)
                if sum(len(x.columns) for x in (*row, s)) <= shape.slots
                and not (alone and row)
            }
            fits = [r for r in free if free[r] >= s.length]
            if not fits:
                break
            tried[min(fits, key=lambda r: (free[r], r))].append(s)
        else:
            rows = tried
            taken.append(g)
        if not taken:
            return None
    return rows, taken


def plain_layout(groups, shapes, alone):
    left = sorted(groups, key=lambda g: (-sum(s.length for s in g), g[0].item))
    chunks = []
    while left:
        options = []
        for shape in shapes:
            if (found := plain_chunk(left, shape, alone)) is not None:
                rows, taken = found
                items = tuple(sorted(left[g][0].item for g in taken))
                options.append(
                    (pack.Chunk(shape, tuple(map(tuple, rows)), items), taken)
                )
        chunk, taken = max(options, key=lambda o: (o[0].tokens, -o[0].shape.length))
        chunks.append(chunk)
        left = [g for i, g in enumerate(left) if i not in taken]
    return chunks


@pytest.mark.parametrize("seed", range(12))
def test_the_layout_is_the_one_that_looks_at_every_row(random_set, seed):
    data = random_set(seed, n=40, max_length=(64, 30, 24)[seed % 3])
    items = items_of(data, np.random.default_rng(seed))
    lengths = ((16, 32, 64), (64,), (32, 64))[seed % 3]
    for shared, tokens, per_slot in (
        (True, 576, (4, 9, 30)[seed % 3]),
        (False, 576, 8),
    ):
        shapes = pack.shapes(lengths, tokens * (1 + seed % 2), per_slot)
        groups, chunks = lay_out(data, items, shapes, shared)
        assert groups == [
            plain_segments(data, i, item, shapes[-1], shared)
            for i, item in enumerate(items)
        ]
        assert chunks == plain_layout(groups, shapes, not shared)
