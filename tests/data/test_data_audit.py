import collections
import dataclasses
import functools
import itertools
import random
import string
import sys

import pytest

from rm_jax.data import conflicts
from rm_jax.data.audit import DEFAULT_POLICY, audit, without_empty
from rm_jax.data.schema import Annotator, Message, Record, Step
from rm_jax.data.sources import open_source
from rm_jax.data.spill import Flags, Spill

KEEP = dict.fromkeys(DEFAULT_POLICY, "keep")
NUMBER = itertools.count()


def record(responses=("a", "b"), ranks=None, prompt="q", **more):
    return Record(
        id=more.pop("id", f"r{next(NUMBER)}"),
        source="s",
        prompt=(Message("user", prompt),),
        responses=tuple((Message("assistant", r),) for r in responses),
        ranks=tuple(range(len(responses))) if ranks is None else ranks,
        **more,
    )


def counts(*records, policy=KEEP):
    found = audit(lambda: iter(records), policy).report.counts
    return {kind: n for kind, n in found.items() if n}


@pytest.fixture(params=[1, 3, None])
def in_runs(request, monkeypatch):
    """What is kept on disk goes there a few at a time, or all at once."""
    if request.param:
        spill = functools.partial(Spill, run=request.param)
        for module in (audit.__module__, conflicts.__name__):
            monkeypatch.setattr(sys.modules[module], "Spill", spill)
        flags = functools.partial(Flags, block=request.param)
        monkeypatch.setattr(sys.modules[audit.__module__], "Flags", flags)


@pytest.mark.parametrize(
    ("one", "kinds"),
    [
        (record(), set()),
        (record(("a", " a\n")), {"identical_responses"}),
        (record(("a", "a", "a")), {"identical_responses"}),
        (record(("a", "b", "c")), set()),
        (record(prompt=" "), {"empty_side"}),
        (record(("a", " ")), {"empty_side"}),
        (record(("", "")), {"empty_side", "identical_responses"}),
        (record(ranks=(0, 0)), {"tied"}),
        (record(ranks=(0, 0), soft=0.5), {"tied"}),
        (record(ranks=(None, None), soft=0.5), {"tied"}),
        (record(ranks=(0, None), soft=0.7), set()),
        (record(ranks=(0, 0), ratings={"h": (1.0, None)}), set()),
        (record(("a", "b", "c"), (1, 1, 0)), set()),
        (record(("a", "b", "c"), (1, 1, None)), {"tied"}),
        (record(weight=1e-9), set()),
        (record(ranks=(0, None)), {"unlabelled"}),
        (record(ranks=(0, None), ratings={"h": (1.0, None)}), set()),
        (record(ranks=(0, None), ratings={"h": (None, None)}), {"unlabelled"}),
        (record(("a",), (0,), steps=((Step("s", 1),),)), set()),
        (record(("a",), (0,), steps=((Step("s", None),),)), {"unlabelled"}),
        (record(ranks=(None, None), soft=0.7), set()),
        (record(("a",)), {"unlabelled"}),
        (record(meta={"audit": "diverging_prompts"}), {"diverging_prompts"}),
        (record(meta={"audit": "conflict"}), {"conflict"}),
        (record(meta={"audit": "a note"}), set()),
        # one text with two ranks, beside another: it contradicts itself
        (record(("a", "a", "b"), (0, 1, 2)), {"conflict"}),
        (record(("a", "b", "a"), (0, 1, 2)), {"conflict"}),
        (record(("a", "a", "b"), (0, 0, 1)), set()),
        (record(("a", "b", "a"), (0, 1, None)), set()),
    ],
)
def test_kinds_of_one_record(one, kinds):
    assert counts(one) == dict.fromkeys(kinds, 1)


def test_conflict_between_records_counts_every_record_in_it():
    ab, ba = record(("a", "b")), record(("b", "a"))
    assert counts(ab, ba) == {"conflict": 2}
    assert counts(ab, record(("a", "b"), (1, 0))) == {"conflict": 2}
    # in a ranking of three
    assert counts(ab, record(("c", "b", "a"))) == {"conflict": 2}
    # a soft label decides where ranks do not
    assert counts(ab, record(ranks=(None, None), soft=0.2)) == {"conflict": 2}
    assert counts(ab, record(ranks=(None, None), soft=0.8)) == {}
    assert counts(ab, record(ranks=(None, None), soft=0.5)) == {"tied": 1}


