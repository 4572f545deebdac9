"""A joined set holds every example of its sources, bit for bit, evenly interleaved."""

import json

import numpy as np
import pytest

from rm_jax.data import cache, join


@pytest.fixture
def sets(toy_set):
    rng = np.random.default_rng(0)
    draw = lambda n, k: [
        (int(rng.integers(1, 9)), rng.integers(1, 7, rng.integers(1, k + 1)).tolist())
        for _ in range(n)
    ]
    return {
        name: toy_set(draw(n, k), name=name, seed=n)
        for name, n, k in (("a", 23, 2), ("b", 5, 4), ("c", 60, 3))
    }


def facts(data, i):
    """Everything a set says of an example but where it comes from."""
    one = {n: data.arrays[n][i] for n in ("strength", "soft", "weight", "prompt_hash")}
    many = {n: data.per_response(n, i) for n in ("prompt_keep", "ranks", "gold")}
    branches = [data.branch(i, j) for j in range(data.count(i) + 1)]
    parts = [data.id(i), *one.values(), *many.values(), *branches]
    return [np.asarray(x).tolist() for x in parts]


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_every_example_is_there_as_it_was(sets, tmp_path, monkeypatch, block):
    monkeypatch.setattr(join, "BLOCK", block)
    joined = join.join(sets, tmp_path / "joined")
    assert len(joined) == 88 and joined.sources == ("a", "b", "c")
    assert joined.max_responses == 4
    assert joined.ids(88) == [joined.id(i) for i in range(88)]
    np.testing.assert_equal(
        [len(own) for _, own in join.sources_of(joined)], [23, 5, 60]
    )
    for name, own in join.sources_of(joined):
        for i, at in enumerate(own):
            np.testing.assert_equal(facts(joined, at), facts(sets[name], i))


def test_the_first_examples_hold_every_source_by_its_share(sets, tmp_path):
    joined = join.join(sets, tmp_path / "joined")
    source = np.asarray(joined.arrays["source"])
    for n in (20, 44, 70):
        counts = np.bincount(source[:n], minlength=3)
        np.testing.assert_allclose(counts, n * np.array([23, 5, 60]) / 88, atol=1)


def test_attributes_are_united(sets, tmp_path):
    rated = {}
    for name, attributes in (("a", ["honest"]), ("b", ["clear", "honest"])):
        data = sets[name]
        meta = {**data.meta, "attributes": attributes, "given": {"ranks": 3, name: 2}}
        n = len(data.arrays["ranks"])
        values = np.arange(n * len(attributes), dtype=np.float32).reshape(n, -1)
        arrays = {**data.arrays, "ratings": values}
        rated[name] = cache.TokenSet(data.directory, meta, data.tokens, arrays)
    joined = join.join(rated, tmp_path / "joined")
    assert joined.meta["attributes"] == ["clear", "honest"]
    assert joined.meta["given"] == {"a": 2, "b": 2, "ranks": 6}
    (_, of_a), (_, of_b) = join.sources_of(joined)
    got = joined.per_response("ratings", of_a[1])
    assert np.isnan(got[:, 0]).all()
    np.testing.assert_array_equal(got[:, 1:], rated["a"].per_response("ratings", 1))
    np.testing.assert_array_equal(
        joined.per_response("ratings", of_b[2]), rated["b"].per_response("ratings", 2)
    )


def test_sets_of_other_contracts_are_refused(sets, tmp_path):
    meta = {**sets["a"].meta, "truncation": {"side": "right", "bos_id": 1}}
    other = cache.TokenSet(
        sets["a"].directory, meta, sets["a"].tokens, sets["a"].arrays
    )
    with pytest.raises(cache.CacheError, match="source 'a' was tokenised with trunc"):
        join.join({"b": sets["b"], "a": other}, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_nothing_is_left_of_a_join_that_fails(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(join, "_block", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        join.join(sets, tmp_path / "new" / "joined")
    assert list((tmp_path / "new").iterdir()) == []


def test_its_meta_says_what_was_joined(sets, tmp_path):
    joined = join.join(sets, tmp_path / "joined")
    meta = json.loads((tmp_path / "joined" / "meta.json").read_text())
    of_b = meta["source"]["b"]
    assert of_b["cache"] == "b" and of_b["examples"] == 5 == len(sets["b"])
    assert {"audit", "counts", "given", "tokens"} < of_b.keys()
    assert meta["sources"] == ["a", "b", "c"]
    assert (
        meta["tokens"]
        == len(joined.tokens)
        == sum(len(d.tokens) for d in sets.values())
    )
