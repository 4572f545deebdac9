"""Packing: every response placed once, nothing overflows, arrays by hand."""

import collections
import itertools

import numpy as np
import pytest

from rm_jax.data import cache, pack
from rm_jax.data.pack import Item, PackError, Segment, Shape

SHAPES = pack.shapes((16, 32, 64), 256, 4)


def items_of(data, rng=None):
    order = lambda k: rng.permutation(k) if rng else range(k)
    return [
        Item(i, tuple(int(j) for j in order(data.count(i)))) for i in range(len(data))
    ]


def lay_out(data, items, shapes=SHAPES, shared=True):
    groups = [
        pack.segments(data, i, item, shapes[-1], shared) for i, item in enumerate(items)
    ]
    return groups, pack.layout(groups, shapes, alone=not shared)


def random_set(toy_set, seed, n=60):
    rng = np.random.default_rng(seed)
    return toy_set(
        [
            (
                int(rng.integers(1, 40 if k < 4 else 10)),
                rng.integers(1, 20 if k < 4 else 8, k).tolist(),
            )
            for k in rng.choice([1, 2, 2, 2, 4, 9], n)
        ]
    )


def test_shapes_have_equal_tokens():
    assert list(SHAPES) == [Shape(16, 16, 4), Shape(8, 32, 8), Shape(4, 64, 16)]
    assert pack.shapes((8,), 64, 16) == (Shape(8, 8, 1),)  # one slot at least


@pytest.mark.parametrize("shared", [True, False])
def test_every_response_is_placed_once_and_nothing_overflows(toy_set, shared):
    data = random_set(toy_set, 1)
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
        group = pack.segments(data, 0, Item(0, order), SHAPES[-1], True)
        shares = [frozenset(order[c] for c in s.columns) for s in group]
        found.add(tuple(shares))
        assert all(list(s.columns) == sorted(s.columns) for s in group)
    assert len(found) == 1


@pytest.mark.parametrize("seed", range(3))
def test_padding_is_small(toy_set, seed):
    data = random_set(toy_set, seed, n=100)
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


def test_check_passes_what_fits(toy_set):
    data = random_set(toy_set, 5)
    pack.check_fits(data, SHAPES, True)
    pack.check_fits(data, pack.shapes((64,), 64 * 9, 4), False)
    with pytest.raises(PackError, match="in 9 segments"):  # of 4 rows
        pack.check_fits(data, SHAPES[-1:], False)


