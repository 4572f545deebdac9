"""The arrays of a chunk, by hand, and against the token set they come from."""

import numpy as np
import pytest

from rm_jax.data import cache, chunk_arrays, pack
from rm_jax.data.pack import Item, Segment, Shape

SHAPES = pack.shapes((16, 32, 64), 576, 4)


def chunks_of(data, seed):
    """Every example, its responses in random order, and the chunks that hold them."""
    rng = np.random.default_rng(seed)
    items = [
        Item(i, tuple(rng.permutation(data.count(i)).tolist()))
        for i in range(len(data))
    ]
    groups = pack.segments(data, items, SHAPES[-1], True)
    return items, pack.layout(groups, SHAPES)


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
    got = chunk_arrays.fill(data, items, chunk)
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
    second = chunk_arrays.fill(data, items, chunk, slice(1, 2))
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
    got = chunk_arrays.labels(data, items, chunk, 4, 4)
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


def test_filled_rows_hold_the_responses_and_slots_their_ends(random_set):
    data = random_set(3, max_length=40)
    items, chunks = chunks_of(data, 0)
    found = {}
    for chunk in chunks:
        batch = chunk_arrays.fill(data, items, chunk)
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


def plain_fill(data, items, chunk, rows):
    """As `chunk_arrays.fill`, branch by branch."""
    wanted = chunk.rows[rows]
    shape = (len(wanted), chunk.shape.length)
    tokens, positions, segs, branches = (np.zeros(shape, np.int32) for _ in range(4))
    slots = np.zeros((shape[0], chunk.shape.slots), np.int32)
    slot_ids = np.full((*slots.shape, 3), -1, np.int32)
    for b, row in enumerate(wanted):
        at = slot = 0
        for number, segment in enumerate(row, start=1):
            item = items[segment.item]
            stop = at + segment.keep
            tokens[b, at:stop] = data.prompt(item.example, segment.keep)
            positions[b, at:stop] = np.arange(segment.keep)
            for branch, column in enumerate(segment.columns, start=1):
                ids = data.branch(item.example, item.order[column] + 1)
                start, stop = stop, stop + len(ids)
                tokens[b, start:stop] = ids
                positions[b, start:stop] = segment.keep + np.arange(len(ids))
                branches[b, start:stop] = branch
                slots[b, slot] = stop - 1
                slot_ids[b, slot] = (chunk.items.index(segment.item), column, 0)
                slot += 1
            segs[b, at:stop] = number
            at = stop
    return tokens, positions, segs, branches, slots, slot_ids


def plain_labels(data, items, chunk, k):
    """As `chunk_arrays.labels`, example by example."""
    e = chunk.shape.rows * chunk.shape.slots
    found = {
        "ranks": np.full((e, k), -1, np.int32),
        "present": np.zeros((e, k), np.int32),
        "lengths": np.zeros((e, k), np.int32),
        "ratings": np.full((e, k, 2), np.nan, np.float32),
        "soft": np.full((e,), np.nan, np.float32),
        "strength": np.full((e,), np.nan, np.float32),
        "weight": np.zeros((e,), np.float32),
        "ids": np.full((e,), -1, np.int32),
    }
    for row, index in enumerate(chunk.items):
        example, order = items[index]
        n, order = len(order), list(order)
        for name in ("ranks", "ratings"):
            found[name][row, :n] = data.per_response(name, example)[order]
        found["lengths"][row, :n] = data.lengths(example)[order]
        found["present"][row, :n] = 1
        p = data.arrays["soft"][example]
        found["soft"][row] = 1 - p if n == 2 and order[0] == 1 else p
        for name in ("strength", "weight"):
            found[name][row] = data.arrays[name][example]
        found["ids"][row] = example
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bos_id", [1, None])
def test_one_gather_gives_what_branch_by_branch_gives(random_set, side, bos_id):
    data = random_set(7, n=80, max_length=24, side=side, bos_id=bos_id)
    assert (data.arrays["prompt_keep"] < 24 - 20).any()
    items, chunks = chunks_of(data, 1)
    for chunk in chunks:
        n = chunk.shape.rows
        for rows in (slice(None), slice(n // 2, n), slice(n - 1, n), slice(0, 0)):
            got = chunk_arrays.fill(data, items, chunk, rows)
            for a, b in zip(got, plain_fill(data, items, chunk, rows), strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
        e = chunk.shape.rows * chunk.shape.slots
        got = chunk_arrays.labels(data, items, chunk, e, 9)
        for name, want in plain_labels(data, items, chunk, 9).items():
            assert getattr(got, name).dtype == want.dtype
            np.testing.assert_array_equal(getattr(got, name), want, err_msg=name)
