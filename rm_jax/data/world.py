"""A synthetic preference world: readable text, a known gold utility, biased annotators.

>>> world = make_world({"train": 2, "noise": 0.0})
>>> record = next(world.records("train"))
>>> record.prompt[0].role, len(record.responses), len(record.meta["gold"])
('user', 2, 2)

Design after the synthetic gold reward models of Gao et al. 2022 (arXiv:2210.10760):
gold peaks inside the bulk of length and style, so that a proxy can be over-optimised.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rm_jax.data import world_text
from rm_jax.data.schema import Message, Record, record_to_dict
from rm_jax.data.world_annotators import Votes, label_fields, log_wins, utility, vote
from rm_jax.data.world_generator import (
    BELIEFS,
    PROBE_KINDS,
    Block,
    answered,
    draw_probes,
    draw_prompts,
    features,
    gold_utility,
    texts,
)

SPLITS = ("train", "valid", "test")
WORLD_DEFAULTS = {
    "seed": 0,
    "train": 20_000,  # prompts of each split; the first n are the same for every size
    "valid": 1_000,
    "test": 4_000,
    "responses": 2,  # of each prompt
    "annotators": 1,  # who vote independently
    "temperature": 0.4,  # of the choice, in standard deviations of gold
    "noise": 0.1,  # probability that an annotator reports the order reversed
    "length_bias": 0.2,  # utility of ten more words
    "sycophancy_bias": 0.6,  # utility of agreeing with what the user believes
    "tie_threshold": 0.0,  # perceived differences below it are ties; in logits
    "strength_levels": 4,  # strength is 1 ... n, one a logit; 0 gives none
}
_LIMITS = {
    "seed": (0, 2**32 - 1),
    "train": (0, 10**9),
    "valid": (0, 10**9),
    "test": (0, 10**9),
    "responses": (2, 1024),
    "annotators": (1, 100),
    "temperature": (0.01, 100.0),
    "noise": (0.0, 0.5),
    "length_bias": (-10.0, 10.0),
    "sycophancy_bias": (-10.0, 10.0),
    "tie_threshold": (0.0, 10.0),
    "strength_levels": (0, 100),
}
_BLOCK = 2048  # prompts drawn together
_MANY, _PART = 64, 64  # with more responses than that, they are drawn for 64 prompts
_PAIRS = 2**22  # compared together; as many as 2048 prompts with 64 responses have
_OF_PROBES = (
    "seed", "temperature", "noise", "length_bias", "sycophancy_bias", "tie_threshold"
)  # fmt: skip


class Ceiling(NamedTuple):
    """How well the annotators' own utility, without noise, predicts labels.

    Attributes:
      agreement: share of a split's untied pairs whose label is the order of utility.
      expected: the same for one annotator's votes, in expectation over those votes:
        sum of max(p, q) / sum of (p + q), p and q being the chances of either order.
    """

    agreement: float
    expected: float


class Probe(NamedTuple):
    """Two responses that differ in one attribute: 0 has it, 1 does not.

    Attributes:
      record: prompt and both responses, unranked.
      gold: log-odds that an annotator without biases, but with the world's temperature,
        noise and ties, prefers response 0; gold difference / temperature if noise and
        tie_threshold are 0.
      annotator: the same log-odds for one of the world's annotators.
    """

    record: Record
    gold: float
    annotator: float


class Injected(NamedTuple):
    """Mean effect of a probe's attribute, in nats; the bias is annotator - gold."""

    gold: float
    annotator: float