@pytest.mark.parametrize(
    "other",
    [
        record(("b", "a"), prompt="another"),
        record(("b", "c")),
        record(("b", "a"), (0, 0)),
        record(("b", "a"), (0, None)),
    ],
)
def test_what_is_no_conflict(other):
    assert "conflict" not in counts(record(("a", "b")), other)


@pytest.mark.usefixtures("in_runs")
def test_duplicates_are_the_later_copies_in_any_order():
    first = record(("a", "b"), id="first")
    swapped = record(("b", "a"), (1, 0), id="swapped")
    again = record((" a", "b\n"), id="again")
    other = record(("a", "b"), prompt="p")
    report = audit(lambda: [first, swapped, other, again], {"duplicate": "drop"})
    assert report.report.counts["duplicate"] == 2
    assert report.report.examples["duplicate"] == ("swapped", "again")
    assert list(report.records()) == [first, other]


def test_a_ranking_in_another_order_is_a_duplicate():
    first, turned = record(("a", "b", "c")), record(("b", "c", "a"), (1, 2, 0))
    assert counts(first, turned) == {"duplicate": 1}
    assert "duplicate" not in counts(first, record(("b", "c", "a"), (2, 1, 0)))


def test_other_labels_are_no_duplicate():
    soft = [record(ranks=(None, None), soft=p) for p in (0.9, 0.6)]
    assert counts(*soft) == {}
    mirrored = record(("b", "a"), (None, None), soft=0.1)
    assert counts(soft[0], mirrored) == {"duplicate": 1}
    tie, win = record(ranks=(0, 0)), record()
    assert "duplicate" not in counts(tie, win)


@pytest.mark.usefixtures("in_runs")
def test_report_and_stream_under_the_default_policy():
    bad = record(("a", "a"), id="bad")
    none = [record((f"{i}", "x"), (0, None), id=f"none{i}") for i in range(7)]
    good = [record((f"{i}", "y")) for i in range(3)]
    audited = audit(lambda: [bad, *none, *good], {})
    report = audited.report
    assert (report.total, report.kept) == (11, 3)
    assert report.counts["unlabelled"] == 7
    assert report.examples["unlabelled"] == tuple(f"none{i}" for i in range(5))
    assert report.policy == DEFAULT_POLICY
    assert list(audited.records()) == good == list(audited.records())
    lines = report.lines()
    assert lines[0] == "audit: 11 records, 3 kept"
    assert lines[1].split() == ["identical_responses", "1", "drop", "bad"]
    assert len(lines) == 1 + len(DEFAULT_POLICY)
    assert [line.rstrip() for line in lines] == lines


@pytest.mark.usefixtures("in_runs")
def test_ids_of_conflicts_are_the_first_five():
    records = [record(r, id=f"{i}") for i, r in enumerate([("a", "b"), ("b", "a")] * 4)]
    marked = record(("c", "d"), id="marked", meta={"audit": "conflict"})
    report = audit(lambda: [*records, marked], KEEP).report
    assert report.counts["conflict"] == 9
    assert len(report.examples["conflict"]) == 5
    assert report.examples["conflict"] == ("marked", "0", "1", "2", "3")


def test_a_conflict_that_is_marked_and_found_is_listed_once():
    marked = record(id="marked", meta={"audit": "conflict"})
    report = audit(lambda: [marked, record(("b", "a"), id="other")], KEEP).report
    assert report.counts["conflict"] == 2
    assert report.examples["conflict"] == ("marked", "other")


@pytest.mark.usefixtures("in_runs")
def test_a_large_ranking_loses_only_its_empty_responses():
    full = record(("a", "", "b", " "), (0, 1, 2, 3), id="k4")
    audited = audit(lambda: [full], {})
    assert audited.report.counts["empty_side"] == 1
    assert (audited.report.kept, audited.report.trimmed) == (1, 1)
    [kept] = audited.records()
    assert kept == record(("a", "b"), (0, 2), id="k4")
    assert "1 of them without their empty responses" in audited.report.lines()[0]
    [untouched] = audit(lambda: [full], {"empty_side": "keep"}).records()
    assert untouched == full


