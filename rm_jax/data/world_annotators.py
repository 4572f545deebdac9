"""Annotators of the synthetic world: from utilities to votes, ranks and strengths.

An annotator perceives z = u / temperature + Gumbel noise and with probability `noise`
reports the reverse order. So of two responses with d = (u_A - u_B) / temperature and
t = tie_threshold

  P(A > B) = (1 - noise) sigmoid(d - t) + noise sigmoid(-d - t), and the rest are ties:

Bradley-Terry for t = 0, else Rao & Kupper 1967. The order of K > 2 responses is
Plackett-Luce, neighbours closer than t tied; pairs keep the law above if t = 0.

Several annotators' orders are added up by Borda count. For K = 2 that is the majority,
with equal votes a tie.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rm_jax.data.schema import Annotator
from rm_jax.data.world_generator import Features, exponential, gold_utility


class Votes(NamedTuple):
    """Rank of every response by every annotator, and by all of them together."""

    each: Int[np.ndarray, "n m k"]
    ranks: Int[np.ndarray, "n k"]


def utility(f: Features, knobs: Mapping[str, Any]) -> Float[np.ndarray, "*n"]:
    """What annotators go by: gold + length_bias words / 10 + sycophancy_bias agrees."""
    bias = knobs["length_bias"] * f.words / 10 + knobs["sycophancy_bias"] * f.agrees
    return gold_utility(f) + bias


def log_wins(
    difference: Float[np.ndarray, "*n"], knobs: Mapping[str, Any]
) -> Float[np.ndarray, "*n"]:
    """log P(A > B) of one annotator's vote, from u_A - u_B (the module's formula)."""
    d, t = difference / knobs["temperature"], knobs["tie_threshold"]
    log_noise = math.log(knobs["noise"]) if knobs["noise"] else -math.inf
    attentive = math.log1p(-knobs["noise"]) - np.logaddexp(0, t - d)
    return np.logaddexp(attentive, log_noise - np.logaddexp(0, t + d))


def vote(
    rng: np.random.Generator, u: Float[np.ndarray, "n k"], knobs: Mapping[str, Any]
) -> Votes:
    """Draws every annotator's ranking of every prompt's responses."""
    n, k = u.shape
    shape = (n, knobs["annotators"], k)
    gumbel = -np.log(np.maximum(exponential(rng, shape), 1e-300))
    z = u[:, None] / knobs["temperature"] + gumbel
    reverse = rng.random((*shape[:2], 1)) < knobs["noise"]
    each = ranks_of(np.where(reverse, -z, z), knobs["tie_threshold"])
    borda = sum(map(_borda, each.swapaxes(0, 1)))
    return Votes(each, ranks_of(borda, 0.5))


def _borda(ranks: Int[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Responses that are worse minus those that are better."""
    count = np.zeros(ranks.shape, int)
    np.add.at(count, (np.arange(len(ranks))[:, None], ranks), 1)
    up_to = np.take_along_axis(count.cumsum(axis=1), ranks, axis=1)
    same = np.take_along_axis(count, ranks, axis=1)
    return (ranks.shape[1] - up_to - (up_to - same)).astype(float)


def ranks_of(values: Float[np.ndarray, "*n k"], gap: float) -> Int[np.ndarray, "*n k"]:
    """0 for the highest value; neighbours closer than `gap` share a rank."""
    order = np.argsort(-values, axis=-1, kind="stable")
    steps = -np.diff(np.take_along_axis(values, order, axis=-1), axis=-1) >= gap
    ranks = np.zeros(values.shape, int)
    np.put_along_axis(ranks, order[..., 1:], steps.cumsum(axis=-1), axis=-1)
    return ranks


def strengths(
    u: Float[np.ndarray, "n k"], votes: Votes, knobs: Mapping[str, Any]
) -> Float[np.ndarray, "n"]:
    """min(levels, 1 + floor((max u - min u) / temperature)); 0 where all tie."""
    logits = np.floor(np.ptp(u, axis=1) / knobs["temperature"])
    level = np.minimum(1 + logits, knobs["strength_levels"])
    return np.where(votes.ranks.any(axis=1), level, 0.0)


def shares(votes: Votes) -> Float[np.ndarray, "n"]:
    """Share of the votes for response 0 of two, a tie counting half."""
    return np.mean((1 + np.sign(votes.each[..., 1] - votes.each[..., 0])) / 2, axis=1)


def label_fields(
    u: Float[np.ndarray, "n k"], votes: Votes, knobs: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The label fields of each Record: ranks and, as the knobs ask for them, others.

    strength where strength_levels > 0; annotators where there are several; soft where
    there are several and K = 2.
    """
    columns = {"ranks": list(map(tuple, votes.ranks.tolist()))}
    if knobs["strength_levels"]:
        columns["strength"] = strengths(u, votes, knobs).tolist()
    if knobs["annotators"] > 1:
        columns["annotators"] = list(map(_annotators, votes.each.tolist()))
    if knobs["annotators"] > 1 and u.shape[1] == 2:
        columns["soft"] = shares(votes).tolist()
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _annotators(ranks: list[list[int]]) -> tuple[Annotator, ...]:
    return tuple(Annotator(f"annotator-{j}", tuple(r)) for j, r in enumerate(ranks))
