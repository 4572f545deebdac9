"""Formats: how a row of each public preference data set becomes Records.

A format is a pure function (row, place) -> list of Records, and for data sets that
spread one prompt over several rows a merge of those Records. `package.module:function`
names a function row -> list of Records of your own.

>>> row = {"chosen": "\\n\\nHuman: 2 + 2?\\n\\nAssistant: 4",
...        "rejected": "\\n\\nHuman: 2 + 2?\\n\\nAssistant: 5"}
>>> [record] = FORMATS["hh"].parse(row, Place("demo", 1))
>>> record.prompt, [r[0].content for r in record.responses], record.ranks
((Message(role='user', content='2 + 2?'),), ['4', '5'], (0, 1))
"""

import dataclasses
import hashlib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from rm_jax.data.columns import column_parser
from rm_jax.data.pairs import pair_record
from rm_jax.data.rows import Place, Row, text_field
from rm_jax.data.schema import Message, Record, RowError, record_from_dict

# Part of every source's fingerprint: raise it when a format's output changes.
VERSION = 1

_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
# The first "\nA:" ends the question: answers may hold more of them.
_TRUTHFULQA = re.compile(r"Q: (.*?)\nA:(.*)\n(True|Helpful):\s*", re.DOTALL)
_YES_NO = {"yes": 0, "no": 1}
_OASST_ROLES = {"prompter": "user", "assistant": "assistant"}


class Format(NamedTuple):
    """How rows become Records.

    Attributes:
      parse: one row to its records; raises RowError.
      merge: all parsed records to fewer, or None where rows stand alone.
      code: sha256 of the code of a function from outside, else empty.
    """

    parse: Callable[[Row, Place], list[Record]]
    merge: Callable[[Iterable[Record]], Iterator[Record]] | None = None
    code: str = ""


def find_format(name: str, columns: Mapping[str, str] | None = None) -> Format:
    """The format of that name, or of a `package.module:function`.

    Args:
      name: of a format.
      columns: the column map of formats `columns` and `hf`.

    Raises:
      ValueError: unknown name, a function that cannot be imported, or a column map
        that is missing or has no use.
    """
    if columns and name not in ("columns", "hf"):
        raise ValueError(f"format {name!r} takes no columns, got {dict(columns)}")
    if columns or name == "columns":
        return Format(column_parser(columns or {}))
    if name in FORMATS:
        return FORMATS[name]
    known = f"{sorted([*FORMATS, 'columns', 'tfds', 'world'])}"
    if ":" not in name:
        raise ValueError(
            f"unknown format {name!r}; known: {known}, or package.module:function"
        )
    module, _, function = name.partition(":")
    try:
        parse = getattr(importlib.import_module(module), function)
        if not inspect.isfunction(parse):
            raise TypeError(f"{type(parse).__name__} {parse!r:.60}")
        code = hashlib.sha256(inspect.getsource(parse).encode()).hexdigest()
    except (ImportError, AttributeError, TypeError, OSError) as error:
        raise ValueError(
            f"format {name!r} is not a Python function: {error}; known: {known}"
        ) from error
    return Format(_outside(name, parse), code=code)


def _outside(name: str, function: Callable[[Row], list[Record]]):
    """Gives a user's function the place: in messages, and as id where it has none."""

    def parse(row: Row, place: Place) -> list[Record]:
        try:
            records = function(row)
        except RowError as error:
            raise RowError(str(place), error.field, error.why) from error
        except (KeyError, ValueError) as error:
            raise RowError(str(place), "row", f"{name}: {error!r}") from error
        if not isinstance(records, list):
            raise TypeError(f"{name} must return a list of Records, got {records!r}")
        return [
            dataclasses.replace(
                r, id=r.id or f"{place.id}.{i}", source=r.source or place.source
            )
            for i, r in enumerate(records)
        ]

    return parse


def _jsonl(row: Row, place: Place) -> list[Record]:
    given = {key: value for key, value in row.items() if value is not None}
    named = {"id": place.id, "source": place.source, **given}
    return [record_from_dict(named, str(place))]


def _hh(row: Row, place: Place) -> list[Record]:
    """Two transcripts; the prompt is their longest common run of whole turns.

    With nothing in common the prompt is the chosen side's and the responses are the
    last turns; that record too is marked as diverging.
    """
    sides = [_hh_turns(row, field, place) for field in ("chosen", "rejected")]
    n = 0
    while n < min(map(len, sides)) - 1 and sides[0][n] == sides[1][n]:
        n += 1
    diverging = any(n != len(turns) - 1 for turns in sides)
    responses = tuple(tuple(turns[n or -1 :]) for turns in sides)
    return [
        Record(
            id=place.id,
            source=place.source,
            prompt=tuple(sides[0][: n or -1]),
            responses=responses,
            ranks=(0, 1),
            meta={"audit": "diverging_prompts"} if diverging else {},
        )
    ]