@pytest.mark.parametrize(
    "whole",
    [
        record(("a", "", " "), (0, 1, 2)),  # one response is left
        record(("a", "b", ""), (None, 0, 1)),  # one rank is left
        record(("a", "b", ""), (0, 0, 1)),  # a tie is left
        record(("a", "b", ""), prompt=""),  # the prompt is empty
        record(("a", "")),  # a pair
    ],
)
def test_where_too_little_is_left_the_record_goes(whole):
    good = record(("x", "y"), prompt="other")
    audited = audit(lambda: [whole, good], {})
    assert list(audited.records()) == [good] and audited.report.trimmed == 0


def test_without_empty_takes_all_that_is_said_about_a_response():
    steps = tuple((Step(t, 1),) for t in ("s", "t", "u"))
    one = record(("a", "", "c"), steps=steps, ratings={"h": (1.0, 2.0, 3.0)})
    one = dataclasses.replace(one, annotators=(Annotator("x", (2, 1, 0)),))
    rest = without_empty(one)
    assert rest.ranks == (0, 2) and rest.ratings == {"h": (1.0, 3.0)}
    assert rest.steps == (steps[0], steps[2])
    assert rest.annotators == (Annotator("x", (2, 0)),)


def test_raise_names_kind_count_and_ids():
    bad = record(("a", "a"), id="bad")
    with pytest.raises(ValueError, match="1 of 2 records are identical.*: bad;.*drop"):
        audit(lambda: [bad, record()], {"identical_responses": "raise"})
    assert audit(lambda: [record()], {"identical_responses": "raise"}).report.kept == 1


def test_nothing_left_is_an_error():
    with pytest.raises(ValueError, match="no records left.*unlabelled +1 +drop"):
        audit(lambda: [record(ranks=(0, None))], {})


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"typo": "drop"}, "unknown kind 'typo'; known.*'conflict'"),
        ({"conflict": "delete"}, "conflict 'delete' is not one of"),
    ],
)
def test_policy_is_checked_before_reading(policy, message):
    def unread():
        raise AssertionError("was read")

    with pytest.raises(ValueError, match=message):
        audit(unread, policy)


def test_lone_surrogates_do_not_stop_the_audit():
    assert counts(record(("\ud800", "b"))) == {}


def naive(records):
    """Records of kind conflict and duplicate, from sets of texts."""
    pairs = []
    for r in records:
        said = [x[0].content for x in r.responses]
        both = itertools.permutations(range(len(said)), 2)
        pairs.append({(said[i], said[j]) for i, j in both if r.ranks[i] < r.ranks[j]})
    seen = set().union(*pairs)
    conflict = [i for i, p in enumerate(pairs) if any((b, a) in seen for a, b in p)]
    keys = [
        tuple(sorted(zip((x[0].content for x in r.responses), r.ranks, strict=True)))
        for r in records
    ]
    return conflict, [i for i, k in enumerate(keys) if k in keys[:i]]


@pytest.mark.usefixtures("in_runs")
def test_hashes_agree_with_a_comparison_of_texts():
    # Each record a permutation of three of twelve texts: no text twice in one record.
    chosen = list(itertools.permutations("abcdefghijkl", 3))[::53]
    records = [record(texts, id=str(i)) for i, texts in enumerate(chosen + chosen[:4])]
    conflict, duplicate = naive(records)
    assert 0 < len(conflict) < len(records) and duplicate
    got = counts(*records)
    assert got == {"conflict": len(conflict), "duplicate": len(duplicate)}
    for kind, rows in (("conflict", conflict), ("duplicate", duplicate)):
        kept = audit(lambda: records, {**KEEP, kind: "drop"})
        out = {r.id for r in records} - {r.id for r in kept.records()}
        assert out == {str(i) for i in rows}


@pytest.mark.usefixtures("in_runs")
def test_ties_and_repeated_texts_agree_with_a_comparison_of_texts():
    rng = random.Random(0)
    records = []
    for i in range(60):
        k = rng.randint(2, 5)
        texts = rng.choices(string.ascii_letters, k=k - 1) + ["0"]
        records.append(record(texts, tuple(rng.choices(range(3), k=k)), id=str(i)))
    conflict, _ = naive(records)
    assert 10 < len(conflict) < 50
    kept = audit(lambda: records, {**KEEP, "conflict": "drop"}).records()
    assert [int(r.id) for r in kept] == [i for i in range(60) if i not in conflict]


