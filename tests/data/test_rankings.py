import pytest

from rm_jax.data.rankings import apart, pairs_of
from rm_jax.data.schema import Annotator, Message, Record, Step
from rm_jax.data.sources import open_source


@pytest.fixture
def record():
    return Record(
        id="r",
        source="s",
        prompt=(Message("user", "q"),),
        responses=tuple((Message("assistant", c),) for c in "abcd"),
        ranks=(3, 0, None, 3),
        strength=2.0,
        annotators=(Annotator("x", (1, None, 0, 5)),),
        ratings={"help": (4.0, 3.0, 2.0, None)},
        steps=((Step("a", 1.0),), (), (), (Step("d", 0.0),)),
        reference_logp=(-1.0, -2.0, -3.0, -4.0),
        weight=0.5,
        meta={"gold": [1.0, 2.0, 3.0, 4.0], "topic": "abcd", "list": [1, 2]},
    )


def test_each_two_ranked_responses_become_an_example(record):
    found = list(pairs_of(record))
    assert [r.id for r in found] == ["r/0-1", "r/0-3", "r/1-3"]
    said = ["".join(m.content for (m,) in r.responses) for r in found]
    assert said == ["ab", "ad", "bd"]
    assert [r.ranks for r in found] == [(1, 0), (0, 0), (0, 1)]


def test_what_is_of_a_response_follows_it(record):
    *_, last = pairs_of(record)
    assert last.ratings == {"help": (3.0, None)}
    assert last.annotators == (Annotator("x", (None, 0)),)
    assert last.steps == ((), (Step("d", 0.0),))
    assert last.reference_logp == (-2.0, -4.0)
    assert last.meta == {"gold": [2.0, 4.0], "topic": "abcd", "list": [1, 2]}
    assert (last.weight, last.strength, last.prompt) == (0.5, 2.0, record.prompt)


def test_pairs_and_what_is_not_ranked_stay_as_they_are(record):
    import dataclasses

    one = dataclasses.replace(record, ranks=(None, 0, None, None))
    assert list(pairs_of(one)) == [one]
    *_, pair = pairs_of(record)
    assert list(pairs_of(pair)) == [pair]


def test_a_source_is_read_again_and_has_its_own_fingerprint():
    spec, knobs = "world:#valid", {"valid": 5, "responses": 4, "train": 0, "test": 0}
    whole = open_source(spec, world=knobs)
    found = apart(open_source(spec, world=knobs))
    assert found.fingerprint != whole.fingerprint
    assert found.info["fingerprint"] == found.fingerprint
    first = list(found.records())
    assert len(first) == 5 * 6 and first == list(found.records())
    assert len({r.id for r in first}) == 30
    gold = [r.meta["gold"] for r in first[:6]]
    (a, b, c, d) = next(whole.records()).meta["gold"]
    assert gold == [[a, b], [a, c], [a, d], [b, c], [b, d], [c, d]]