class World:
    """Preference records with known truth; make it with `make_world`.

    The utility of a response is u = gold + length_bias * words / 10
    + sycophancy_bias * agrees; `world_annotators` says how it becomes labels. Prompts
    depend on the seed alone, responses on seed and `responses`, so worlds that differ
    in other knobs are paired.

    Attributes:
      knobs: every knob of WORLD_DEFAULTS, checked.
    """

    def __init__(self, knobs: Mapping[str, Any]):
        self.knobs = dict(knobs)

    def records(self, split: str | None = None) -> Iterator[Record]:
        """Records of "train", "valid" or "test"; None is all three in order.

        No prompt is in two splits. meta holds plain JSON values: split, topic, belief
        of the user (none, right or wrong) and, one value a response, gold, utility and
        the fields of `Features`.

        Raises:
          ValueError: unknown split.
        """
        names = SPLITS if split is None else (_known(split, SPLITS, "split"),)
        return (record for name in names for record in self._labelled(name))

    def fingerprint(self) -> str:
        """Sha256 of the knobs and the first records of each split."""
        sha = hashlib.sha256(json.dumps(self.knobs, sort_keys=True).encode())
        for split in SPLITS:
            for record, _ in zip(self.records(split), range(64), strict=False):
                sha.update(json.dumps(record_to_dict(record)).encode())
        return sha.hexdigest()

    def ceiling(self, split: str) -> Ceiling:
        """Agreement of the annotators' utility with the labels of a split.

        Two equal utilities count one half. For K > 2 the expectation is exact only
        without ties.

        Raises:
          ValueError: unknown split, or one without an untied pair.
        """
        right = untied = best = either = 0.0
        for du, label in self._pairs(_known(split, SPLITS, "split")):
            right += np.sum((1 + label * np.sign(du))[label != 0]) / 2
            untied += np.sum(label != 0)
            p, q = (np.exp(log_wins(d, self.knobs)) for d in (du, -du))
            best += np.sum(np.maximum(p, q))
            either += np.sum(p + q)
        if not untied:
            raise ValueError(
                f"world split {split!r} has no untied pair, so no ceiling: raise the "
                f"knob {split!r} or lower 'tie_threshold'"
            )
        return Ceiling(float(right / untied), float(best / either))

    def probes(self, n: int, kind: str) -> list[Probe]:
        """Counterfactual pairs on prompts that are never in the training split.

        Args:
          n: how many.
          kind: "length", the same response with PROBE_FILLERS sentences added that say
            nothing; or "sycophancy", an opening that agrees with a user who is wrong
            against one of the same length that states the truth.

        Raises:
          ValueError: unknown kind, or n < 1.
        """
        stream = len(SPLITS) + PROBE_KINDS.index(
            _known(kind, PROBE_KINDS, "probe kind")
        )
        if n < 1:
            raise ValueError(f"want at least 1 probe, got n = {n}")
        block = draw_probes(self._rng(stream, 0), n, kind)
        f = features(block)
        fair, biased = (
            self.log_odds(u[:, 0] - u[:, 1]).tolist()
            for u in (gold_utility(f), utility(f, self.knobs))
        )
        unlabelled = ({"ranks": (None, None)} for _ in range(n))
        records = self._records(f"probe-{kind}", 0, block, unlabelled)
        return [Probe(*probe) for probe in zip(records, fair, biased, strict=True)]

    def log_odds(self, difference: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """log P(A > B) - log P(B > A) of one annotator's vote, from u_A - u_B."""
        return log_wins(difference, self.knobs) - log_wins(-difference, self.knobs)

    def _rng(self, stream: int, *block: int) -> np.random.Generator:
        return np.random.default_rng([self.knobs["seed"], stream, *block])

    def _blocks(self, split: str) -> Iterator[tuple[int, Block, Votes]]:
        """(number of its first prompt, block, votes); the last one is cut to size."""
        size, k = self.knobs[split], self.knobs["responses"]
        stream, together = SPLITS.index(split), _PART if k > _MANY else _BLOCK
        for start in range(0, size, together):
            number, at = divmod(start, _BLOCK)
            rng = self._rng(stream, number)
            block = draw_prompts(rng, _BLOCK)
            if together < _BLOCK:
                block = Block(*(x[at : at + together] for x in block))
                rng = self._rng(stream, number, at + 1)  # of a 0, numpy makes no other
            block = answered(rng, block, k)
            votes = vote(rng, utility(features(block), self.knobs), self.knobs)
            cut = slice(size - start)
            block = Block(*(x[cut] for x in block))
            votes = Votes(*(x[cut] for x in votes))
            yield start, block, votes

    def _pairs(
        self, split: str
    ) -> Iterator[tuple[Float[np.ndarray, "n p"], Int[np.ndarray, "n p"]]]:
        """(u_A - u_B, 1 where A is preferred, -1 B, 0 neither) of all pairs A, B."""
        a, b = np.triu_indices(self.knobs["responses"], k=1)
        together = max(1, _PAIRS // len(a))
        for _, block, votes in self._blocks(split):
            u = utility(features(block), self.knobs)
            for i in range(0, len(u), together):
                rows, ranks = u[i : i + together], votes.ranks[i : i + together]
                label = np.sign(ranks[:, b] - ranks[:, a])
                yield rows[:, a] - rows[:, b], label

    def _labelled(self, split: str) -> Iterator[Record]:
        for start, block, votes in self._blocks(split):
            u = utility(features(block), self.knobs)
            labels = label_fields(u, votes, self.knobs)
            yield from self._records(split, start, block, labels)

    def _records(
        self, name: str, start: int, block: Block, labels: Iterable[Mapping[str, Any]]
    ) -> Iterator[Record]:
        f = features(block)
        worth = {"gold": gold_utility(f), "utility": utility(f, self.knobs)}
        columns = {**worth, **f._asdict()}
        topics = list(world_text.TOPICS)
        rows = zip(
            labels,
            texts(block, name if name in SPLITS else "test", start, self.knobs["seed"]),
            block.topic.tolist(),
            block.belief.tolist(),
            zip(*(c.tolist() for c in columns.values()), strict=True),
            strict=True,
        )
        for i, (label, (prompt, responses), topic, belief, values) in enumerate(rows):
            meta = {"split": name, "topic": topics[topic], "belief": BELIEFS[belief]}
            yield Record(
                id=f"world-{self.knobs['seed']}-{name}-{start + i}",
                source="world",
                prompt=(Message("user", prompt),),
                responses=tuple((Message("assistant", r),) for r in responses),
                meta={**meta, **dict(zip(columns, values, strict=True))},
                **label,
            )


def make_world(knobs: Mapping[str, Any]) -> World:
    """The world with `knobs` in place of their WORLD_DEFAULTS.

    Raises:
      ValueError: unknown knob, wrong type or out of range, naming what is known.
    """
    for name in knobs:
        _known(name, list(WORLD_DEFAULTS), "knob")
    return World({**WORLD_DEFAULTS, **{k: _checked(k, v) for k, v in knobs.items()}})


def probe_knobs(knobs: Mapping[str, Any]) -> dict[str, int | float]:
    """The knobs that the probes of a world depend on, all others left out.

    Raises:
      ValueError: as `make_world`.
    """
    made = make_world(knobs).knobs
    return {name: made[name] for name in _OF_PROBES}


def injected(probes: Sequence[Probe]) -> Injected:
    """Mean log-odds in favour of the attribute, in nats a probe.

    A model's mean score difference (response 0 - response 1) goes beside them: its
    measured bias is model - gold, the injected one annotator - gold. With noise > 0 the
    log-odds saturate and no difference of scores can follow them everywhere, so even a
    perfect model meets them only roughly.

    Raises:
      ValueError: no probes.
    """
    if not probes:
        raise ValueError("no probes to average over: want at least 1")
    gold, annotator = np.mean([(p.gold, p.annotator) for p in probes], axis=0)
    return Injected(float(gold), float(annotator))


def vocabulary() -> list[str]:
    r"""Every token of the world's texts, by ``\w+|[^\w\s]``, and the chat roles."""
    return world_text.vocabulary()


def _known(name: str, names: Sequence[str], what: str) -> str:
    if name not in names:
        raise ValueError(f"unknown world {what} {name!r}; known: {list(names)}")
    return name


def _checked(name: str, value: Any) -> int | float:
    low, high = _LIMITS[name]
    kind = type(WORLD_DEFAULTS[name])
    number = isinstance(value, int if kind is int else int | float)
    if not number or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(
            f"world knob {name} = {value!r}: want {kind.__name__} from {low} to "
            f"{high}, e.g. {WORLD_DEFAULTS[name]}"
        )
    return kind(value)
