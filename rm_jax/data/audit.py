"""Audit: what is wrong with preference records, counted before anything trains on them.

>>> from rm_jax.data.schema import Message
>>> record = Record("7", "demo", (Message("user", "2 + 2?"),),
...     ((Message("assistant", "4"),), (Message("assistant", "4"),)), (0, 1))
>>> audit(lambda: [record], {"identical_responses": "keep"}).report.lines()[1].split()
['identical_responses', '1', 'keep', '7']
"""

import array
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt16

from rm_jax.data.schema import Record, response_text

# Kind of finding -> what to do with the record.
DEFAULT_POLICY = {
    "identical_responses": "drop",  # all texts equal: nothing to learn
    "diverging_prompts": "drop",  # the responses answer different prompts
    "empty_side": "drop",  # the prompt or a response is empty or white
    "unlabelled": "drop",  # no two ranks, no soft label, no rating, no step label
    "conflict": "keep",  # the same two texts preferred both ways: real disagreement
    "duplicate": "keep",  # prompt, responses and labels seen before
    "tied": "keep",  # labelled, but no response is preferred to another
    "zero_weight": "keep",  # weight 0: counts in no loss and no metric
}
_BIT = {kind: 1 << i for i, kind in enumerate(DEFAULT_POLICY)}
_TRIMMABLE = 1 << len(_BIT)
_ACTIONS = ("keep", "drop", "raise")
_EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class Report:
    """What the audit found; a record may be of several kinds.

    Attributes:
      total: records read.
      kept: records that stay.
      trimmed: records of K > 2 that stay without their empty responses.
      counts: kind -> records of that kind.
      kept_tied: records that stay and are tied.
      examples: kind -> ids of the first five.
      policy: kind -> what was done.
    """

    total: int
    kept: int
    trimmed: int
    counts: Mapping[str, int]
    kept_tied: int
    examples: Mapping[str, tuple[str, ...]]
    policy: Mapping[str, str]

    def lines(self) -> list[str]:
        """The report as text: totals, a line for every kind, perhaps a warning."""
        head = f"audit: {self.total} records, {self.kept} kept"
        if self.trimmed:
            head += f", {self.trimmed} of them without their empty responses"
        rows = [
            f"  {kind:<20}{count:>8}  {self.policy[kind]:<5}  "
            f"{', '.join(self.examples[kind])}"
            for kind, count in self.counts.items()
        ]
        if self.kept and self.kept_tied == self.kept:
            rows.append(
                f"  all {self.kept} records kept are tied: no response is preferred"
            )
        return [head, *(row.rstrip() for row in rows)]


class Audited(NamedTuple):
    """Records that passed the audit, and what it found.

    Attributes:
      records: starts an iteration over the kept records, in their order.
      report: the findings.
    """

    records: Callable[[], Iterator[Record]]
    report: Report


def audit(
    records: Callable[[], Iterable[Record]], policy: Mapping[str, str]
) -> Audited:
    """Looks for records that should not be trained on, and leaves out what policy says.

    Reads all records once; iterating the result reads them again. Memory: 8 bytes for
    every preferred pair of texts and 10 for every record (64-bit hashes: at 100 million
    pairs one false conflict in 2,000 audits).

    `empty_side: drop` takes from a record of K > 2 only the empty responses, as long as
    two stay that are labelled, not all alike. `conflict` counts every record with a
    pair that some record, or the record itself, prefers the other way. `duplicate`
    counts the second and later copies. Where all left are `tied`, the report warns.

    Args:
      records: starts an iteration, the same records each time (`Source.records`).
      policy: kind -> keep, drop or raise; others as in DEFAULT_POLICY.

    Raises:
      ValueError: unknown kind or action, a finding whose policy is raise, no record
        that stays, or none of them with a weight above 0.
    """
    actions = {**DEFAULT_POLICY, **policy}
    _check(actions)
    scan = _Scan(records)
    stays = ~scan.dropped(actions)
    report = Report(
        total=len(scan.flags),
        kept=int(stays.sum()),
        trimmed=int(scan.trimmed(actions).sum()),
        counts={kind: int(scan.of(kind).sum()) for kind in DEFAULT_POLICY},
        kept_tied=int((stays & scan.of("tied")).sum()),
        examples=scan.examples,
        policy=actions,
    )
    _refuse(report)
    if not (stays & ~scan.of("zero_weight")).any():
        raise ValueError(
            f"audit: all {report.kept} weights are 0 (zero_weight), so there is "
            "nothing to learn or measure: give records a weight above 0"
        )
    trim = scan.trimmed(actions)

    def kept() -> Iterator[Record]:
        for record, stay, cut in zip(records(), stays, trim, strict=True):
            if stay:
                yield without_empty(record) if cut else record

    return Audited(kept, report)


