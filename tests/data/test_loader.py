"""Batches as a pure function of (seed, step), threads and hosts included."""

import collections
import threading

import jax
import numpy as np
import pytest

from rm_jax import sharding
from rm_jax.data import pack
from rm_jax.data.loader import Loader, prefetch
from rm_jax.data.order import of_one

SHAPES = pack.shapes((16, 32), 128, 4)


@pytest.fixture
def data(toy_set):
    rng = np.random.default_rng(0)
    return toy_set(
        [(int(rng.integers(1, 12)), rng.integers(1, 8, 2).tolist()) for _ in range(10)],
        max_length=32,
    )


def examples(loader, steps):
    return [item.example for step in steps for item in loader.items_at(step)]


def assert_equal(a, b):
    assert a._replace(chunks=()) == b._replace(chunks=())
    jax.tree.map(np.testing.assert_array_equal, a.chunks, b.chunks)


def test_a_batch_is_a_pure_function_of_its_step(data):
    ahead, jumping = (
        Loader(data, SHAPES, 4, of_one(len(data), 3)),
        Loader(data, SHAPES, 4, of_one(len(data), 3)),
    )
    batches = [ahead.batch_at(step) for step in range(9)]
    for step in (8, 0, 5, 5, 2, 7):
        assert_equal(jumping.batch_at(step), batches[step])