def _hh_turns(row: Row, field: str, place: Place) -> list[Message]:
    text = text_field(row, field, place)
    before, *parts = _HH_TURN.split(text)
    turns = [
        Message(_HH_ROLES[who], content.strip())
        for who, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if before.strip() or not turns:
        raise RowError(str(place), field, f"does not start with 'Human:': {text:.60}")
    if turns[-1].role != "assistant" or len(turns) == 1:
        raise RowError(
            str(place), field, "wants a prompt and then, last, an 'Assistant:' turn"
        )
    return turns


def _trl(row: Row, place: Place) -> list[Record]:
    """TRL preference: explicit or implicit prompt, plain or conversational."""
    pair = {key: row.get(key) for key in ("prompt", "chosen", "rejected")}
    extra = {"strength": row.get("margin"), "id": row.get("id")}
    scores = [row.get("score_chosen"), row.get("score_rejected")]
    if scores != [None, None]:
        extra["ratings"] = {"score": scores}
    return [pair_record(pair, extra, place)]


def _truthfulqa(row: Row, place: Place) -> list[Record]:
    """One answer with its label; the axis is the suffix of the record's source."""
    prompt = text_field(row, "prompt", place)
    match = _TRUTHFULQA.fullmatch(prompt)
    if match is None:
        raise RowError(
            str(place), "prompt", f"is not 'Q: …\\nA: …\\nTrue:|Helpful:': {prompt!r}"
        )
    question, answer, axis = match.groups()
    label = text_field(row, "completion", place).strip()
    if label not in _YES_NO:
        raise RowError(str(place), "completion", f"{label!r} is not 'yes' or 'no'")
    return [
        Record(
            id=place.id,
            source=f"{place.source}/{axis.lower()}",
            prompt=(Message("user", question.strip()),),
            responses=((Message("assistant", answer.strip()),),),
            ranks=(_YES_NO[label],),
        )
    ]


def _by_question(records: Iterable[Record]) -> Iterator[Record]:
    """Answers of one question and axis in one record, each answer once."""
    groups: dict[Any, tuple[str, dict[Any, set[int]]]] = {}
    for r in records:
        _, answers = groups.setdefault((r.source, r.prompt), (r.id, {}))
        answers.setdefault(r.responses[0], set()).add(r.ranks[0])
    for (source, prompt), (id, answers) in groups.items():
        conflicts = sum(len(labels) > 1 for labels in answers.values())
        yield Record(
            id=id,
            source=source,
            prompt=prompt,
            responses=tuple(answers),
            ranks=tuple(min(v) if len(v) == 1 else None for v in answers.values()),
            meta={"audit": "conflict", "conflicts": conflicts} if conflicts else {},
        )


def _oasst(row: Row, place: Place) -> list[Record]:
    """A conversation tree; a record for each node with two or more ranked replies."""
    root = row.get("prompt", row)
    if not isinstance(root, Mapping) or "replies" not in root:
        raise RowError(str(place), "replies", "wants a whole conversation tree")
    tree = str(row.get("message_tree_id", root.get("message_id")))
    records = []
    stack: list[tuple[Mapping, tuple[Message, ...]]] = [(root, ())]
    while stack:
        node, path = stack.pop()
        path += (_oasst_message(node, place),)
        replies = node.get("replies") or []
        answers = [r for r in replies if r.get("role") == "assistant"]
        if sum(a.get("rank") is not None for a in answers) >= 2:
            records.append(_oasst_record(node, path, answers, tree, place))
        stack += [(reply, path) for reply in reversed(replies)]
    return records


def _oasst_message(node: Mapping, place: Place) -> Message:
    if node.get("role") not in _OASST_ROLES:
        raise RowError(str(place), "role", f"{node.get('role')!r} is not in a tree")
    return Message(_OASST_ROLES[node["role"]], text_field(node, "text", place))


def _oasst_record(node, path, answers, tree: str, place: Place) -> Record:
    meta = {"tree": tree, "lang": [a.get("lang") for a in answers]}
    if any(a.get("deleted") for a in answers):
        meta["deleted"] = [bool(a.get("deleted")) for a in answers]
    row = {
        "id": text_field(node, "message_id", place),
        "source": place.source,
        "prompt": path,
        "responses": [(_oasst_message(a, place),) for a in answers],
        "ranks": [a.get("rank") for a in answers],
        "meta": meta,
    }
    return record_from_dict(row, str(place))


def _auto(row: Row, place: Place) -> list[Record]:
    """Format `hf`: told by the row's columns."""
    if {"prompt", "responses"} <= set(row):
        return _jsonl(row, place)
    if not {"chosen", "rejected"} <= set(row):
        raise RowError(
            str(place),
            "chosen",
            f"no `chosen` and `rejected` among columns {sorted(row)}: say which "
            "columns to use (data.columns) or name a format",
        )
    text = row["chosen"] if isinstance(row["chosen"], str) else ""
    hh = "prompt" not in row and text.lstrip().startswith("Human:")
    return (_hh if hh else _trl)(row, place)


FORMATS: dict[str, Format] = {
    "hf": Format(_auto),
    "hh": Format(_hh),
    "jsonl": Format(_jsonl),
    "oasst": Format(_oasst),
    "trl": Format(_trl),
    "truthfulqa_judge": Format(_truthfulqa, _by_question),
}
