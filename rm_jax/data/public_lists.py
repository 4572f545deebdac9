"""Formats of public data sets of several responses, or of single ones with ratings.

>>> rows = [{"prompt": "2 + 2?", "response": r, "helpfulness": h, "correctness": h,
...          "coherence": 4, "complexity": 0, "verbosity": 1}
...         for r, h in [("5", 0), ("4", 4)]]
>>> single = (r for i, row in enumerate(rows) for r in helpsteer2(row, Place("d", i)))
>>> [record] = by_prompt(single)
>>> record.ranks, record.ratings["correctness"]
((1, 0), (0.0, 4.0))
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from rm_jax.data.rows import (
    Place,
    Row,
    int_field,
    object_field,
    objects_field,
    ranks_by,
    text_field,
)
from rm_jax.data.schema import Message, Record, RowError, record_from_dict, shown
from rm_jax.data.transcripts import transcript_turns

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_STARS = {"1": 1, "2": 2, "3": 3, "4": 4, "5": 5, "N/A": None}
_HELPSTEER_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")
_HELPSTEER_ROLES = {"User": "user", "Assistant": "assistant"}


def ultrafeedback(row: Row, place: Place) -> list[Record]:
    """An instruction and up to 4 completions with 4 aspects rated 1 to 5, or "N/A".

    Ranks are by the mean of a completion's rated aspects, which is the data set's own
    `fine-grained_score`. `overall_score` is not read: a parser gave 10 to completions
    that were judged 1. "N/A" is a rating of None; a completion without any rating has
    no rank. A row without completions gives no record. Cui et al. 2023
    (arXiv:2310.01377); the bug: card of argilla/ultrafeedback-binarized-preferences.
    """
    completions = objects_field(row, "completions", place)
    if not completions:
        return []
    stars = [_stars(completion, place) for completion in completions]
    record = {
        "id": place.id,
        "source": place.source,
        "prompt": text_field(row, "instruction", place),
        "responses": [text_field(c, "response", place) for c in completions],
        "ranks": ranks_by([_mean(s) for s in stars]),
        "ratings": dict(zip(ASPECTS, zip(*stars, strict=True), strict=True)),
        "meta": {"models": [c.get("model") for c in completions]},
    }
    return [record_from_dict(record, str(place))]


def _stars(completion: Row, place: Place) -> list[int | None]:
    """The rating of each aspect."""
    annotations = object_field(completion, "annotations", place)
    out = []
    for aspect in ASPECTS:
        rating = object_field(annotations, aspect, place).get("Rating")
        if str(rating) not in _STARS:
            why = f"rating {shown(rating)} is not one of {list(_STARS)}"
            raise RowError(str(place), aspect, why)
        out.append(_STARS[str(rating)])
    return out


def _mean(stars: Sequence[int | None]) -> float | None:
    rated = [s for s in stars if s is not None]
    return sum(rated) / len(rated) if rated else None


def helpsteer2(row: Row, place: Place) -> list[Record]:
    """One response with 5 attributes rated 0 to 4; `by_prompt` joins those of a prompt.

    Turns of a longer prompt begin with "<extra_id_1>User" or "<extra_id_1>Assistant".
    Wang et al. 2024 (arXiv:2406.08673), data set card.
    """
    ratings = {a: [int_field(row, a, (0, 4), place)] for a in ATTRIBUTES}
    record = {
        "id": place.id,
        "source": place.source,
        "prompt": _helpsteer_turns(row, place),
        "responses": [text_field(row, "response", place)],
        "ranks": [0],
        "ratings": ratings,
    }
    return [record_from_dict(record, str(place))]


def helpsteer2_preference(row: Row, place: Place) -> list[Record]:
    """HelpSteer2-Preference: two responses, `preference_strength` from -3 to 3.

    Below 0 response 1 is better, above 0 response 2; the strength is its size. The
    attributes of `helpsteer2` are there without a value, so that a model of those
    ratings can go on with these pairs. Wang et al. 2024 (arXiv:2410.01257), card of
    nvidia/HelpSteer2, folder `preference`.
    """
    preference = int_field(row, "preference_strength", (-3, 3), place)
    record = {
        "id": place.id,
        "source": place.source,
        "prompt": _helpsteer_turns(row, place),
        "responses": [text_field(row, f"response_{i}", place) for i in (1, 2)],
        "ranks": ranks_by([-preference, preference]),
        "strength": abs(preference),
        "ratings": {a: [None, None] for a in ATTRIBUTES},
    }
    return [record_from_dict(record, str(place))]


def _helpsteer_turns(row: Row, place: Place) -> list[Message]:
    first, *parts = _HELPSTEER_TURN.split(text_field(row, "prompt", place))
    turns = [Message("user", first)] if first.strip() or not parts else []
    turns += [
        Message(_HELPSTEER_ROLES[who], content)
        for who, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1].role != "user":
        raise RowError(str(place), "prompt", "its last turn is not the user's")
    return turns


def by_prompt(records: Iterable[Record]) -> Iterator[Record]:
    """Consecutive records of one prompt as one, ranked by the rating `helpfulness`.

    In HelpSteer2 they are two; what stands alone stays a record of one response.
    """
    for _, group in itertools.groupby(records, key=lambda record: record.prompt):
        parts = list(group)
        ratings = {
            name: tuple(rating for part in parts for rating in part.ratings[name])
            for name in parts[0].ratings
        }
        yield dataclasses.replace(
            parts[0],
            responses=tuple(r for part in parts for r in part.responses),
            ranks=tuple(ranks_by(ratings["helpfulness"])),
            ratings=ratings,
        )


def nectar(row: Row, place: Place) -> list[Record]:
    """A transcript ending in an empty "Assistant:" turn; 7 answers ranked from 1.

    Rank 1, the best, becomes 0; equal ranks are ties. Zhu et al. 2023, data set card
    of berkeley-nest/Nectar.
    """
    *prompt, last = transcript_turns(row, "prompt", place)
    if last.content:
        why = f"its last 'Assistant:' turn is not empty: {shown(last.content)}"
        raise RowError(str(place), "prompt", why)
    answers = objects_field(row, "answers", place)
    record = {
        "id": place.id,
        "source": place.source,
        "prompt": prompt,
        "responses": [text_field(a, "answer", place) for a in answers],
        "ranks": [int_field(a, "rank", (1, 7), place) - 1 for a in answers],
        "meta": {"models": [a.get("model") for a in answers]},
    }
    return [record_from_dict(record, str(place))]