def test_fill_by_hand(tmp_path, id_encoder, id_record):
    data = cache.build(
        [
            id_record(0, [1, 10, 11, 12], [[20, 21], [30]], keep=[3, 3]),  # cut by one
            id_record(1, [1, 13], [[40], [50, 51], [60]]),
        ],
        id_encoder(),
        tmp_path / "set",
        {},
        {},
    )
    items = [Item(1, (2, 0, 1)), Item(0, (1, 0))]
    segments = [Segment(1, 3, (0, 1), 6), Segment(0, 2, (0, 2), 5)]
    alone = Segment(0, 2, (1,), 3)
    chunk = pack.Chunk(Shape(2, 12, 5), (tuple(segments), (alone,)), (0, 1))
    assert chunk.tokens == 14
    got = pack.fill(data, items, chunk)
    # Row 0: BOS 11 12 | 30 | 20 21 | BOS 13 | 60 | 50 51; row 1: BOS 13 | 40.
    want = {
        "tokens": [
            [1, 11, 12, 30, 20, 21, 1, 13, 60, 50, 51, 0],
            [1, 13, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ],
        "positions": [
            [0, 1, 2, 3, 3, 4, 0, 1, 2, 2, 3, 0],
            [0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ],
        "segments": [
            [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0],
            [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ],
        "branches": [
            [0, 0, 0, 1, 2, 2, 0, 0, 1, 2, 2, 0],
            [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ],
        "slots": [[3, 5, 8, 10, 0], [2, 0, 0, 0, 0]],
        "slot_ids": [
            [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 2, 0], [-1] * 3],
            [[0, 1, 0], *[[-1] * 3] * 4],
        ],
    }
    for name, values in want.items():
        np.testing.assert_array_equal(getattr(got, name), values, err_msg=name)
        assert getattr(got, name).dtype == np.int32
    second = pack.fill(data, items, chunk, slice(1, 2))
    for whole, part in zip(got, second, strict=True):
        np.testing.assert_array_equal(part, whole[1:2])


def test_labels_by_hand(tmp_path, id_encoder, id_record):
    nan = float("nan")
    first = id_record(
        0,
        [1, 2],
        [[3], [4, 5]],
        soft=0.8,
        strength=2.0,
        weight=0.5,
        ratings={"help": (1.0, None), "care": (3.0, 4.0)},
    )
    second = id_record(
        1,
        [1, 2],
        [[3], [4, 5], [6, 7, 8]],
        ranks=(1, 0, None),
        ratings={"help": (5.0, 6.0, 7.0), "care": (None, 8.0, 9.0)},
    )
    data = cache.build([first, second], id_encoder(), tmp_path / "set", {}, {})
    items = [Item(0, (1, 0)), Item(1, (2, 0, 1)), Item(0, (0, 1))]
    chunk = pack.Chunk(Shape(1, 64, 4), ((),), (0, 1, 2))
    got = pack.labels(data, items, chunk, 4)
    assert data.meta["attributes"] == ["care", "help"]
    want = {
        "ranks": [[1, 0, -1, -1], [-1, 1, 0, -1], [0, 1, -1, -1], [-1] * 4],
        "present": [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [0] * 4],
        "soft": [0.2, nan, 0.8, nan],  # the first of them now is response 1
        "strength": [2, nan, 2, nan],
        "weight": [0.5, 1, 0.5, 0],
        "ratings": [
            [[4, nan], [3, 1], [nan] * 2, [nan] * 2],
            [[9, 7], [nan, 5], [8, 6], [nan] * 2],
            [[3, 1], [4, nan], [nan] * 2, [nan] * 2],
            [[nan] * 2] * 4,
        ],
        "lengths": [[2, 1, 0, 0], [3, 1, 2, 0], [1, 2, 0, 0], [0] * 4],
        "ids": [0, 1, 0, -1],
        "reference_logp": [[nan] * 4] * 4,
    }
    assert got.steps.shape == (4, 4, 0)
    for name, values in want.items():
        found = getattr(got, name)
        np.testing.assert_allclose(found, values, rtol=1e-6, err_msg=name)
        assert found.dtype in (np.int32, np.float32)


def test_filled_rows_hold_the_responses_and_slots_their_ends(toy_set):
    data = random_set(toy_set, 3)
    items = items_of(data, np.random.default_rng(0))
    _, chunks = lay_out(data, items)
    found = {}
    for chunk in chunks:
        batch = pack.fill(data, items, chunk)
        for b, s in zip(*np.nonzero(batch.slot_ids[..., 0] >= 0), strict=True):
            local, column, _ = batch.slot_ids[b, s]
            end = batch.slots[b, s]
            same = batch.segments[b] == batch.segments[b, end]
            branch = batch.branches[b, end]
            prompt = batch.tokens[b, same & (batch.branches[b] == 0)]
            own = same & (batch.branches[b] == branch)
            assert branch > 0 and end == np.flatnonzero(own)[-1]
            positions = batch.positions[b, own]
            np.testing.assert_array_equal(positions, len(prompt) + np.arange(own.sum()))
            found[chunk.items[local], int(column)] = (
                prompt.tolist(),
                batch.tokens[b, own].tolist(),
            )
    for i, item in enumerate(items):
        for column, j in enumerate(item.order):
            keep = int(data.per_response("prompt_keep", item.example)[j])
            assert found.pop((i, column)) == (
                data.prompt(item.example, keep).tolist(),
                data.branch(item.example, j + 1).tolist(),
            )
    assert not found
