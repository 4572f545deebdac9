import collections
import gzip
import itertools
import json
import re
import sys

import pytest

from rm_jax.data.files import read_rows
from rm_jax.data.formats import FORMATS, find_format
from rm_jax.data.rows import Place
from rm_jax.data.schema import (
    Message,
    RowError,
    record_from_dict,
    record_to_dict,
    response_text,
)

PLACE = Place("demo", 4, "dir/demo.jsonl")
U, A = "\n\nHuman:", "\n\nAssistant:"


def parse(name, row, columns=None):
    return find_format(name, columns).parse(row, PLACE)


def one(name, row, columns=None):
    [record] = parse(name, row, columns)
    assert record_from_dict(record_to_dict(record)) == record
    return record


def texts(record):
    return [response_text(r) for r in record.responses]


def hh(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


def read(path, name):
    how = FORMATS[name]
    parsed = (
        record
        for number, row in read_rows(str(path))
        for record in how.parse(row, Place("s", number))
    )
    return list(how.merge(parsed) if how.merge else parsed)


# hh


def test_hh_multi_turn_prompt_is_the_shared_turns():
    start = f"{U} hi {A} hello {U}  2 + 2? \n{A}"
    record = one("hh", hh(start + " 4 ", start + " 5\n\nor 6"))
    assert record.prompt == (
        Message("user", "hi"),
        Message("assistant", "hello"),
        Message("user", "2 + 2?"),
    )
    assert texts(record) == ["4", "5\n\nor 6"]
    assert record.ranks == (0, 1) and record.meta == {}
    assert (record.id, record.source) == ("demo:4", "demo")


def test_hh_marker_counts_only_after_an_empty_line():
    say = f"{U} I wrote\nHuman: no\nAssistant: yes{A}"
    record = one("hh", hh(say + " a Human: b", say + " c"))
    assert record.prompt == (Message("user", "I wrote\nHuman: no\nAssistant: yes"),)
    assert texts(record) == ["a Human: b", "c"]


def test_hh_accepts_stripped_transcripts():
    record = one("hh", hh(f"Human: q{A} a", f"Human: q{A} b"))
    assert record.prompt == (Message("user", "q"),) and texts(record) == ["a", "b"]


def test_hh_identical_and_empty_sides_are_left_to_the_audit():
    same = one("hh", hh(f"{U} q{A} a", f"{U} q{A} a"))
    assert texts(same) == ["a", "a"] and same.meta == {}
    assert same.prompt == (Message("user", "q"),)
    empty = one("hh", hh(f"{U} q{A} a", f"{U} q{A} "))
    assert texts(empty) == ["a", ""] and empty.meta == {}


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "responses"),
    [
        # one more turn on one side: the shared turns are the prompt
        (f"{U} q{A} a", f"{U} q{A} b{A} c", ["q"], ["a", "b\nc"]),
        # one side is the beginning of the other: something is left of both
        (f"{U} q{A} a", f"{U} q{A} a{A} c", ["q"], ["a", "a\nc"]),
        # an earlier answer differs
        (f"{U} q{A} x{U} r{A} a", f"{U} q{A} y{U} r{A} b", ["q"], None),
        # nothing shared: the chosen side's prompt
        (f"{U} q{A} a", f"{U} r{A} b", ["q"], ["a", "b"]),
    ],
)
def test_hh_diverging_prompts_are_marked(chosen, rejected, prompt, responses):
    record = one("hh", hh(chosen, rejected))
    assert record.meta == {"audit": "diverging_prompts"}
    assert [m.content for m in record.prompt] == prompt
    if responses:
        assert texts(record) == responses


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"chosen": f"{U} q{A} a"}, "rejected"),
        (hh(None, f"{U} q{A} a"), "chosen"),
        (hh("hello", f"{U} q{A} a"), "chosen"),
        (hh(f"{U} q{A} a", f"x{U} q{A} a"), "rejected"),
        (hh(f"{U} q{A} a", f"{U} q{A} a{U} more"), "rejected"),
        (hh(f"{A} a", f"{A} b"), "chosen"),
        (hh("", ""), "chosen"),
    ],
)
def test_hh_bad_rows_name_place_and_field(row, field):
    with pytest.raises(RowError, match="dir/demo.jsonl:4") as error:
        parse("hh", row)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("file", "rows", "diverging"),
    [("harmless-base", 2312, 5), ("helpful-base", 2354, 9)],
)
def test_hh_real_transcripts_lose_no_text(test_data, file, rows, diverging):
    path = test_data / "hh-rlhf" / f"{file}.test.jsonl.gz"
    records = read(path, "hh")
    assert len(records) == rows
    assert sum("audit" in r.meta for r in records) == diverging
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line, record in zip(lines, records, strict=True):
            for side, response in zip(
                ("chosen", "rejected"), record.responses, strict=True
            ):
                said = {"user": "Human:", "assistant": "Assistant:"}
                turns = [*record.prompt, *response]
                rebuilt = "".join(said[m.role] + m.content for m in turns)
                original = json.loads(line)[side]
                assert "".join(rebuilt.split()) == "".join(original.split())