@pytest.mark.parametrize("size", [1, 3, 4, 10, 25])
def test_steps_cut_an_endless_row_of_permutations(data, size):
    loader, n = Loader(data, SHAPES, size, of_one(len(data), 1)), len(data)
    stream = examples(loader, range(-(-5 * n // size)))
    epochs = [stream[e * n : (e + 1) * n] for e in range(5)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert epochs[0] != sorted(epochs[0])
    # The row does not depend on how it is cut.
    one = Loader(data, SHAPES, 1, of_one(len(data), 1))
    assert stream == examples(one, range(len(stream)))


def test_another_seed_is_another_order(data):
    streams = {
        tuple(examples(Loader(data, SHAPES, 10, of_one(len(data), s)), [0]))
        for s in range(5)
    }
    assert len(streams) == 5


def test_each_example_has_its_own_responses_in_the_order_of_its_keys(random_set):
    data = random_set(4)
    loader = Loader(data, pack.shapes((64,), 576, 4), 50, of_one(len(data), 6))
    for step in range(3):
        keys = np.random.default_rng([6, step, 1]).random((50, data.max_responses))
        for item, key in zip(loader.items_at(step), keys, strict=True):
            k = data.count(item.example)
            assert item.order == tuple(np.argsort(key[:k]).tolist())


def test_a_step_is_exactly_its_examples(data):
    loader = Loader(data, SHAPES, 7)
    for step in range(3):
        batch = loader.batch_at(step)
        ids = np.concatenate([labels.ids for _, labels in batch.chunks])
        assert sorted(ids[ids >= 0]) == sorted(examples(loader, [step]))
        assert batch.examples == 7 and batch.weight == 7.0
        used = sum((chunk.segments > 0).sum() for chunk, _ in batch.chunks)
        size = sum(chunk.segments.size for chunk, _ in batch.chunks)
        assert batch.tokens == used and batch.padding == 1 - used / size
        for (chunk, labels), shape in zip(batch.chunks, batch.shapes, strict=True):
            assert chunk.tokens.shape == (shape.rows, shape.length)
            assert labels.ranks.shape == (shape.rows * shape.slots, 2)


def test_both_orders_of_a_pair_are_equally_likely(toy_set):
    data = toy_set([(1, [1, 1])] * 500, max_length=8)
    loader = Loader(data, pack.shapes((8,), 64, 4), 500)
    orders = {e: [i.order for i in loader.items_at(e)] for e in (0, 1)}
    for found in orders.values():
        first = sum(order == (0, 1) for order in found)
        # Binomial(500, 1/2) is within 5 standard deviations but once in 10^6.
        assert abs(first - 250) < 5 * (500 / 4) ** 0.5
        assert {order for order in found} == {(0, 1), (1, 0)}
    assert orders[0] != orders[1]
    by_example = [
        {i.example: i.order for i in loader.items_at(epoch)} for epoch in (0, 1)
    ]
    same = sum(by_example[0][i] == by_example[1][i] for i in range(500))
    assert abs(same - 250) < 5 * (500 / 4) ** 0.5  # drawn anew in every epoch


def test_every_order_of_three_is_equally_likely(toy_set):
    data = toy_set([(1, [1, 1, 1])] * 600, max_length=8)
    loader = Loader(data, pack.shapes((8,), 64, 2), 600)
    counts = collections.Counter(i.order for i in loader.items_at(0))
    assert len(counts) == 6
    assert all(abs(n - 100) < 5 * (600 * 5 / 36) ** 0.5 for n in counts.values())


def test_labels_follow_the_order(toy_set):
    data = toy_set([(2, [3, 5])] * 20, max_length=8)  # response 0 is best, of 3 tokens
    loader = Loader(data, pack.shapes((16,), 64, 4), 20)
    ranks, lengths = [], []
    for _, labels in loader.batch_at(0).chunks:
        real = labels.ids >= 0
        ranks += labels.ranks[real].tolist()
        lengths += labels.lengths[real].tolist()
    assert sorted(map(tuple, ranks))[0] == (0, 1) != sorted(map(tuple, ranks))[-1]
    for rank, length in zip(ranks, lengths, strict=True):
        assert length == ([3, 5] if rank == [0, 1] else [5, 3])


@pytest.mark.parametrize("ahead", [1, 3])
def test_prefetch_gives_the_same_batches(data, ahead):
    loader = Loader(data, SHAPES, 4)
    found = list(prefetch(loader.batch_at, 2, 9, ahead))
    assert len(found) == 7
    for step, batch in enumerate(found, start=2):
        assert_equal(batch, loader.batch_at(step))


def threads():
    return [t for t in threading.enumerate() if t.name == "rm_jax-loader"]


def assert_ended(made):
    for thread in made:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_prefetch_raises_what_its_thread_met(data, monkeypatch):
    loader = Loader(data, SHAPES, 4)
    real = loader.batch_at

    def broken(step):
        if step == 3:
            raise OSError("disk is gone")
        return real(step)

    monkeypatch.setattr(loader, "batch_at", broken)
    batches = prefetch(loader.batch_at, 0, 9, 2)
    for step in range(3):
        assert_equal(next(batches), real(step))
    made = threads()
    with pytest.raises(OSError, match="disk is gone"):
        next(batches)
    assert_ended(made)


def test_prefetch_ends_its_thread_when_closed(data):
    before = threads()
    batches = prefetch(Loader(data, SHAPES, 4).batch_at, 0, 10**9, 2)
    next(batches)
    made = [t for t in threads() if t not in before]
    assert len(made) == 1 and made[0].daemon
    batches.close()
    assert_ended(made)
    with pytest.raises(StopIteration):
        next(batches)


def test_prefetch_of_nothing(data):
    assert list(prefetch(Loader(data, SHAPES, 4).batch_at, 5, 5, 2)) == []


def test_hosts_hold_all_rows_once_and_all_labels(data):
    whole = Loader(data, SHAPES, 8).batch_at(1)
    cut = lambda n, i: lambda s: slice(s.rows // n * i, s.rows // n * (i + 1))
    hosts = [Loader(data, SHAPES, 8, rows=cut(4, i)).batch_at(1) for i in range(4)]
    for number, (batch, labels) in enumerate(whole.chunks):
        parts = [host.chunks[number] for host in hosts]
        joined = jax.tree.map(lambda *x: np.concatenate(x), *[p[0] for p in parts])
        jax.tree.map(np.testing.assert_array_equal, joined, batch)
        for _, own in parts:
            jax.tree.map(np.testing.assert_array_equal, own, labels)
    assert all(h._replace(chunks=()) == whole._replace(chunks=()) for h in hosts)


def test_local_rows_of_one_process_are_all_rows():
    for sizes in ((8, 1, 1), (2, 4, 1), (1, 2, 4)):
        mesh = sharding.make_mesh(dict(zip(sharding.AXES, (1, *sizes), strict=True)))
        assert sharding.local_rows(mesh, 16) == slice(0, 16)


@pytest.mark.parametrize(
    ("held", "want"),
    [([(4, 6), (6, 8)], slice(4, 8)), ([(2, 4), (2, 4)], slice(2, 4))],
)
def test_local_rows_of_a_process_are_those_of_its_devices(monkeypatch, held, want):
    indices = {i: (slice(*rows),) for i, rows in enumerate(held)}
    monkeypatch.setattr(
        jax.sharding.NamedSharding,
        "addressable_devices_indices_map",
        lambda self, shape: indices,
    )
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {"data": 8})
    assert sharding.local_rows(mesh, 8) == want
    indices[9] = (slice(0, 1),)
    with pytest.raises(ValueError, match="are not contiguous"):
        sharding.local_rows(mesh, 8)


def test_in_order_is_every_example_once(data):
    loader = Loader(data, SHAPES, 4)
    blocks = list(loader.in_order(block=4))
    ids = [
        np.concatenate([labels.ids[labels.ids >= 0] for _, labels in b.chunks])
        for b in blocks
    ]
    assert [sorted(i) for i in ids] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    ranks = [r for b in blocks for _, x in b.chunks for r in x.ranks[x.ids >= 0]]
    assert all(list(r) == [0, 1] for r in ranks)
    (block,) = loader.in_order(limit=3, backwards=True)
    assert block.examples == 3
    ranks = [r for _, x in block.chunks for r in x.ranks[x.ids >= 0]]
    assert all(list(r) == [1, 0] for r in ranks)
    assert sum(b.examples for b in loader.in_order(limit=99)) == 10


def test_padded_layout_is_one_response_a_row(data):
    batch = Loader(data, SHAPES, 4, layout="padded").batch_at(0)
    for chunk, _ in batch.chunks:
        assert chunk.segments.max() == 1 and chunk.branches.max() == 1
        assert ((chunk.slot_ids[..., 0] >= 0).sum(1) <= 1).all()


def test_an_example_too_large_is_refused_at_the_start(toy_set):
    data = toy_set([(20, [9, 9, 9, 9, 9])], max_length=32)
    with pytest.raises(pack.PackError, match="toy-0: .* raise config.batch.chunk_to"):
        Loader(data, pack.shapes((32,), 64, 4), 1)
