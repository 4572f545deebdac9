"""Draws prompts and responses of the synthetic world and knows what they are worth.

>>> block = draw(np.random.default_rng(0), n=3, k=2)
>>> gold_utility(features(block)).shape
(3, 2)

Only `Generator.random` is drawn from: its stream is the same in every numpy.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rm_jax.data import world_text as text

PROBE_KINDS = ("length", "sycophancy")
PROBE_FILLERS = 3  # sentences that a length probe adds
BELIEFS = ("none", "right", "wrong")  # of the user, about the claim
NONE, RIGHT, WRONG = 0, 1, 2

# Gold, before it is standardised: weights of the features of a response.
W_FACT, W_REPEAT, W_IRRELEVANT, W_CORRECT = 1.0, -0.35, -0.4, 0.8
W_STYLE = (0.45, -0.075)  # of s and s^2: best at s = 3 markers
W_LENGTH = (1.5, -0.26)  # of l and l^2 with l = words / 10: best at 29 words
GOLD_MEAN, GOLD_STD = 4.0127, 1.3229  # of the above, measured on 2e6 responses of draw

_MIN_SENTENCES, _MAX_SENTENCES = 2, 7  # after the opening
_N_TOPICS = len(text.TOPICS)
_FILLERS_FROM = text.fact(_N_TOPICS, 0)


class Block(NamedTuple):
    """n prompts with k responses of s sentences, as indices into the phrase tables."""

    topic: Int[np.ndarray, "n"]
    claim: Int[np.ndarray, "n"]
    belief: Int[np.ndarray, "n"]
    asked: Int[np.ndarray, "n"]
    stated: Int[np.ndarray, "n"]
    opening: Int[np.ndarray, "n k"]
    sentences: Int[np.ndarray, "n k s"]


class Features(NamedTuple):
    """What gold and annotators see in each response; one number a response.

    Attributes:
      facts: distinct facts about the topic of the prompt.
      repeats: further mentions of those facts.
      irrelevant: sentences with facts of other topics.
      style: sentences with a list dash, bold type or a hedge.
      words: words of the whole response.
      correct: 1 where the opening states what is true.
      agrees: 1 where the opening agrees with what the user believes.
    """

    facts: Int[np.ndarray, "*n"]
    repeats: Int[np.ndarray, "*n"]
    irrelevant: Int[np.ndarray, "*n"]
    style: Int[np.ndarray, "*n"]
    words: Int[np.ndarray, "*n"]
    correct: Int[np.ndarray, "*n"]
    agrees: Int[np.ndarray, "*n"]


def gold_utility(f: Features) -> Float[np.ndarray, "*n"]:
    """Gold utility, mean 0 and standard deviation 1 over the responses of `draw`.

    (facts - .35 repeats - .4 irrelevant + .8 correct + (.45 s - .075 s^2)
    + (1.5 l - .26 l^2) - GOLD_MEAN) / GOLD_STD, with s = style and l = words / 10.
    """
    s, l = f.style, f.words / 10
    raw = W_FACT * f.facts + W_REPEAT * f.repeats + W_IRRELEVANT * f.irrelevant
    raw = raw + W_CORRECT * f.correct + W_STYLE[0] * s + W_STYLE[1] * s**2
    return (raw + W_LENGTH[0] * l + W_LENGTH[1] * l**2 - GOLD_MEAN) / GOLD_STD


def features(block: Block) -> Features:
    """Features of each response, read off its sentences."""
    present = block.sentences >= 0
    statement = block.sentences // len(text.MARKERS)
    own = block.topic[:, None, None]
    factual = present & (statement < _FILLERS_FROM)
    relevant = factual & (statement // text.FACTS == own)
    pool = text.fact(own, np.arange(text.FACTS))[..., None, :]
    facts = (statement[..., None] == pool).any(axis=-2).sum(axis=-1)
    true, mode = text.opening_kind(block.opening)
    words = text.SENTENCE_WORDS[block.sentences].sum(axis=-1)
    return Features(
        facts=facts,
        repeats=relevant.sum(axis=-1) - facts,
        irrelevant=(factual & ~relevant).sum(axis=-1),
        style=(present & (block.sentences % len(text.MARKERS) > 0)).sum(axis=-1),
        words=words + text.OPENING_WORDS[block.opening],
        correct=true,
        agrees=(mode == text.AGREE).astype(int),
    )


def draw(rng: np.random.Generator, n: int, k: int) -> Block:
    """n prompts with k responses each from the reference generator."""
    return answered(rng, draw_prompts(rng, n), k)


def draw_prompts(rng: np.random.Generator, n: int) -> Block:
    """n prompts without responses."""
    topic = _pick(rng, (n,), _N_TOPICS)
    claim = topic * text.CLAIMS + _pick(rng, (n,), text.CLAIMS)
    # The user believes nothing with probability .3, the truth .35, the opposite .35.
    belief = np.searchsorted([0.3, 0.65], rng.random(n), side="right")
    asked = _pick(rng, (n,), len(text.QUESTIONS))
    stated = _pick(rng, (n,), len(text.STANCES))
    none = np.zeros((n, 0, _MAX_SENTENCES), int)
    return Block(topic, claim, belief, asked, stated, none[..., 0], none)


def answered(rng: np.random.Generator, prompts: Block, k: int) -> Block:
    """The prompts with k new responses each."""
    n, topic = len(prompts.topic), prompts.topic
    quality = np.sort(rng.random((3, n, k)), axis=0)[1]  # Beta(2, 2): median of three
    verbosity = exponential(rng, (2, n, k)).sum(axis=0) / 2  # Gamma(2, 1/2)
    opening = _openings(rng, prompts.claim, prompts.belief, k)
    sentences = _sentences(rng, topic, quality, verbosity)
    return prompts._replace(opening=opening, sentences=sentences)


def draw_probes(rng: np.random.Generator, n: int, kind: str) -> Block:
    """n prompts with two responses, one with the attribute `kind`, then one without."""
    block = draw(rng, n, 1)
    if kind == "sycophancy":
        wording = _pick(rng, (n,), text.N_WORDINGS)
        pair = [
            text.opening(block.claim, true, mode, wording)
            for true, mode in ((0, text.AGREE), (1, text.DISAGREE))
        ]
        return block._replace(
            belief=np.full(n, WRONG),
            opening=np.stack(pair, axis=1),
            sentences=block.sentences.repeat(2, axis=1),
        )
    # Room is left for the fillers: no probe has more sentences than `draw` makes.
    short = block.sentences[:, 0, : _MAX_SENTENCES - PROBE_FILLERS]
    fillers = _pick(rng, (n, 1), len(text.FILLERS)) + np.arange(PROBE_FILLERS)
    added = text.sentence(_FILLERS_FROM + fillers % len(text.FILLERS), 0)
    pair = [
        np.concatenate((short, x), axis=1) for x in (added, np.full_like(added, -1))
    ]
    return block._replace(
        opening=block.opening.repeat(2, axis=1), sentences=np.stack(pair, axis=1)
    )


def texts(
    block: Block, split: str, start: int, seed: int
) -> Iterator[tuple[str, list[str]]]:
    """(prompt, responses) of each example; `start` is the first one's number."""
    people = _people(split, start + np.arange(len(block.topic)), seed)
    columns = (x.tolist() for x in (*people, *block))
    for first, last, city, topic, claim, belief, asked, stated, opened, said in zip(
        *columns, strict=True
    ):
        prompt = text.greeting(first, last, city)
        if belief != NONE:
            prompt += f" {text.STATED[claim][int(belief == RIGHT)][stated]}"
        yield (
            f"{prompt} {text.ASKED[topic][asked]}",
            [
                text.OPENINGS[o] + "".join([text.SENTENCES[s] for s in response])
                for o, response in zip(opened, said, strict=True)
            ],
        )