def test_only_texts_of_several_records_are_compared(monkeypatch):
    """So the work grows with the responses, not with their pairs."""
    written = collections.Counter()
    add, extend = Spill.add, Spill.extend

    def count(spill, keys, values):
        written["shared"] += len(keys)
        extend(spill, keys, values)

    def count_one(spill, key, value):
        written["read"] += 1
        add(spill, key, value)

    monkeypatch.setattr(Spill, "extend", count)
    monkeypatch.setattr(Spill, "add", count_one)
    one = record([f"one {i}" for i in range(500)] + ["a", "b"])
    two = record([f"two {i}" for i in range(500)] + ["b", "a"])
    assert counts(one, two, record(("a", "c"))) == {"conflict": 2}
    assert written == {"read": 2 * (502 + 1) + 2 + 1, "shared": 5 + 2}


# Counted without this package: transcripts split at the last "\n\nAssistant:".
@pytest.mark.parametrize(
    ("file", "rows", "found"),
    [
        ("harmless-base", 2312, {"diverging_prompts": 5, "empty_side": 4}),
        (
            "helpful-base",
            2354,
            {"identical_responses": 2, "diverging_prompts": 9, "empty_side": 4},
        ),
    ],
)
def test_real_transcripts(test_data, file, rows, found):
    source = open_source(f"hh:{test_data}/hh-rlhf/{file}.test.jsonl.gz")
    audited = audit(source.records, {})
    assert {k: n for k, n in audited.report.counts.items() if n} == found
    assert audited.report.total == rows
    kept = list(audited.records())
    assert len(kept) == audited.report.kept == rows - sum(found.values())
    assert all(r[0].content.strip() for x in kept for r in x.responses)
    assert source.info["rows"] == rows


def test_real_answers_of_truthfulqa(test_data):
    path = test_data / "truthfulqa-judge" / "finetune_truth.jsonl.gz"
    audited = audit(open_source(f"truthfulqa_judge:{path}").records, {})
    found = {kind: n for kind, n in audited.report.counts.items() if n}
    assert found == {"conflict": 24, "empty_side": 35}
    assert (audited.report.kept, audited.report.trimmed) == (736, 35)
    kept = list(audited.records())
    assert not any(not r[0].content for x in kept for r in x.responses)


def test_a_set_of_weight_0_is_refused():
    nothing = [record((f"{i}", "x"), weight=0.0) for i in range(3)]
    bad = record(("a", "a"))
    for records in (nothing, [*nothing, bad]):
        with pytest.raises(
            ValueError, match="all 3 weights are 0.*weight above 0"
        ) as e:
            audit(lambda records=records: records, {})
        assert "zero_weight" in str(e.value)
    found = audit(lambda: [*nothing, record()], {}).report
    assert (found.counts["zero_weight"], found.kept) == (3, 4)
    without = audit(lambda: [*nothing, record()], {"zero_weight": "drop"})
    assert without.report.kept == len(list(without.records())) == 1


def test_a_set_of_nothing_but_ties_is_said():
    ties = [record((f"{i}", "x"), (0, 0)) for i in range(3)]
    lines = audit(lambda: [*ties, record(("a", "a"))], {}).report.lines()
    assert lines[-1].strip() == "all 3 records kept are tied: no response is preferred"
    lines = audit(lambda: [*ties, record()], {}).report.lines()
    assert not any("kept are tied" in line for line in lines)


def test_odd_meta_is_no_finding_and_gold_loses_what_is_trimmed():
    odd = record(("a", "b"), meta={"audit": ["empty_side"]})
    (kept,) = audit(lambda: [odd], {}).records()
    assert kept == odd
    full = record(("a", "b", ""), (0, 1, 2), meta={"gold": [0.5, 0.25, -1.0]})
    (kept,) = audit(lambda: [full], {}).records()
    assert kept.meta["gold"] == [0.5, 0.25] and len(kept.responses) == 2