# trl


def test_trl_explicit_plain_with_margin_and_scores():
    row = {"prompt": "q", "chosen": " a", "rejected": "b", "margin": 2}
    record = one("trl", {**row, "score_chosen": 4.5, "score_rejected": None, "id": 9})
    assert record.prompt == (Message("user", "q"),) and texts(record) == [" a", "b"]
    assert record.strength == 2.0 and record.ratings == {"score": (4.5, None)}
    assert record.id == "9" and record.ranks == (0, 1)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is "),
        # common prefix "A: ye" would cut a word
        ("Q: hi A: yes", "Q: hi A: yet", "Q: hi A: "),
        # one is a prefix of the other: something is left of both
        ("say it now", "say it now please", "say it "),
        ("same old text", "same old text", "same old "),
        ("line one\nyes", "line one\nno", "line one\n"),
    ],
)
def test_trl_implicit_plain_cuts_at_a_whitespace(chosen, rejected, prompt):
    record = one("trl", hh(chosen, rejected))
    assert record.prompt[0].content == prompt
    assert [prompt + text for text in texts(record)] == [chosen, rejected]
    assert all(texts(record))


def test_trl_conversational_explicit():
    q = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    a, b = ([{"role": "assistant", "content": c}] for c in "ab")
    record = one("trl", {"prompt": q, "chosen": a, "rejected": b})
    assert [m.role for m in record.prompt] == ["system", "user"]
    assert texts(record) == ["a", "b"]


@pytest.mark.parametrize("prompt", ["none", "text", "messages"])
def test_trl_whole_conversations_share_the_prompt(prompt):
    q = {"role": "user", "content": "q"}
    row = hh(
        [{**q, "name": "x"}, {"role": "assistant", "content": "a"}],
        [q, {"role": "assistant", "content": "b"}],
    )
    row |= {"none": {}, "text": {"prompt": "q"}, "messages": {"prompt": [q]}}[prompt]
    record = one("trl", row)
    assert record.prompt == (Message("user", "q"),)
    assert texts(record) == ["a", "b"] and record.meta == {}


def test_trl_conversations_with_different_questions_are_marked():
    def conversation(question):
        said = ["hi", "hello", question, "answer"]
        roles = ["user", "assistant"] * 2
        return [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]

    record = one("trl", hh(conversation("q"), conversation("r")))
    assert record.meta == {"audit": "diverging_prompts"} and len(record.prompt) == 2


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "q", "chosen": "a"}, "rejected"),
        ({"prompt": "q", "chosen": "a", "rejected": 3}, "rejected"),
        ({"prompt": "q", "chosen": "a", "rejected": []}, "rejected"),
        ({"prompt": "q", "chosen": [{"role": "assistant"}], "rejected": []}, None),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt"),
        (hh("yes", "no"), "prompt"),
        (hh([{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]), 0),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "x"}, "strength"),
    ],
)
def test_trl_bad_rows_are_row_errors(row, field):
    with pytest.raises(RowError) as error:
        parse("trl", row)
    if field:
        assert error.value.field == field


