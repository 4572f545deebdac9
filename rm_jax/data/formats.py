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

from rm_jax.data import public_lists, public_pairs, public_steps
from rm_jax.data.columns import column_parser
from rm_jax.data.oasst import oasst
from rm_jax.data.pairs import pair_record
from rm_jax.data.rows import Place, Row, text_field
from rm_jax.data.schema import (
    Message,
    Record,
    RowError,
    record_from_dict,
    record_to_dict,
    shown,
)
from rm_jax.data.transcripts import hh

# Part of every source's fingerprint: raise it when a format's output changes.
VERSION = 1
MAPPED = ("columns", "hf")  # formats that take a column map

# The first "\nA:" ends the question: answers may hold more of them.
_TRUTHFULQA = re.compile(r"Q: (.*?)\nA:(.*)\n(True|Helpful):\s*", re.DOTALL)
_YES_NO = {"yes": 0, "no": 1}


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
    if columns is not None and not isinstance(columns, Mapping):
        raise ValueError(f"columns {shown(columns)}: want field -> column")
    if columns and name not in MAPPED:
        raise ValueError(
            f"format {name!r} takes no columns, got {dict(columns)}: those that do are "
            f"{MAPPED}"
        )
    if columns or name == "columns":
        return Format(column_parser(columns or {}))
    if name in FORMATS:
        return FORMATS[name]
    known = f"{sorted([*FORMATS, 'columns', 'preset', 'tfds', 'world'])}"
    if ":" not in name:
        raise ValueError(
            f"unknown format {name!r}; known: {known}, or package.module:function"
        )
    module, _, function = name.partition(":")
    try:
        parse = getattr(importlib.import_module(module), function)
        if not inspect.isfunction(parse):
            raise TypeError(f"it is {shown(parse)}")
        code = hashlib.sha256(inspect.getsource(parse).encode()).hexdigest()
    except Exception as error:  # importing runs a module: whatever it raises, named
        raise ValueError(
            f"format {name!r} is not a Python function that can be imported: "
            f"{_said(error)}; known: {known}"
        ) from error
    return Format(_outside(name, parse), code=code)


def _outside(name: str, function: Callable[[Row], list[Record]]):
    """A user's function with the place in its errors, and as id where it gives none.

    Its Records are checked like rows of a file.
    """

    def parse(row: Row, place: Place) -> list[Record]:
        try:
            return [
                _checked(record, f"{place.id}.{i}", place)
                for i, record in enumerate(_records(function(row)))
            ]
        except RowError as error:
            raise RowError(str(place), error.field, f"{error.why} ({name})") from error
        except Exception as error:  # whatever a user's code raises, with its row
            raise RowError(str(place), "row", f"{name}: {_said(error)}") from error

    return parse


def _records(found: Any) -> list[Record]:
    others = [found]
    if isinstance(found, list):
        others = [x for x in found if not isinstance(x, Record)]
    for other in others:
        raise TypeError(f"must return a list of Records, got {shown(other)}")
    return found


def _checked(record: Record, id: str, place: Place) -> Record:
    named = dataclasses.replace(
        record, id=record.id or id, source=record.source or place.source
    )
    return record_from_dict(record_to_dict(named), str(place))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


def _jsonl(row: Row, place: Place) -> list[Record]:
    given = {key: value for key, value in row.items() if value is not None}
    named = {"id": place.id, "source": place.source, **given}
    return [record_from_dict(named, str(place))]


def _trl(row: Row, place: Place) -> list[Record]:
    """TRL preference: explicit or implicit prompt, plain or conversational."""
    pair = {key: row.get(key) for key in ("prompt", "chosen", "rejected")}
    extra = {"strength": row.get("margin"), "id": row.get("id")}
    scores = [row.get("score_chosen"), row.get("score_rejected")]
    if scores != [None, None]:
        extra["ratings"] = {"score": scores}
    logp = [row.get("ref_chosen_logps"), row.get("ref_rejected_logps")]
    if logp != [None, None]:
        extra["reference_logp"] = logp
    return [pair_record(pair, extra, place)]


def _truthfulqa(row: Row, place: Place) -> list[Record]:
    """One answer with its label; the axis is the suffix of the record's source."""
    prompt = text_field(row, "prompt", place)
    match = _TRUTHFULQA.fullmatch(prompt)
    if match is None:
        raise RowError(
            str(place),
            "prompt",
            f"is not 'Q: …\\nA: …\\nTrue:|Helpful:': {shown(prompt)}",
        )
    question, answer, axis = match.groups()
    label = text_field(row, "completion", place).strip()
    if label not in _YES_NO:
        raise RowError(str(place), "completion", f"{shown(label)} is not 'yes' or 'no'")
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
    is_hh = "prompt" not in row and text.lstrip().startswith("Human:")
    return (hh if is_hh else _trl)(row, place)


FORMATS: dict[str, Format] = {
    "conversations": Format(public_pairs.conversations),
    "helpsteer2": Format(public_lists.helpsteer2, public_lists.by_prompt),
    "helpsteer2_preference": Format(public_lists.helpsteer2_preference),
    "helpsteer3": Format(public_pairs.helpsteer3),
    "hf": Format(_auto),
    "hh": Format(hh),
    "jsonl": Format(_jsonl),
    "math_shepherd": Format(public_steps.math_shepherd),
    "nectar": Format(public_lists.nectar),
    "oasst": Format(oasst),
    "pku_saferlhf": Format(public_pairs.pku_saferlhf),
    "pku_saferlhf_safe": Format(public_pairs.pku_saferlhf_safe),
    "prm800k": Format(public_steps.prm800k),
    "shp": Format(public_pairs.shp),
    "tldr": Format(public_pairs.tldr),
    "trl": Format(_trl),
    "truthfulqa_judge": Format(_truthfulqa, _by_question),
    "ultrafeedback": Format(public_lists.ultrafeedback),
    "webgpt": Format(public_pairs.webgpt),
}