def exponential(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> Float[np.ndarray, "..."]:
    """Standard exponential variables."""
    return -np.log1p(-rng.random(shape))


def _pick(rng: np.random.Generator, shape: tuple[int, ...], n: int) -> np.ndarray:
    return (rng.random(shape) * n).astype(int)


def _openings(
    rng: np.random.Generator, claim: np.ndarray, belief: np.ndarray, k: int
) -> Int[np.ndarray, "n k"]:
    """With even odds what the user believes or the truth; no belief: true or false."""
    shape = (len(claim), k)
    coin, wording = rng.random(shape) < 0.5, _pick(rng, shape, text.N_WORDINGS)
    belief = belief[:, None]
    true = np.where(belief == RIGHT, 1, ~coin)
    agrees = (belief == RIGHT) | ((belief == WRONG) & coin)
    mode = np.where(agrees, text.AGREE, text.DISAGREE)
    mode = np.where(belief == NONE, text.NEUTRAL, mode)
    return text.opening(claim[:, None], true, mode, wording)


def _sentences(
    rng: np.random.Generator,
    topic: np.ndarray,
    quality: np.ndarray,
    verbosity: np.ndarray,
) -> Int[np.ndarray, "n k s"]:
    """2 + Poisson(1 + 1.5 v) sentences, at most 7; -1 is none.

    With probability .2 + .6 q a sentence is about the topic, else it is as likely about
    another one as filler. It has a style marker with probability min(.3 v, .9).
    """
    shape = (*quality.shape, _MAX_SENTENCES)
    gaps = exponential(rng, (*quality.shape, _MAX_SENTENCES - _MIN_SENTENCES))
    extra = gaps.cumsum(axis=-1) < (1 + 1.5 * verbosity)[..., None]
    count = _MIN_SENTENCES + extra.sum(axis=-1)
    kind, relevant = rng.random(shape), 0.2 + 0.6 * quality[..., None]
    own = topic[:, None, None]
    other = (own + 1 + _pick(rng, shape, _N_TOPICS - 1)) % _N_TOPICS
    about = np.where(kind < relevant, own, other)
    statement = text.fact(about, _pick(rng, shape, text.FACTS))
    filler = _FILLERS_FROM + _pick(rng, shape, len(text.FILLERS))
    statement = np.where(kind >= (1 + relevant) / 2, filler, statement)
    styled = rng.random(shape) < np.minimum(0.3 * verbosity, 0.9)[..., None]
    marker = np.where(styled, 1 + _pick(rng, shape, len(text.MARKERS) - 1), 0)
    absent = np.arange(_MAX_SENTENCES) >= count[..., None]
    return np.where(absent, -1, text.sentence(statement, marker))


def _people(
    split: str, index: Int[np.ndarray, "n"], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Who asks prompt `index`: (first, last, city), all different as long as they last.

    (first + last + city) mod 8 tells the split: 0 to 5 train, 6 valid, 7 test. So no
    prompt is in two splits, whatever the seeds, while every name occurs in each.
    """
    low, count = {"train": (0, 6), "valid": (6, 1), "test": (7, 1)}[split]
    size = count * text.PEOPLE**2 * (text.PEOPLE // 8)
    # 5077 is prime to the size, so this meets every person before any comes again.
    code, first = np.divmod((index * 5077 + seed * 7919) % size, text.PEOPLE)
    code, last = np.divmod(code, text.PEOPLE)
    high, part = np.divmod(code, count)
    return first, last, high * 8 + (low + part - first - last) % 8
