"""What a training mixture may say, from wherever it comes."""

import json

import pytest

from rm_jax import rundir
from rm_jax.config import ConfigError, load, override, validate
from rm_jax.shares import quotas


@pytest.fixture
def base():
    return load("rm_jax:base")


MIXTURE = {
    "a": {"spec": "hh:a.jsonl", "weight": 2},
    "b": {"spec": "columns:b.jsonl", "weight": 0.5, "columns": {"prompt": "q"}},
}


FILE = f"""
from rm_jax.config import load

def get_config(arg=""):
    c = load("rm_jax:base")
    c.data.train = {MIXTURE}
    return c
"""


def test_a_mixture_may_come_from_text_a_file_or_json(base, tmp_path):
    override(base, "data.train", json.dumps(MIXTURE))
    assert validate(base).data.train.to_dict() == MIXTURE
    (tmp_path / "config.json").write_text(rundir.config_text(base))
    again = load(str(tmp_path))
    assert again.to_dict() == base.to_dict()
    override(again, "data.train.a.weight", "0.25")
    assert again.data.train.a.weight == 0.25
    override(again, "data.train", "world:")
    assert validate(again).data.train == "world:"
    path = tmp_path / "mix.py"
    path.write_text(FILE)
    found = validate(load(str(path)))
    assert found.data.train.b.columns.prompt == "q"
    assert rundir.config_text(found) == rundir.config_text(validate(load(str(path))))


@pytest.mark.parametrize(
    "train, message",
    [
        ("''", "data.train = ''.*want a SPEC or a mixture"),
        ("{}", "want a SPEC or a mixture"),
        ("3", "data.train = 3: want a SPEC or a mixture"),
        ({"a": "hh:x"}, "data.train.a = 'hh:x': want {spec, weight} or {spec, count}"),
        ({"a": {"spec": "hh:x"}}, "data.train.a has no amount: want weight or count"),
        (
            {"a": {"spec": "hh:x", "weight": 1, "count": 1}},
            "data.train.a has .*weight.*count.*want weight or count",
        ),
        (
            {"a": {"spec": "hh:x", "weight": 1}, "b": {"spec": "hh:y", "count": 1}},
            "some sources have a weight and some a count",
        ),
        ({"a": {"spec": "", "weight": 1}}, "data.train.a.spec = '': want a SPEC"),
        ({"a": {"weight": 1}}, "data.train.a.spec = None: want a SPEC"),
        ({"a": {"spec": "hh:x", "weight": 0}}, "a.weight = 0: want a number above 0"),
        ({"a": {"spec": "hh:x", "weight": "2"}}, "a.weight = '2': want a number"),
        ({"a": {"spec": "hh:x", "weight": 1e999}}, "a.weight = inf: want a number"),
        ({"a": {"spec": "hh:x", "count": 1.5}}, "a.count = 1.5: want a whole number"),
        ({"a": {"spec": "hh:x", "count": True}}, "a.count = True: want a whole"),
        ({"a": {"spec": "hh:x", "wieght": 1}}, "data.train.a.wieght: unknown; a sou"),
        ({"a/b": {"spec": "hh:x", "weight": 1}}, "data.train.a/b: call it by letters"),
        (
            {"a": {"spec": "hh:x", "weight": 1, "columns": {"prompt": 3}}},
            "data.train.a.columns.prompt = 3: want text",
        ),
        (
            {"a": {"spec": "hh:x", "weight": 1, "columns": "x"}},
            "config.data.train.a.columns = 'x': want field -> column",
        ),
        (
            {"a": {"spec": "hh:x", "weight": 1, "columns": ["x"]}},
            r"config.data.train.a.columns = \('x',\): want field -> column",
        ),
        (
            {"a": {"spec": "hh:x", "weight": 1, "columns": {"prompt": {"q": "r"}}}},
            "config.data.train.a.columns.prompt = {'q': 'r'}: want text",
        ),
        ({"a": {"spec": {}, "weight": 1}}, "train.a.spec = {}: want a SPEC"),
        ({"a": {"spec": {"b": 1}, "weight": 1}}, "train.a.spec = {'b': 1}: want a SP"),
        ({"a": {"spec": "hh:x", "weight": {"b": 1}}}, "a.weight = {'b': 1}: want a n"),
        (
            {"a": {"spec": "hh:x", "weight": [1]}},
            r"train.a.weight = \(1,\): want a num",
        ),
        ({"a": {"spec": "hh:x", "count": 2**31}}, "count = 2147483648: .*2147483647"),
        ({"a": {"spec": "hh:x", "weight": 10**309}}, "a.weight = 1000.*at most 1e.308"),
        (
            {"a.b": {"spec": "hh:x", "weight": 1}},
            "train has a name 'a.b': want text wi",
        ),
        ({1: {"spec": "hh:x", "weight": 1}}, "data.train has a name 1: want text"),
        (
            {"a": {"spec": "hh:x", "weight": 1, "columns": {"p.q": "x"}}},
            "config.data.train.a.columns has a name 'p.q': want text without a dot",
        ),
        (
            {"a": {"spec": "hh:x", "weight": 1}, "b": {"spec": "hh:y", "weight": 1e-5}},
            "data.train.b.weight = 1e-05 is less than 1/10000 of all .*: leave the sou",
        ),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(base, train, message):
    base.data.train = train if isinstance(train, dict) else None
    if isinstance(train, str):
        override(base, "data.train", train)
    with pytest.raises(ConfigError, match=message):
        validate(base)


def test_the_text_of_a_mixture_in_a_file_is_no_spec(tmp_path):
    text = json.dumps({"data": {"train": json.dumps(MIXTURE)}})
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match="data.train = '{.*want .* no text of it"):
        validate(load(f"{tmp_path}/c.json"))


@pytest.mark.parametrize(
    "text",
    ['{"a": {"spec": "world:"}, "a": {"spec": "world:#train"}}', '{"a":1,"a":1}'],
)
def test_a_source_twice_is_refused(base, text):
    with pytest.raises(ConfigError, match="train = .*: the key 'a' twice in one"):
        override(base, "data.train", text)


def test_thirds_are_given_to_the_largest_remainders():
    assert quotas({"a": 1, "b": 1, "c": 1}) == {"a": 3334, "b": 3333, "c": 3333}
    assert quotas({"a": 2, "b": 1}) == {"a": 6667, "b": 3333}
    assert sum(quotas({str(i): 1 + i % 7 for i in range(41)}).values()) == 10_000