def test_trl_prompt_of_the_wrong_kind_beside_conversations_is_a_row_error():
    a = [{"role": "assistant", "content": "a"}]
    with pytest.raises(RowError) as error:
        parse("trl", {"prompt": 3, "chosen": a, "rejected": a})
    assert error.value.field == "prompt"


# truthfulqa_judge


def judge(question, answer, label, axis="True"):
    return {"prompt": f"Q: {question}\nA: {answer}\n{axis}:", "completion": label}


def merged(rows):
    how = FORMATS["truthfulqa_judge"]
    parsed = (r for i, row in enumerate(rows, 1) for r in how.parse(row, Place("t", i)))
    return list(how.merge(parsed))


def test_truthfulqa_rows_of_a_question_become_one_record():
    records = merged(
        [
            judge("q", "yes it is", " yes"),
            judge("other", "x", " no"),
            judge("q", "no", " no"),
            judge("q", "both", " yes"),
            judge("q", " yes it is ", " yes"),  # again
            judge("q", "both", " no"),
            judge("q", "helped", " yes", axis="Helpful"),
        ]
    )
    assert [r.source for r in records] == ["t/true", "t/true", "t/helpful"]
    assert [r.id for r in records] == ["t:1", "t:2", "t:7"]
    assert texts(records[0]) == ["yes it is", "no", "both"]
    assert records[0].ranks == (0, 1, None)
    assert records[0].meta == {"audit": "conflict", "conflicts": 1}
    assert records[1].meta == {} and records[1].ranks == (1,)


def test_truthfulqa_answer_may_hold_markers_of_its_own():
    [record] = merged([judge("q", "x\nA: y\nTrue: z", " no")])
    assert record.prompt[0].content == "q" and texts(record) == ["x\nA: y\nTrue: z"]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "Q: q\nA: a\n", "completion": " yes"}, "prompt"),
        (judge("q", "a", "maybe"), "completion"),
        ({"prompt": "Q: q\nA: a\nTrue:"}, "completion"),
    ],
)
def test_truthfulqa_bad_rows(row, field):
    with pytest.raises(RowError) as error:
        parse("truthfulqa_judge", row)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("file", "axis", "conflicts"),
    [("finetune_truth", "true", 25), ("finetune_info", "helpful", 45)],
)
def test_truthfulqa_real_data(test_data, file, axis, conflicts):
    path = test_data / "truthfulqa-judge" / f"{file}.jsonl.gz"
    records = read(path, "truthfulqa_judge")
    assert len(records) == len({r.prompt for r in records}) == 736
    assert {r.source for r in records} == {f"s/{axis}"}
    assert sum(r.meta.get("conflicts", 0) for r in records) == conflicts
    assert sum(r.ranks.count(None) for r in records) == conflicts
    # Counted by hand from the rows, without the parser: (question, answer) as one text.
    labels = collections.defaultdict(set)
    for _, row in read_rows(str(path)):
        labels[row["prompt"].rpartition("\n")[0]].add(row["completion"])
    assert sum(len(r.responses) for r in records) == len(labels) == 16457
    assert max(len(r.responses) for r in records) == 42
    best = sum(r.ranks.count(0) for r in records)
    assert best == sum(v == {" yes"} for v in labels.values())


# oasst


def node(id, role, *replies, rank=None, **more):
    return {
        "message_id": id,
        "role": role,
        "text": f"text {id}",
        "replies": list(replies),
        "rank": rank,
        **more,
    }


def tree():
    deep = node(
        "p2",
        "prompter",
        node("d1", "assistant", rank=1, lang="en"),
        node("d2", "assistant", rank=0, lang="de", deleted=True),
    )
    later = node("p3", "prompter", *(node(c, "assistant", rank=0) for c in "xy"))
    return node(
        "root",
        "prompter",
        node("a1", "assistant", deep, rank=0),
        node("a2", "assistant", later, rank=1),
        node("a3", "assistant"),
    )


