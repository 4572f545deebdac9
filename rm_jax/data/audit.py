"""Audit: what is wrong with preference records, counted before anything trains on them.

>>> from rm_jax.data.schema import Message
>>> record = Record("7", "demo", (Message("user", "2 + 2?"),),
...     ((Message("assistant", "4"),), (Message("assistant", "4"),)), (0, 1))
>>> audit(lambda: [record], {"identical_responses": "keep"}).report.lines()[1].split()
['identical_responses', '1', 'keep', '7']
"""

import dataclasses
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt64

from rm_jax.data.conflicts import Conflicts
from rm_jax.data.schema import Record, response_text
from rm_jax.data.spill import Flags, Spill

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
    records: Callable[[], Iterable[Record]],
    policy: Mapping[str, str],
    scratch: str | os.PathLike | None = None,
) -> Audited:
    """Looks for records that should not be trained on, and leaves out what policy says.

    Reads all records once; iterating the result reads them again. Memory does not grow
    with their number: 16 bytes for every response and 18 for every record are on disk,
    16 more for every response that another record has, too, and for every pair of such
    texts in a record. Records that all give one response to one prompt are in memory at
    one time, 75 bytes each. Texts are told apart by 64-bit hashes: of 200 million, two
    have the same in one audit of 1,000.

    `empty_side: drop` takes from a record of K > 2 only the empty responses, as long as
    two stay that are labelled, not all alike. `conflict` counts every record with a
    pair that some record, or the record itself, prefers the other way. `duplicate`
    counts the second and later copies. Where all left are `tied`, the report warns.

    Args:
      records: starts an iteration, the same records each time (`Source.records`).
      policy: kind -> keep, drop or raise; others as in DEFAULT_POLICY.
      scratch: folder of its temporary files, which have no name; the system's.

    Raises:
      ValueError: unknown kind or action, a finding whose policy is raise, no record
        that stays, or none of them with a weight above 0.
    """
    actions = {**DEFAULT_POLICY, **policy}
    _check(actions)
    scan = _Scan(records, scratch)
    report = scan.report(actions)

    def kept() -> Iterator[Record]:
        each = itertools.chain.from_iterable(
            zip(stays.tolist(), cut.tolist(), strict=True)
            for stays, cut in scan.fates(actions)
        )
        for record, (stays, cut) in zip(records(), each, strict=True):
            if stays:
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
        reference_logp=pick(record.reference_logp),
    )


