"""The preference record: what every data source becomes, one JSON object a line.

>>> record_from_dict({"id": "7", "source": "demo", "ranks": [0, 1],
...     "prompt": [{"role": "user", "content": "2 + 2?"}], "responses": ["4", "5"]})
... # doctest: +ELLIPSIS
Record(id='7', source='demo', ...
"""

import dataclasses
import json
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from rm_jax.data.steps import StepError, ends

_MOST, _LARGEST = 2**31 - 1, 3.4028234e38
# Rows are read from files: a value may be as long and as deeply nested as it likes.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 60, 60
ROLES = ("system", "user", "assistant", "tool")


class RowError(ValueError):
    """A row that cannot become a Record: says where, which field and why."""

    def __init__(self, where: str, field: str, why: str):
        super().__init__(f"{where}: field {field!r:.80}: {why}")
        self.where, self.field, self.why = where, field, why


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


class Annotator(NamedTuple):
    """One person's ranking of the responses; ids are free text."""

    id: str
    ranks: tuple[int | None, ...]


class Step(NamedTuple):
    """One step of a response: 1 is right, 0 wrong, None not labelled.

    A label between is the share of continuations from there that end right.
    """

    text: str
    label: float | None


@dataclasses.dataclass(frozen=True)
class Record:
    """One prompt, K >= 1 responses and what is known about them.

    Attributes:
      id: unique in its source.
      source: name of the data set.
      prompt: the conversation so far.
      responses: each a tuple of messages; plain text is one assistant message.
      ranks: 0 is best, equal is a tie, None is unranked; one a response.
      strength: strength of the preference, in the source's own unit.
      soft: probability that response 0 beats response 1 (K = 2 only).
      annotators: rankings of single people.
      ratings: attribute name -> one rating a response.
      steps: one tuple of steps a response, () where they are not known; the words of
        a response's steps, in their order, are its words.
      reference_logp: log-probability of each response, given the prompt, under a
        reference policy, in nats; () where not known.
      weight: weight in the loss, finite and >= 0.
      meta: anything else worth keeping, JSON values.
    """

    id: str
    source: str
    prompt: tuple[Message, ...]
    responses: tuple[tuple[Message, ...], ...]
    ranks: tuple[int | None, ...]
    strength: float | None = None
    soft: float | None = None
    annotators: tuple[Annotator, ...] = ()
    ratings: Mapping[str, tuple[float | None, ...]] = dataclasses.field(
        default_factory=dict
    )
    steps: tuple[tuple[Step, ...], ...] = ()
    reference_logp: tuple[float | None, ...] = ()
    weight: float = 1.0
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def shown(value: Any) -> str:
    """A value as messages show it: one short line, whatever it is."""
    return " ".join(_SHORT.repr(value).split())[:80]


