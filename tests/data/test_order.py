"""The endless row of examples: shares, laps, and that any place in it can be asked."""

import collections

import numpy as np
import pytest

from rm_jax import shares
from rm_jax.data import order


def items(found, start, stop):
    return found.items(start, stop - start).tolist()


def test_one_source_is_a_row_of_permutations():
    found = order.of_one(7, 3)
    laps = [items(found, 7 * e, 7 * e + 7) for e in range(6)]
    assert all(sorted(lap) == list(range(7)) for lap in laps)
    assert len({tuple(lap) for lap in laps}) > 4 and found.epoch == 7
    # The permutation of an epoch is that of (seed, epoch): runs made so are repeated.
    assert laps[2] == np.random.default_rng([3, 2]).permutation(7).tolist()


def mixture(sizes, amounts, counted=False, seed=0):
    ends = np.cumsum([0, *sizes.values()])
    sources = {
        name: np.arange(a, b) for name, a, b in zip(sizes, ends, ends[1:], strict=False)
    }
    return order.of_mixture(sources, amounts, counted, seed), sources


def test_weights_share_out_every_round_exactly():
    found, _ = mixture({"a": 50, "b": 1000, "c": 3}, {"a": 3, "b": 1.5, "c": 0.5})
    for r in range(2):
        row = items(found, r * shares.ROUND, (r + 1) * shares.ROUND)
        names = collections.Counter("abc"[(i >= 50) + (i >= 1050)] for i in row)
        assert names == {"a": 6000, "b": 3000, "c": 1000}
    assert found.epoch == 1053


def test_a_source_comes_whole_before_one_of_it_comes_again():
    found, sources = mixture({"a": 7, "b": 40}, {"a": 1, "b": 2})
    row = items(found, 0, 2 * shares.ROUND)
    for own in sources.values():
        seen = [i for i in row if i in set(own.tolist())]
        laps = [seen[k : k + len(own)] for k in range(0, len(seen), len(own))]
        # Inside a round the laps of a source are shuffled among each other; whole
        # rounds hold each example as often as any other, give or take one.
        counts = collections.Counter(seen)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len(counts) == len(own) and len(laps) > 2


def test_counts_are_a_fixed_choice_taken_once_an_epoch():
    found, _ = mixture({"a": 30, "b": 5}, {"a": 4, "b": 5}, counted=True)
    assert found.epoch == 9
    epochs = [sorted(items(found, 9 * e, 9 * e + 9)) for e in range(3)]
    assert epochs[0] == epochs[1] == epochs[2]
    assert epochs[0][4:] == [30, 31, 32, 33, 34] and epochs[0][3] < 30
    assert len(set(epochs[0])) == 9
    assert items(found, 0, 9) != items(found, 9, 18)
    other, _ = mixture({"a": 30, "b": 5}, {"a": 4, "b": 5}, counted=True, seed=1)
    assert sorted(items(other, 0, 9)) != epochs[0]


def test_any_place_can_be_asked_first():
    sizes, weights = {"a": 6, "b": 9}, {"a": 1, "b": 3}
    ahead, jumping = mixture(sizes, weights)[0], mixture(sizes, weights)[0]
    places = [0, 9_999, 10_000, 25_000, 123_456]
    row = {n: items(ahead, n, n + 3) for n in places}
    assert {n: items(jumping, n, n + 3) for n in reversed(places)} == row


def test_memory_holds_two_laps_of_a_kind():
    found, _ = mixture({"a": 6, "b": 9}, {"a": 1, "b": 3})
    for n in range(0, 200_000, 997):
        found.items(n, 5)
    kinds = collections.Counter(key[1:] for key in found._permutations)
    assert max(kinds.values()) <= 2


def test_amounts_that_cannot_be_had_are_refused():
    with pytest.raises(ValueError, match=r"train.b.count = 6, but 5 examples"):
        mixture({"a": 30, "b": 5}, {"a": 4, "b": 6}, counted=True)
    with pytest.raises(
        ValueError, match=r"train.b.weight = 1e-05 is less than 1/10000"
    ):
        mixture({"a": 30, "b": 5}, {"a": 1, "b": 1e-5})


def test_only_first_has_the_same_items_in_every_lap():
    whole = order.of_one(20, 3)
    few = whole.only_first(6)
    laps = [items(few, 6 * e, 6 * e + 6) for e in range(5)]
    assert all(sorted(lap) == sorted(items(whole, 0, 6)) for lap in laps)
    assert len(set(map(tuple, laps))) > 2 and few.epoch == 20


def test_weights_as_large_as_floats_go():
    huge, _ = mixture({"a": 10, "b": 10}, {"a": 1e308, "b": 1e308})
    even, _ = mixture({"a": 10, "b": 10}, {"a": 1.0, "b": 1.0})
    assert items(huge, 0, 40) == items(even, 0, 40)
