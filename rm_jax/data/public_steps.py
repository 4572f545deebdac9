"""Formats of public data sets of solutions whose steps are labelled.

>>> row = {"input": "1 + 1? Step 1: 1 + 1 = 3. ки\\nStep 2: So 3. ки", "task": "GSM8K",
...        "label": "1 + 1? Step 1: 1 + 1 = 3. -\\nStep 2: So 3. -"}
>>> [record] = math_shepherd(row, Place("demo", 1))
>>> record.prompt[0].content, [(s.text, s.label) for s in record.steps[0]]
('1 + 1?', [('Step 1: 1 + 1 = 3.', 0), ('Step 2: So 3.', 0)])
"""

import re
from collections.abc import Mapping
from typing import Any

from rm_jax.data.rows import (
    Place,
    Row,
    int_field,
    object_field,
    objects_field,
    text_field,
)
from rm_jax.data.schema import Record, RowError, record_from_dict, shown

_TAG = "ки"  # ends a step of Math-Shepherd's `input`
_SIGNS = {"+": 1, "-": 0}
_FIRST = re.compile("step 1:", re.IGNORECASE)


def math_shepherd(row: Row, place: Place) -> list[Record]:
    """A question and one solution; a step is right if some rollout from it ended right.

    `input` is both, every step ended by a tag; `label` is the same text with a sign in
    place of each tag, + or -. The solution begins at its "Step 1:"; the few rows
    without, or with a tag before it, are malformed. The shares of rollouts, soft
    labels, are not public. Wang et al. 2023 (arXiv:2312.08935), data set card.
    """
    *pieces, rest = text_field(row, "input", place).split(_TAG)
    if not pieces or rest.strip():
        why = f"want a tag {_TAG!r} after every step, got {shown(pieces + [rest])}"
        raise RowError(str(place), "input", why)
    signs = _signs(text_field(row, "label", place), pieces, place)
    first = _FIRST.search(pieces[0])
    if first is None:
        why = f"no 'Step 1:' in what is before the first tag: {shown(pieces[0])}"
        raise RowError(str(place), "input", why)
    question, pieces[0] = pieces[0][: first.start()], pieces[0][first.start() :]
    steps = [(p.strip(), s) for p, s in zip(pieces, signs, strict=True)]
    task = row.get("task")
    meta = {} if task is None else {"task": task}
    return [_record(question.strip(), [steps], [0], meta, place)]


def _signs(label: str, pieces: list[str], place: Place) -> list[int]:
    """The label of every step: what stands in `label` after each piece of `input`."""
    found, at = [], 0
    for piece in pieces:
        end = at + len(piece)
        sign = _SIGNS.get(label[end : end + 1])
        if sign is None or label[at:end] != piece:
            why = f"is not `input` with + or - for its tags: {shown(label[at:])}"
            raise RowError(str(place), "label", why)
        found.append(sign)
        at = end + 1
    if label[at:].strip():
        why = f"goes on after the last step: {shown(label[at:])}"
        raise RowError(str(place), "label", why)
    return found


def prm800k(row: Row, place: Place) -> list[Record]:
    """A problem and a labelled solution; what else was tried on the way, as responses.

    Response 0 is the solution: of each step the chosen completion, or the labeler's
    own, which is right. Every completion that was not chosen is a response that ends
    with it, after the steps chosen before; those have no label there, so each rating
    counts once. Ratings 1 and 0 (right, but no progress) are right, -1 is wrong; null
    is no label. A row without any rating gives no record. Lightman et al. 2023
    (arXiv:2305.20050), README of openai/prm800k.
    """
    problem = text_field(object_field(row, "question", place), "problem", place)
    chosen: list[tuple[str, int | None]] = []
    others: list[list[tuple[str, int | None]]] = []
    for step in objects_field(object_field(row, "label", place), "steps", place):
        given = {**step, "completions": step.get("completions") or []}
        completions = [
            (text_field(c, "text", place), _rating(c, place))
            for c in objects_field(given, "completions", place)
        ]
        taken = step.get("chosen_completion")
        before = [(text, None) for text, _ in chosen]
        others += [[*before, c] for i, c in enumerate(completions) if i != taken]
        if taken is not None:
            bounds = 0, len(completions) - 1
            i = int_field(step, "chosen_completion", bounds, place)
            chosen.append(completions[i])
        elif step.get("human_completion") is not None:
            chosen.append((_human(step["human_completion"], place), 1))
        else:
            break
    solutions = [s for s in (chosen, *others) if any(y is not None for _, y in s)]
    if not solutions:
        return []
    return [_record(problem, solutions, [None] * len(solutions), {}, place)]


def _rating(completion: Row, place: Place) -> int | None:
    if completion.get("rating") is None:
        return None
    return int(int_field(completion, "rating", (-1, 1), place) >= 0)


def _human(value: Any, place: Place) -> str:
    """A step that the labeler wrote: text, or an object with it."""
    own = value if isinstance(value, Mapping) else {"text": value}
    return text_field(own, "text", place)


def _record(
    prompt: str,
    solutions: list[list[tuple[str, int | None]]],
    ranks: list[int | None],
    meta: Row,
    place: Place,
) -> Record:
    row = {
        "id": place.id,
        "source": place.source,
        "prompt": prompt,
        "responses": ["\n".join(text for text, _ in steps) for steps in solutions],
        "ranks": ranks,
        "steps": [[{"text": t, "label": y} for t, y in steps] for steps in solutions],
        "meta": meta,
    }
    return record_from_dict(row, str(place))