@pytest.mark.parametrize("wrapped", [True, False], ids=["tree", "message"])
def test_oasst_every_node_with_ranked_replies_is_a_record(wrapped):
    row = {"message_tree_id": "root", "prompt": tree()} if wrapped else tree()
    top, deep, later = parse("oasst", row)
    assert (top.id, deep.id, later.id) == ("root", "p2", "p3")  # as in the text
    assert top.ranks == (0, 1, None) and deep.ranks == (1, 0)
    assert texts(top) == ["text a1", "text a2", "text a3"]
    assert deep.prompt == (
        Message("user", "text root"),
        Message("assistant", "text a1"),
        Message("user", "text p2"),
    )
    assert deep.meta["lang"] == ["en", "de"] and deep.meta["deleted"] == [False, True]
    assert top.meta["tree"] == deep.meta["tree"] == "root"


def test_oasst_one_rank_or_one_reply_is_no_record():
    a = node("a", "assistant", rank=0)
    assert parse("oasst", node("r", "prompter", a)) == []
    assert parse("oasst", node("r", "prompter", a, node("b", "assistant"))) == []


PAIR = (node("a", "assistant", rank=0), node("b", "assistant", rank=1))


@pytest.mark.parametrize(
    ("row", "field", "why"),
    [
        ({"message_id": "m", "role": "prompter", "text": "flat"}, "replies", "whole"),
        ({"prompt": "text"}, "replies", "whole"),
        (node("r", "wizard"), "role", "'wizard'"),
        (node("r", ["prompter"]), "role", "want text, got ['prompter']"),
        (node("r", "prompter", node("a", "assistant", text=None)), "text", "None"),
        (node("r", "prompter", {"role": "assistant"}), "text", "missing"),
        (node("r", "prompter", node("a", "assistant", text="\ud800")), "text", "Unic"),
        (node("r", "prompter", node("a", None)), "role", "None"),
        *(
            (node("r", "prompter", replies=replies), "replies", f"got {replies!r}")
            for replies in ("x", {"a": 1}, 0, False)
        ),
        *(
            (node("r", "prompter", reply, *PAIR), "replies", f"got {reply!r}")
            for reply in ("x", 3, None, [3])
        ),
        *(
            (node("r", "prompter", node("a", role, rank=rank)), "rank", f"{rank!r}")
            for role in ("assistant", "prompter")
            for rank in ("0", True, 0.5, -1, [0])
        ),
        (node(3, "prompter", *PAIR), "message_id", "got 3"),
        ({"message_tree_id": [1], "prompt": tree()}, "message_tree_id", "got [1]"),
    ],
)
def test_oasst_bad_trees_are_row_errors(row, field, why):
    with pytest.raises(RowError, match="dir/demo.jsonl:4") as error:
        parse("oasst", row)
    assert error.value.field == field and why in error.value.why


def test_oasst_trees_are_as_deep_as_they_like_but_end():
    deep = node("end", "prompter", *PAIR)
    for i in range(400):
        deep = node(f"{i}", "prompter", node("a", "assistant", deep))
    [record] = parse("oasst", deep)
    assert len(record.prompt) == 801
    deep["replies"][0]["replies"] = [deep]  # no file can, a Python row can
    with pytest.raises(RowError, match="'replies': .*more than 1000 messages"):
        parse("oasst", deep)


@pytest.mark.parametrize("file", ["tree", "message"])
def test_oasst_real_trees(test_data, file):
    records = read(test_data / "oasst-trees" / f"en_100_{file}.jsonl.gz", "oasst")
    assert len(records) == len({r.id for r in records}) == 212
    pairs = sum(
        a is not None and b is not None and a != b
        for r in records
        for a, b in itertools.combinations(r.ranks, 2)
    )
    assert pairs == 754  # as published with the data
    assert all(r.prompt[-1].role == "user" for r in records)


# jsonl, columns, hf, functions


def test_jsonl_takes_name_and_place_where_the_row_has_none():
    record = one("jsonl", {"prompt": "q", "responses": ["a"], "id": None})
    assert (record.id, record.source) == ("demo:4", "demo")
    assert one("jsonl", record_to_dict(record)) == record