class _Scan:
    """What one reading of the records finds: a bit a kind in `flags`, one a record."""

    def __init__(
        self,
        records: Callable[[], Iterable[Record]],
        scratch: str | os.PathLike | None,
    ):
        self.examples: dict[str, tuple[str, ...]] = {k: () for k in DEFAULT_POLICY}
        self.flags = Flags(scratch)
        self._conflicts = Conflicts(scratch)
        self._copies = Spill(scratch)
        for i, record in enumerate(records()):
            self.flags.append(self._read(i, record))
        self._mark("duplicate", map(_repeated, self._copies.groups()), records)
        self._mark("conflict", self._conflicts.found(), records)

    def fates(
        self, actions: Mapping[str, str]
    ) -> Iterator[tuple[Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]]]:
        """(stays, loses its empty responses) of the records, a block at a time."""
        drop = sum(_BIT[kind] for kind in _BIT if actions[kind] == "drop")
        for flags in self.flags.blocks():
            cut = (flags & _TRIMMABLE != 0) & (actions["empty_side"] == "drop")
            spared = np.where(cut, drop & ~_BIT["empty_side"], drop)
            yield flags & spared == 0, cut

    def report(self, actions: Mapping[str, str]) -> Report:
        """The findings in numbers.

        Raises:
          ValueError: as `audit`.
        """
        counts: Counter[str] = Counter()
        blocks = zip(self.flags.blocks(), self.fates(actions), strict=True)
        for flags, (stays, cut) in blocks:
            of = {kind: flags & bit != 0 for kind, bit in _BIT.items()}
            counts.update({kind: int(is_it.sum()) for kind, is_it in of.items()})
            counts["total"] += len(flags)
            counts["kept"] += int(stays.sum())
            counts["trimmed"] += int(cut.sum())
            counts["kept_tied"] += int((stays & of["tied"]).sum())
            counts["weighted"] += int((stays & ~of["zero_weight"]).sum())
        report = Report(
            total=counts["total"],
            kept=counts["kept"],
            trimmed=counts["trimmed"],
            counts={kind: counts[kind] for kind in DEFAULT_POLICY},
            kept_tied=counts["kept_tied"],
            examples=self.examples,
            policy=actions,
        )
        _refuse(report, counts["weighted"])
        return report

    def _read(self, i: int, record: Record) -> int:
        kinds = _kinds(record)
        for kind in kinds:
            self._example(kind, record.id)
        prompt = _digest([f"{m.role}\0{m.content.strip()}" for m in record.prompt])
        texts = [_digest([response_text(r).strip()]) for r in record.responses]
        self._copies.add(_copy_key(prompt, texts, record), i)
        order = _order(record)
        ranks = sorted({rank for _, rank in order})
        if len(set(texts)) > 1 and len(ranks) > 1:
            place = {rank: n for n, rank in enumerate(ranks)}
            said = ((_number(prompt, texts[j]), place[rank]) for j, rank in order)
            self._conflicts.add(i, said)
        trimmable = _TRIMMABLE if _is_trimmable(record, kinds) else 0
        return sum(_BIT[kind] for kind in kinds) | trimmable

    def _mark(self, kind: str, found: Iterable, records: Callable) -> None:
        """Flags the records found; the first ones not yet known become examples."""
        flags, first = self.flags.all(), []
        for rows in found:
            new = np.unique(rows[flags[rows] & _BIT[kind] == 0])
            flags[new] |= _BIT[kind]
            first = sorted([*first, *new[:_EXAMPLES].tolist()])[:_EXAMPLES]
        # Their ids were not kept: read again, only as far as they go.
        head = itertools.islice(records(), first[-1] + 1 if first else 0)
        for i, record in enumerate(head):
            if i in first:
                self._example(kind, record.id)

    def _example(self, kind: str, id: str) -> None:
        self.examples[kind] = (*self.examples[kind], id)[:_EXAMPLES]


def _repeated(
    group: tuple[UInt64[np.ndarray, "n"], Int[np.ndarray, "n"]],
) -> Int[np.ndarray, "d"]:
    """Records whose key a record before them has."""
    keys, rows = group
    return rows[1:][keys[1:] == keys[:-1]]


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
    elif not _is_rated(record) and len({rank for _, rank in _order(record)}) < 2:
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


def _order(record: Record) -> list[tuple[int, int]]:
    """(response, rank) of those that the ranks, or the soft label, put in order."""
    ranked = [(i, r) for i, r in enumerate(record.ranks) if r is not None]
    if len(ranked) < 2 and record.soft not in (None, 0.5):
        return [(0, 0), (1, 1)] if record.soft > 0.5 else [(0, 1), (1, 0)]
    return ranked


def _digest(parts: Iterable[str]) -> bytes:
    text = "\0\0".join(parts)
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=8
    ).digest()


def _number(*parts: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(b"".join(parts), digest_size=8).digest())


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


def _refuse(report: Report, weighted: int) -> None:
    for kind, count in report.counts.items():
        if count and report.policy[kind] == "raise":
            raise ValueError(
                f"audit: {count} of {report.total} records are {kind}: "
                f"{', '.join(report.examples[kind])}; its policy is raise: mend the "
                "data, or set it to drop or keep"
            )
    if not report.kept:
        raise ValueError("no records left: " + "; ".join(report.lines()))
    if not weighted:
        raise ValueError(
            f"audit: all {report.kept} weights are 0 (zero_weight), so there is "
            "nothing to learn or measure: give records a weight above 0"
        )
