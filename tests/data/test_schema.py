import json

import pytest

from rm_jax.data.schema import (
    Annotator,
    Message,
    Record,
    RowError,
    Step,
    record_from_dict,
    record_to_dict,
    response_text,
)

MINIMAL = {"prompt": "2 + 2?", "responses": ["4", "5"]}


def full_record() -> Record:
    return Record(
        id="7",
        source="demo",
        prompt=(Message("system", "be brief"), Message("user", "2 + 2?")),
        responses=(
            (Message("assistant", "4"),),
            (Message("assistant", "let me see"), Message("assistant", "5")),
        ),
        ranks=(0, None),
        strength=2.0,
        soft=0.75,
        annotators=(Annotator("ann", (0, 1)), Annotator("bob", (1, None))),
        ratings={"helpful": (4.0, None)},
        steps=((Step(" 4\n", 1),), (Step("let me see", None), Step("5", 0.25))),
        reference_logp=(-1.5, None),
        weight=0.5,
        meta={"lang": "en"},
    )


def test_round_trip_through_json_is_exact():
    record = full_record()
    assert record_from_dict(json.loads(json.dumps(record_to_dict(record)))) == record


def test_round_trip_of_defaults_writes_only_what_is_there():
    record = record_from_dict({**MINIMAL, "id": 3, "source": "s"})
    assert record.id == "3" and record.ranks == (None, None)
    row = record_to_dict(record)
    assert set(row) == {"id", "source", "prompt", "responses", "ranks"}
    assert record_from_dict(row) == record


def test_text_becomes_messages_of_the_right_role():
    record = record_from_dict(MINIMAL)
    assert record.prompt == (Message("user", "2 + 2?"),)
    assert record.responses[1] == (Message("assistant", "5"),)


def test_a_row_without_id_is_named_by_its_place():
    assert record_from_dict(MINIMAL, "a.jsonl:3").id == "a.jsonl:3"


def test_null_id_and_source_are_as_if_missing():
    record = record_from_dict({**MINIMAL, "id": None, "source": None}, "a.jsonl:3")
    assert (record.id, record.source) == ("a.jsonl:3", "")


def test_response_text_is_one_content_a_line():
    assert response_text(full_record().responses[1]) == "let me see\n5"