def test_columns_of_a_pair():
    columns = {
        "prompt": "question",
        "chosen": "good.text",
        "rejected": "all.1.text",
        "strength": "a.b",
        "id": "key",
        "soft": "p",
        "weight": "w",
    }
    row = {
        "question": "q",
        "good": {"text": "a"},
        "all": [{"text": "z"}, {"text": "b"}],
        "a.b": 3,
        "key": 12,
        "p": 0.9,
        "w": None,
        "unused": 1,
    }
    record = one("columns", row, columns)
    assert texts(record) == ["a", "b"] and record.prompt[0].content == "q"
    assert record.strength == 3.0 and record.id == "12" and record.soft == 0.9
    assert record.weight == 1.0  # null is not given


def test_columns_of_a_pair_without_prompt_share_it():
    record = one(
        "columns", {"x": "a b c", "y": "a b d"}, {"chosen": "x", "rejected": "y"}
    )
    assert record.prompt[0].content == "a b " and texts(record) == ["c", "d"]


def test_columns_of_a_ranking():
    columns = {"prompt": "q", "responses": "answers", "ranks": "order", "weight": "w"}
    row = {"q": "?", "answers": ["a", "b", "c"], "order": [2, 0, 0], "w": None}
    record = one("columns", row, columns)
    assert record.ranks == (2, 0, 0) and record.id == "demo:4"
    assert record.weight == 1.0


def test_unknown_column_lists_the_columns_of_the_row():
    columns = {"prompt": "q.x", "chosen": "a", "rejected": "b"}
    with pytest.raises(RowError, match=r"no column 'q.x'; the row has \['a', 'q'\]"):
        parse("columns", {"a": "1", "q": "2"}, columns)


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"prompt": "q", "chosen": "a"}, "rejected"),
        ({"prompt": "q"}, "responses"),
        ({"responses": "q"}, "prompt"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "ranks": "r"}, "ranks"),
        ({"prompt": "q", "responses": "a", "margin": "b"}, "margin"),
        ({}, "prompt"),
        ({3: "q", "chosen": "a", "rejected": "b"}, 3),
        ({("a", "b"): "q", None: "a"}, None),
    ],
)
def test_a_column_map_that_makes_no_record_is_refused(columns, named):
    with pytest.raises(ValueError, match=f"(unknown|missing) fields.*{named!r}"):
        find_format("columns", columns)


@pytest.mark.parametrize("column", [3, True, None, ["q"], {"a": "b"}, ""])
def test_a_column_that_is_no_name_is_refused(column):
    said = re.escape(f"columns: 'prompt': {column!r}: want the name of a column")
    with pytest.raises(ValueError, match=said):
        find_format("columns", {"prompt": column, "chosen": "a", "rejected": "b"})


@pytest.mark.parametrize("columns", [["prompt"], "prompt", 3])
def test_a_column_map_that_is_no_map_is_refused(columns):
    for name in ("columns", "hf", "jsonl"):
        with pytest.raises(ValueError, match="columns.*: want field -> column"):
            find_format(name, columns)


def test_columns_for_another_format_are_refused():
    with pytest.raises(ValueError, match="'hh' takes no columns"):
        find_format("hh", {"prompt": "q"})


@pytest.mark.parametrize(
    "row",
    [
        hh(f"{U} q{A} a", f"{U} q{A} b"),
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "responses": ["a", "b"], "ranks": [0, 1]},
    ],
)
def test_hf_tells_the_format_by_the_columns(row):
    record = one("hf", row)
    assert record.prompt == (Message("user", "q"),) and texts(record) == ["a", "b"]


def test_hf_that_cannot_tell_lists_the_columns():
    with pytest.raises(RowError, match=r"among columns \['text'\]"):
        parse("hf", {"text": "a"})


def test_hf_with_columns_is_a_column_map():
    columns = {"prompt": "p", "chosen": "x", "rejected": "y"}
    assert texts(one("hf", {"p": "q", "x": "a", "y": "b"}, columns)) == ["a", "b"]