def checked_text(value: Any, where: str, field: str) -> str:
    """The value, which must be text that UTF-8 can write.

    Raises:
      RowError: it is not text, or holds half of a surrogate pair, which JSON allows.
    """
    if not isinstance(value, str):
        raise RowError(where, field, f"want text, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        i = error.start
        why = f"is not Unicode text: character {i} is {value[i]!r}, half of a pair"
        raise RowError(where, field, why) from None
    return value


def checked_rank(value: Any, where: str, field: str) -> int | None:
    """The value, which must be a rank or None.

    Raises:
      RowError: it is something else.
    """
    ok = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST
    if value is not None and not ok:
        why = f"rank {shown(value)} is not null or an integer in [0, {_MOST}]"
        raise RowError(where, field, why)
    return value


def response_text(response: tuple[Message, ...]) -> str:
    """Plain text of a response: its messages' contents, one a line."""
    return "\n".join(m.content for m in response)


def record_from_dict(row: Mapping[str, Any], where: str = "record") -> Record:
    """Checks a JSON object and makes it a Record.

    Args:
      row: the object; unknown keys are an error (put them under `meta`).
      where: source and row number, for the message.

    Raises:
      RowError: naming the row, the field and what is wrong with it.
    """
    known = {f.name for f in dataclasses.fields(Record)}
    for key in row:
        if key not in known:
            raise RowError(where, key, f"unknown; known fields: {sorted(known)}")
    for key in ("prompt", "responses"):
        if key not in row:
            raise RowError(where, key, "missing")
    prompt = _messages(row["prompt"], where, "prompt", role="user")
    responses = _responses(row["responses"], where)
    k = len(responses)
    return Record(
        id=where if row.get("id") is None else _name(row["id"], where, "id"),
        source=_name(row.get("source"), where, "source"),
        prompt=prompt,
        responses=responses,
        ranks=_ranks(row.get("ranks", [None] * k), k, where, "ranks"),
        strength=_number(row.get("strength"), where, "strength"),
        soft=_soft(row.get("soft"), k, where),
        annotators=tuple(
            _annotator(a, k, where, f"annotators[{i}]")
            for i, a in enumerate(_list(row.get("annotators"), where, "annotators"))
        ),
        ratings={
            _name(name, where, "ratings"): _ratings(
                values, k, where, f"ratings[{name}]"
            )
            for name, values in _object(row.get("ratings"), where, "ratings").items()
        },
        steps=_steps(_list(row.get("steps"), where, "steps"), responses, where),
        reference_logp=_logp(row.get("reference_logp"), k, where),
        weight=_weight(row.get("weight", 1.0), where),
        meta=_meta(row.get("meta"), where),
    )


def record_to_dict(record: Record) -> dict[str, Any]:
    """The JSON object of a Record; `record_from_dict` reads it back unchanged."""
    out: dict[str, Any] = {
        "id": record.id,
        "source": record.source,
        "prompt": [m._asdict() for m in record.prompt],
        "responses": [[m._asdict() for m in r] for r in record.responses],
        "ranks": list(record.ranks),
    }
    if record.strength is not None:
        out["strength"] = record.strength
    if record.soft is not None:
        out["soft"] = record.soft
    if record.annotators:
        out["annotators"] = [
            {"id": a.id, "ranks": list(a.ranks)} for a in record.annotators
        ]
    if record.ratings:
        out["ratings"] = {name: list(v) for name, v in record.ratings.items()}
    if record.steps:
        out["steps"] = [[s._asdict() for s in steps] for steps in record.steps]
    if record.reference_logp:
        out["reference_logp"] = list(record.reference_logp)
    if record.weight != 1.0:
        out["weight"] = record.weight
    if record.meta:
        out["meta"] = dict(record.meta)
    return out


def _messages(value: Any, where: str, field: str, role: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message(role, checked_text(value, where, field)),)
    if not isinstance(value, list | tuple) or not value:
        why = f"want text or a list of messages, got {shown(value)}"
        raise RowError(where, field, why)
    out = []
    for i, m in enumerate(value):
        here = f"{field}[{i}]"
        if isinstance(m, Message):
            m = m._asdict()
        if not isinstance(m, Mapping) or not {"role", "content"} <= set(m):
            raise RowError(where, here, f"want {{role, content}}, got {shown(m)}")
        if m["role"] not in ROLES:
            why = f"role {shown(m['role'])} is not one of {ROLES}"
            raise RowError(where, here, why)
        content = checked_text(m["content"], where, here)
        out.append(Message(m["role"], content))
    return tuple(out)


def _responses(value: Any, where: str) -> tuple[tuple[Message, ...], ...]:
    if not isinstance(value, list | tuple) or not value:
        why = f"want at least one response, got {shown(value)}"
        raise RowError(where, "responses", why)
    return tuple(
        _messages(r, where, f"responses[{i}]", role="assistant")
        for i, r in enumerate(value)
    )


def _name(value: Any, where: str, field: str) -> str:
    return checked_text("" if value is None else str(value), where, field)


def _list(value: Any, where: str, field: str) -> list[Any]:
    if value is not None and not isinstance(value, list | tuple):
        raise RowError(where, field, f"want a list or null, got {shown(value)}")
    return list(value or ())


def _object(value: Any, where: str, field: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise RowError(where, field, f"want an object or null, got {shown(value)}")
    return dict(value or {})


def _meta(value: Any, where: str) -> dict[str, Any]:
    meta = _object(value, where, "meta")
    try:
        json.dumps(meta, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        why = f"cannot be written as JSON: {error!s:.200}"
        raise RowError(where, "meta", why) from None
    return meta


def _of_length(value: Any, k: int, where: str, field: str) -> list[Any]:
    if not isinstance(value, list | tuple) or len(value) != k:
        why = f"want {k} values, one a response, got {shown(value)}"
        raise RowError(where, field, why)
    return list(value)


def _ranks(value: Any, k: int, where: str, field: str) -> tuple[int | None, ...]:
    return tuple(
        checked_rank(r, where, field) for r in _of_length(value, k, where, field)
    )


def _annotator(value: Any, k: int, where: str, field: str) -> Annotator:
    if isinstance(value, Annotator):
        value = value._asdict()
    if not isinstance(value, Mapping) or not {"id", "ranks"} <= set(value):
        raise RowError(where, field, f"want {{id, ranks}}, got {shown(value)}")
    name = _name(value["id"], where, field)
    return Annotator(name, _ranks(value["ranks"], k, where, field))


def _number(value: Any, where: str, field: str) -> float | None:
    if value is None:
        return None
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    if not ok or not -_LARGEST <= value <= _LARGEST:  # of float32, NaN is neither
        why = f"want a finite number that float32 holds, or null, got {shown(value)}"
        raise RowError(where, field, why)
    return float(value)


def _soft(value: Any, k: int, where: str) -> float | None:
    p = _number(value, where, "soft")
    if p is not None and (k != 2 or not 0 <= p <= 1):
        raise RowError(where, "soft", f"want a probability and K = 2, got {p}, K = {k}")
    return p


def _weight(value: Any, where: str) -> float:
    w = _number(value, where, "weight")
    if w is None or w < 0:
        raise RowError(where, "weight", f"want a finite number >= 0, got {w}")
    return w


def _ratings(value: Any, k: int, where: str, field: str) -> tuple[float | None, ...]:
    return tuple(_number(v, where, field) for v in _of_length(value, k, where, field))


def _logp(value: Any, k: int, where: str) -> tuple[float | None, ...]:
    if value is None:
        return ()
    return _ratings(value, k, where, "reference_logp")


def _steps(
    value: Any, responses: tuple[tuple[Message, ...], ...], where: str
) -> tuple[tuple[Step, ...], ...]:
    if not value:
        return ()
    out = []
    for i, steps in enumerate(_of_length(value, len(responses), where, "steps")):
        steps = _list(steps, where, f"steps[{i}]")
        row = tuple(_step(s, where, f"steps[{i}][{j}]") for j, s in enumerate(steps))
        try:
            ends([m.content for m in responses[i]], [step.text for step in row])
        except StepError as error:
            raise RowError(where, f"steps[{i}][{error.step}]", str(error)) from None
        out.append(row)
    return tuple(out)


def _step(value: Any, where: str, field: str) -> Step:
    value = value._asdict() if isinstance(value, Step) else value
    if not isinstance(value, Mapping) or not isinstance(value.get("text"), str):
        raise RowError(where, field, f"want {{text, label}}, got {shown(value)}")
    label = value.get("label")
    number = isinstance(label, int | float) and not isinstance(label, bool)
    if label is not None and not (number and 0 <= label <= 1):
        why = f"label {shown(label)} is not null or a number from 0 to 1"
        raise RowError(where, field, why)
    return Step(checked_text(value["text"], where, field), label)
