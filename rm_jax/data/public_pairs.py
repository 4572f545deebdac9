"""Formats of public data sets of two responses, one row a comparison.

>>> row = {"history": "Why?", "human_ref_A": "a", "human_ref_B": "b", "labels": 0,
...        "score_A": 2, "score_B": 5, "score_ratio": 2.5, "domain": "d"}
>>> [record] = shp(row, Place("demo", 1))
>>> record.ranks, record.strength
((1, 0), 2.5)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rm_jax.data.pairs import pair_record
from rm_jax.data.rows import (
    Place,
    Row,
    int_field,
    number_field,
    object_field,
    objects_field,
    ranks_by,
    text_field,
)
from rm_jax.data.schema import Record, RowError, record_from_dict

_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
_FIRST, _SECOND = [0, 1], [1, 0]  # ranks where that response is preferred
_UPVOTES = (-(2**31), 2**31 - 1)


def conversations(row: Row, place: Place) -> list[Record]:
    """`chosen` and `rejected` are whole conversations; the prompt is what they share.

    A `prompt` column repeats some of it and is not read. Scores of the two sides, where
    the data set has them, become the rating `score`. Layout of UltraFeedback binarised,
    Skywork-Reward-80K, preference_700K and the Tulu 3 mixture (their cards).
    """
    for field in ("chosen", "rejected"):
        objects_field(row, field, place)
    extra: dict[str, Any] = {"id": row.get("id")}
    for names in _SCORES:
        scores = [row.get(name) for name in names]
        if scores != [None, None]:
            extra["ratings"] = {"score": scores}
    sides = {field: row[field] for field in ("chosen", "rejected")}
    return [pair_record(sides, extra, place)]


def tldr(row: Row, place: Place) -> list[Record]:
    """A Reddit post or news article and two summaries, `choice` the better one's index.

    The prompt is the query of the paper's code: a post with SUBREDDIT, TITLE, POST and
    "TL;DR:", an article with "Article:" and "TL;DR:". The worker is the annotator.
    Stiennon et al. 2020 (arXiv:2009.01325), data set card, openai/summarize-from-
    feedback.
    """
    info = object_field(row, "info", place)
    texts = [
        text_field(s, "text", place) for s in objects_field(row, "summaries", place)
    ]
    if len(texts) != 2:
        raise RowError(str(place), "summaries", f"want 2 summaries, got {len(texts)}")
    ranks = [_FIRST, _SECOND][int_field(row, "choice", (0, 1), place)]
    worker, confidence = row.get("worker"), (row.get("extra") or {}).get("confidence")
    more = {
        "annotators": [] if worker is None else [{"id": worker, "ranks": ranks}],
        "meta": {} if confidence is None else {"confidence": confidence},
    }
    return _pair(_query(info, place), [t.strip() for t in texts], ranks, more, place)


def _query(info: Row, place: Place) -> str:
    if info.get("post") is None:
        return f"Article:\n\n{text_field(info, 'article', place)}\n\nTL;DR:"
    subreddit, title, post = (
        text_field(info, field, place) for field in ("subreddit", "title", "post")
    )
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def shp(row: Row, place: Place) -> list[Record]:
    """A Reddit post and two comments; `labels` is 1 where A is preferred, 0 for B.

    Ratings `score` are the comments' upvotes, the strength is `score_ratio`, the higher
    over the lower. Ethayarajh et al. 2022 (arXiv:2110.08420), data set card.
    """
    texts = [text_field(row, f"human_ref_{side}", place) for side in "AB"]
    scores = [int_field(row, f"score_{side}", _UPVOTES, place) for side in "AB"]
    ranks = [_SECOND, _FIRST][int_field(row, "labels", (0, 1), place)]
    domain = row.get("domain")
    more = {
        "strength": row.get("score_ratio"),
        "ratings": {"score": scores},
        "meta": {} if domain is None else {"domain": domain},
    }
    return _pair(text_field(row, "history", place), texts, ranks, more, place)


def pku_saferlhf(row: Row, place: Place) -> list[Record]:
    """PKU-SafeRLHF by helpfulness: `better_response_id`, 0 or 1, is the better one."""
    return _pku(row, "better_response_id", place)


def pku_saferlhf_safe(row: Row, place: Place) -> list[Record]:
    """PKU-SafeRLHF by harmlessness: `safer_response_id`, 0 or 1, is the better one.

    Of two unsafe (or two safe) responses it names one too.
    """
    return _pku(row, "safer_response_id", place)


def _pku(row: Row, axis: str, place: Place) -> list[Record]:
    """One axis; ratings `safe` (1 or 0) and, where it is there, `severity` (0 to 3).

    Ji et al. 2024 (arXiv:2406.15513), data set card.
    """
    texts = [text_field(row, f"response_{i}", place) for i in (0, 1)]
    names = {"safe": "is_response_{}_safe", "severity": "response_{}_severity_level"}
    columns = {
        key: [row.get(name.format(i)) for i in (0, 1)] for key, name in names.items()
    }
    if any(not isinstance(safe, bool) for safe in columns["safe"]):
        why = f"want true or false of both, got {columns['safe']!r:.80}"
        raise RowError(str(place), "is_response_0_safe", why)
    ratings = {"safe": [int(safe) for safe in columns["safe"]]}
    if columns["severity"] != [None, None]:
        ratings["severity"] = columns["severity"]
    ranks = [_FIRST, _SECOND][int_field(row, axis, (0, 1), place)]
    prompt = text_field(row, "prompt", place)
    return _pair(prompt, texts, ranks, {"ratings": ratings}, place)


def webgpt(row: Row, place: Place) -> list[Record]:
    """A question and two answers with a score each, from -1 to 1, that sum to 0.

    The answer of positive score is preferred; both 0 is a tie. The strength is the
    preferred answer's score. Nakano et al. 2021 (arXiv:2112.09332), data set card.
    """
    question = object_field(row, "question", place)
    texts = [text_field(row, f"answer_{i}", place) for i in (0, 1)]
    scores = [number_field(row, f"score_{i}", (-1, 1), place) for i in (0, 1)]
    more = {"strength": max(scores), "ratings": {"score": scores}}
    prompt = text_field(question, "full_text", place)
    return _pair(prompt, texts, ranks_by(scores), more, place)


def helpsteer3(row: Row, place: Place) -> list[Record]:
    """A conversation and two responses; `overall_preference` is from -3 to 3.

    Below 0 response 1 is better, above 0 response 2, 0 is about the same; the strength
    is its size. Each individual preference is an annotator, named by its number. Wang
    et al. 2025 (arXiv:2505.11475), data set card, config `preference`.
    """
    texts = [text_field(row, f"response{i}", place) for i in (1, 2)]
    preference = int_field(row, "overall_preference", (-3, 3), place)
    people = (
        []
        if row.get("individual_preference") is None
        else objects_field(row, "individual_preference", place)
    )
    scores = [int_field(p, "score", (-3, 3), place) for p in people]
    more = {
        "strength": abs(preference),
        "annotators": [
            {"id": str(i), "ranks": _signed(score)} for i, score in enumerate(scores)
        ],
        "meta": {k: row[k] for k in ("domain", "language") if row.get(k) is not None},
    }
    context = objects_field(row, "context", place)
    return _pair(context, texts, _signed(preference), more, place)


def _signed(preference: int) -> list[int]:
    """Ranks of two responses: below 0 the first is better, above 0 the second."""
    return ranks_by([-preference, preference])


def _pair(
    prompt: str | list[Row],
    texts: Sequence[str],
    ranks: Sequence[int | None],
    more: Mapping[str, Any],
    place: Place,
) -> list[Record]:
    row = {"prompt": prompt, "responses": list(texts), "ranks": list(ranks), **more}
    named = {"id": place.id, "source": place.source, **row}
    return [record_from_dict(named, str(place))]