def without_empty(record: Record) -> Record:
    """The record without its empty responses and what is said about them."""
    full = [i for i, r in enumerate(record.responses) if response_text(r).strip()]

    def pick(values: tuple) -> tuple:
        return tuple(values[i] for i in full) if values else values

    meta, gold = dict(record.meta), record.meta.get("gold")
    if isinstance(gold, list) and len(gold) == len(record.responses):
        meta["gold"] = [gold[i] for i in full]
    return dataclasses.replace(
        record,
        meta=meta,
        responses=pick(record.responses),
        ranks=pick(record.ranks),
        annotators=tuple(a._replace(ranks=pick(a.ranks)) for a in record.annotators),
        ratings={name: pick(values) for name, values in record.ratings.items()},
        steps=pick(record.steps),
    )


class _Scan:
    """What one reading of the records finds: a bit a kind in `flags`, one a record."""

    def __init__(self, records: Callable[[], Iterable[Record]]):
        self.examples: dict[str, tuple[str, ...]] = {k: () for k in DEFAULT_POLICY}
        self._pairs = array.array("Q")  # undirected hash << 1 | direction
        self._pairs_of = array.array("i")  # how many of them each record has
        self._copies = array.array("Q")
        flags = array.array("H")
        for record in records():
            flags.append(self._read(record))
        self.flags: UInt16[np.ndarray, "n"] = np.asarray(flags)
        self._mark("duplicate", self._duplicates(), records)
        self._mark("conflict", self._conflicts(), records)

    def of(self, kind: str) -> Bool[np.ndarray, "n"]:
        """Which records are of that kind."""
        return self.flags & _BIT[kind] != 0

    def dropped(self, actions: Mapping[str, str]) -> Bool[np.ndarray, "n"]:
        """Which records are left out."""
        bits = sum(_BIT[kind] for kind in _BIT if actions[kind] == "drop")
        cut = self.trimmed(actions)
        others = bits & ~_BIT["empty_side"]
        return np.where(cut, self.flags & others, self.flags & bits) != 0

    def trimmed(self, actions: Mapping[str, str]) -> Bool[np.ndarray, "n"]:
        """Which records lose only their empty responses."""
        can = self.flags & _TRIMMABLE != 0
        return can & (actions["empty_side"] == "drop")

    def _read(self, record: Record) -> int:
        kinds = _kinds(record)
        for kind in kinds:
            self._example(kind, record.id)
        prompt = _digest([f"{m.role}\0{m.content.strip()}" for m in record.prompt])
        texts = [_digest([response_text(r).strip()]) for r in record.responses]
        self._copies.append(_copy_key(prompt, texts, record))
        before = len(self._pairs)
        if len(set(texts)) > 1:
            for winner, loser in _preferences(record):
                self._pairs.extend(_pair_keys(prompt, texts[winner], texts[loser]))
        self._pairs_of.append(len(self._pairs) - before)
        trimmable = _TRIMMABLE if _is_trimmable(record, kinds) else 0
        return sum(_BIT[kind] for kind in kinds) | trimmable

    def _duplicates(self) -> Int[np.ndarray, "d"]:
        _, first = np.unique(np.asarray(self._copies), return_index=True)
        return np.setdiff1d(np.arange(len(self._copies)), first)

    def _conflicts(self) -> Int[np.ndarray, "c"]:
        keys = np.asarray(self._pairs)
        seen = np.unique(keys) >> np.uint64(1)  # both directions are neighbours
        both = seen[1:][seen[1:] == seen[:-1]]
        counts = np.asarray(self._pairs_of)
        owner = np.repeat(np.arange(len(counts)), counts)
        return np.unique(owner[np.isin(keys >> np.uint64(1), both)])

    def _mark(self, kind: str, rows: Int[np.ndarray, "r"], records: Callable) -> None:
        # The ids were not kept: read again, only as far as the examples go.
        new = [i for i in rows if not self.flags[i] & _BIT[kind]]
        self.flags[rows] |= _BIT[kind]
        wanted = new[:_EXAMPLES]
        if wanted:
            head = itertools.islice(records(), int(wanted[-1]) + 1)
            ids = [record.id for record in head]
            for i in wanted:
                self._example(kind, ids[i])

    def _example(self, kind: str, id: str) -> None:
        self.examples[kind] = (*self.examples[kind], id)[:_EXAMPLES]


