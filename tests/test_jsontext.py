"""JSON of people: the same values as the standard reader, or an error with a place."""

import json

import pytest

from rm_jax.jsontext import read, read_object


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2.5, null], "b": {"a": "é\\n"}}', "[]", '"x"', " 3 ", "true"]
)
def test_it_reads_what_json_reads(text):
    assert read(text) == json.loads(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{'a': 1}", r"not JSON: .*line 1 column 2.*, at \"'a': 1}\""),
        ('{"a": 1,\n b}', "line 2 column 2"),
        ('{"b": {"a": 1, "a": 1}}', "the key 'a' twice"),
        ('{"a.b": 1}', "the key 'a.b' has a dot"),
        ("[NaN]", "NaN is not JSON: want a finite number"),
        ("-Infinity", "-Infinity is not JSON"),
        ("[" * 10**5, "nested too deep"),
        ("", "not JSON"),
    ],
)
def test_what_json_does_not_say_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read(text)
    with pytest.raises(ValueError, match=f"--flag = .*{message}"):
        read_object("--flag", text)


def test_a_flag_wants_an_object():
    assert read_object("--flag", '{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError, match=r'--flag = .\[1\].: no object; want {"name"'):
        read_object("--flag", "[1]")