@pytest.mark.parametrize(
    ("change", "field", "why"),
    [
        ({"prompt": None}, "prompt", "want text"),
        ({"prompt": []}, "prompt", "want text"),
        ({"prompt": [{"role": "user"}]}, "prompt[0]", "role, content"),
        ({"prompt": [{"role": "bot", "content": "a"}]}, "prompt[0]", "'bot'"),
        ({"prompt": [{"role": "user", "content": 1}]}, "prompt[0]", "want text"),
        ({"responses": []}, "responses", "at least one"),
        ({"responses": "4"}, "responses", "at least one"),
        ({"responses": ["4", None]}, "responses[1]", "want text"),
        ({"responses": ["4", []]}, "responses[1]", "want text"),
        ({"ranks": [0]}, "ranks", "want 2 values"),
        ({"ranks": [0, -1]}, "ranks", "-1"),
        ({"ranks": [0, 0.5]}, "ranks", "0.5"),
        ({"ranks": [True, False]}, "ranks", "True"),
        ({"strength": float("nan")}, "strength", "finite"),
        ({"strength": "2"}, "strength", "finite"),
        ({"strength": True}, "strength", "finite"),
        ({"soft": 1.5}, "soft", "probability"),
        ({"responses": ["1", "2", "3"], "soft": 0.5}, "soft", "K = 3"),
        ({"weight": -1}, "weight", ">= 0"),
        ({"weight": None}, "weight", ">= 0"),
        ({"weight": float("inf")}, "weight", "finite"),
        ({"annotators": [{"id": "a"}]}, "annotators[0]", "ranks"),
        ({"annotators": [{"id": "a", "ranks": [0]}]}, "annotators[0]", "want 2"),
        ({"ratings": {"h": [1]}}, "ratings[h]", "want 2"),
        ({"ratings": {"h": [1, float("nan")]}}, "ratings[h]", "finite"),
        ({"steps": [[]]}, "steps", "want 2"),
        ({"steps": [[{"label": 1}], []]}, "steps[0][0]", "text"),
        ({"steps": [[{"text": "a", "label": 2}], []]}, "steps[0][0]", "2"),
        ({"steps": [[{"text": "a", "label": True}], []]}, "steps[0][0]", "True"),
        (
            {"steps": [[{"text": "4", "label": 0.5}, {"text": " "}], []]},
            "steps[0][1]",
            "without words",
        ),
        ({"steps": [[{"text": "a", "label": 1}], []]}, "steps[0][0]", "goes on with"),
        (
            {"responses": ["4 5", "5"], "steps": [[{"text": "4"}], []]},
            "steps[0][0]",
            "'5' of the response is in none",
        ),
        ({"steps": 0}, "steps", "want a list"),
        ({"reference_logp": [-1.0]}, "reference_logp", "want 2"),
        ({"reference_logp": [-1.0, "x"]}, "reference_logp", "finite"),
        ({"margin": 1}, "margin", "known fields"),
        ({"m" * 900: 1}, "m" * 900, "known fields"),
        # what json reads and UTF-8 cannot write
        ({"prompt": "a\ud800"}, "prompt", "character 1"),
        ({"responses": ["4", "\udfff"]}, "responses[1]", "not Unicode"),
        ({"prompt": [{"role": "user", "content": "\ud800"}]}, "prompt[0]", "'\\ud800'"),
        ({"id": "\ud800"}, "id", "not Unicode"),
        ({"source": "\ud800"}, "source", "not Unicode"),
        ({"annotators": [{"id": "\ud800", "ranks": [0, 1]}]}, "annotators[0]", "'\\ud"),
        ({"ratings": {"\ud800": [0, 1]}}, "ratings", "not Unicode"),
        ({"steps": [[{"text": "\ud800", "label": 1}], []]}, "steps[0][0]", "not Unic"),
        ({"meta": {"a": ["\ud800"]}}, "meta", "surrogates"),
        ({"meta": {"a": {1, 2}}}, "meta", "set is not JSON"),
        # values as long as they like
        ({"prompt": {"a": "x" * 5000}}, "prompt", "want text"),
        ({"prompt": [{"role": "r" * 5000, "content": "a"}]}, "prompt[0]", "is not one"),
        ({"ranks": [[0] * 5000] * 5000}, "ranks", "want 2 values"),
    ],
)
def test_a_bad_field_is_named_with_its_place(change, field, why):
    with pytest.raises(RowError) as error:
        record_from_dict({**MINIMAL, **change}, "a.jsonl:3")
    assert error.value.field == field and why in error.value.why
    text = str(error.value)
    assert text.startswith(f"a.jsonl:3: field {field!r:.80}")
    assert len(text) < 400 and "\n" not in text and text.encode()


@pytest.mark.parametrize("field", ["prompt", "responses"])
def test_a_missing_field_is_named(field):
    row = {key: value for key, value in MINIMAL.items() if key != field}
    with pytest.raises(RowError, match=f"'{field}': missing"):
        record_from_dict(row)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"ratings": [1, 2]}, "ratings"),
        ({"annotators": 3}, "annotators"),
        ({"steps": [3, []]}, "steps[0]"),
        ({"meta": "x"}, "meta"),
    ],
)
def test_a_field_of_the_wrong_kind_is_a_row_error(change, field):
    with pytest.raises(RowError) as error:
        record_from_dict({**MINIMAL, **change})
    assert error.value.field == field


def test_a_field_nested_deeply_is_a_row_error():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    for change in ({"prompt": nested}, {"meta": {"a": nested}}, {"ranks": nested}):
        with pytest.raises(RowError) as error:
            record_from_dict({**MINIMAL, **change})
        assert error.value.field.removesuffix("[0]") in change
        assert len(str(error.value)) < 400