@pytest.fixture
def plugin(monkeypatch, tmp_path):
    (tmp_path / "my_formats.py").write_text(
        "from rm_jax.data.schema import Message, Record, RowError\n"
        "def rows(row):\n"
        "    if row['q'] == 'bad':\n"
        "        raise RowError('', 'q', 'is bad')\n"
        "    answers = tuple((Message('assistant', a),) for a in row['a'])\n"
        "    prompt = (Message('user', row['q']),)\n"
        "    return [Record('', '', prompt, answers, tuple(range(len(answers))))]\n"
        "def wrong(row):\n"
        "    return row\n"
        "def rows_of(row):\n"
        "    yield row\n"
        "def broken(row):\n"
        "    return eval(row['code'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_formats"
    sys.modules.pop("my_formats", None)


def test_a_function_from_outside_is_a_format(plugin):
    record = one(f"{plugin}:rows", {"q": "q", "a": ["x", "y", "z"]})
    assert texts(record) == ["x", "y", "z"] and record.source == "demo"
    assert record.id == "demo:4.0"
    assert len(find_format(f"{plugin}:rows").code) == 64


def test_errors_of_a_function_from_outside_name_the_row(plugin):
    with pytest.raises(RowError, match="dir/demo.jsonl:4: field 'q': is bad"):
        parse(f"{plugin}:rows", {"q": "bad"})
    with pytest.raises(RowError, match="dir/demo.jsonl:4.*KeyError"):
        parse(f"{plugin}:rows", {"q": "q"})


RECORD = "[Record(id='', source='', prompt={}, responses={}, ranks={}, weight={})]"
MESSAGES = "(Message('user', 'q'),)", "((Message('assistant', 'a'),),)", "(0,)"


@pytest.mark.parametrize(
    ("code", "field", "say"),
    [
        ("row['no']", "row", "KeyError: 'no'"),
        ("1 + 'a'", "row", "TypeError: unsupported operand"),
        ("1 / 0", "row", "ZeroDivisionError"),
        ("broken(row)", "row", "RecursionError"),
        ("int('x\\ny' * 999)", "row", "ValueError: invalid literal"),
        ("None", "row", "must return a list of Records, got None"),
        ("(1,)", "row", "must return a list of Records, got (1,)"),
        ("[1, 2]", "row", "must return a list of Records, got 1"),
        (RECORD.format("'q'", *MESSAGES[1:], 1), "row", "AttributeError"),
        (RECORD.format(*MESSAGES[:2], "(0, 1)", 1), "ranks", "want 1 values"),
        (RECORD.format(*MESSAGES, "float('nan')"), "weight", "nan"),
        (RECORD.format(*MESSAGES, "-1"), "weight", ">= 0, got -1"),
        (RECORD.format(*MESSAGES, "float('inf')"), "weight", "inf"),
    ],
)
def test_whatever_a_function_from_outside_does_is_a_row_error(plugin, code, field, say):
    with pytest.raises(RowError) as error:
        parse(f"{plugin}:broken", {"code": code})
    assert (error.value.where, error.value.field) == (str(PLACE), field)
    assert "my_formats:broken" in error.value.why and say in error.value.why
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_generator_is_no_list(plugin):
    with pytest.raises(RowError, match="my_formats:rows_of.*list of Records, got <gen"):
        parse(f"{plugin}:rows_of", {})


@pytest.mark.parametrize("code", ["def f(:", "raise RuntimeError('gone')", "1 / 0"])
def test_a_module_that_cannot_be_imported_is_named(monkeypatch, tmp_path, code):
    (tmp_path / "my_broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ValueError, match="'my_broken:f' .*(Syntax|Runtime|Zero).*known"
    ):
        find_format("my_broken:f")


@pytest.mark.parametrize(
    "name", ["nope", "no_such.module:f", "json:no_such", "json:decoder", "math:sqrt"]
)
def test_unknown_formats_list_the_known(name):
    with pytest.raises(ValueError, match=f"{name}.*known.*truthfulqa_judge"):
        find_format(name)


def test_place_in_ids_has_no_folders():
    assert (str(PLACE), PLACE.id) == ("dir/demo.jsonl:4", "demo:4")
    assert str(Place("s", 2)) == "s:2"