def _kinds(record: Record) -> set[str]:
    """Kinds that a record shows by itself."""
    texts = [response_text(r).strip() for r in record.responses]
    said = record.meta.get("audit")  # of a parser that saw more than the record holds
    kinds = {said} if isinstance(said, str) and said in _BIT else set()
    if len(texts) > 1 and len(set(texts)) == 1:
        kinds.add("identical_responses")
    if not all(texts) or not any(m.content.strip() for m in record.prompt):
        kinds.add("empty_side")
    if not _is_labelled(record):
        kinds.add("unlabelled")
    elif not _is_rated(record) and next(_preferences(record), None) is None:
        kinds.add("tied")
    if not record.weight:
        kinds.add("zero_weight")
    return kinds


def _is_labelled(record: Record) -> bool:
    """Whether any loss can learn from it: a tie is a label, one rank alone is none."""
    return (
        sum(r is not None for r in record.ranks) > 1
        or record.soft is not None
        or _is_rated(record)
    )


def _is_rated(record: Record) -> bool:
    return any(
        v is not None for values in record.ratings.values() for v in values
    ) or any(s.label is not None for steps in record.steps for s in steps)


def _is_trimmable(record: Record, kinds: set[str]) -> bool:
    if "empty_side" not in kinds or len(record.responses) <= 2:
        return False
    rest = without_empty(record)
    return len(rest.responses) > 1 and _kinds(rest) <= kinds - {"empty_side"}


def _preferences(record: Record) -> Iterator[tuple[int, int]]:
    """(winner, loser) of every pair the ranks, or else the soft label, decide."""
    ranked = [(r, i) for i, r in enumerate(record.ranks) if r is not None]
    if len(ranked) < 2 and record.soft not in (None, 0.5):
        yield (0, 1) if record.soft > 0.5 else (1, 0)
    for (a, i), (b, j) in itertools.combinations(ranked, 2):
        if a != b:
            yield (i, j) if a < b else (j, i)


def _digest(parts: Iterable[str]) -> bytes:
    text = "\0\0".join(parts)
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=8
    ).digest()


def _number(*parts: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(b"".join(parts), digest_size=8).digest())


def _pair_keys(prompt: bytes, winner: bytes, loser: bytes) -> tuple[int, ...]:
    base = _number(prompt, min(winner, loser), max(winner, loser)) & ~1
    if winner == loser:  # one text on both sides contradicts itself
        return base, base | 1
    return (base | (winner < loser),)


def _copy_key(prompt: bytes, texts: list[bytes], record: Record) -> int:
    """The same for the same responses and labels in any order."""
    soft = [None] * len(texts)
    if record.soft is not None:
        soft = [round(record.soft, 12), round(1 - record.soft, 12)]
    said = sorted(
        t + repr(label).encode()
        for t, *label in zip(texts, record.ranks, soft, strict=True)
    )
    return _number(prompt, *said)


def _check(actions: Mapping[str, str]) -> None:
    for kind, action in actions.items():
        if kind not in DEFAULT_POLICY:
            raise ValueError(
                f"audit: unknown kind {kind!r}; known: {sorted(DEFAULT_POLICY)}"
            )
        if action not in _ACTIONS:
            raise ValueError(f"audit: {kind} {action!r} is not one of {_ACTIONS}")


def _refuse(report: Report) -> None:
    for kind, count in report.counts.items():
        if count and report.policy[kind] == "raise":
            raise ValueError(
                f"audit: {count} of {report.total} records are {kind}: "
                f"{', '.join(report.examples[kind])}; its policy is raise: mend the "
                "data, or set it to drop or keep"
            )
    if not report.kept:
        raise ValueError("no records left: " + "; ".join(report.lines()))
