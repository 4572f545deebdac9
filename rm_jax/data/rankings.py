"""Rankings taken apart: each two of their responses an example of its own.

So trainers of pairs have it, and so a prompt with K responses is learnt K - 1 times
as often as it should be (Ouyang et al. 2022, InstructGPT, section 3.4); whole rankings
are one example each.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from rm_jax.data.schema import Record
from rm_jax.data.sources import Source


def apart(source: Source) -> Source:
    """The source with `pairs_of` each record in place of it."""
    text = f"pairs of rankings of {source.fingerprint}"
    fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def records() -> Iterator[Record]:
        for record in source.records():
            yield from pairs_of(record)

    # The source fills in its info as it is read: the same dict, with what we add.
    source.info.update({"rankings": "pairs", "fingerprint": fingerprint})
    return dataclasses.replace(source, fingerprint=fingerprint, records=records)


def pairs_of(record: Record) -> Iterator[Record]:
    """A record for each two ranked responses, the ids ID/0-1, ID/0-2 and so on.

    An unranked response is in none. Each has the weight, the strength and the meta of
    the record; a list in meta that
    has one value a response, as the world's, follows the responses. A record of two
    responses, or without two ranks, stays as it is.
    """
    ranked = [i for i, rank in enumerate(record.ranks) if rank is not None]
    if len(record.responses) <= 2 or len(ranked) < 2:
        yield record
        return
    k = len(record.responses)
    for pair in itertools.combinations(ranked, 2):
        two = lambda values, pair=pair: tuple(values[i] for i in pair) if values else ()
        yield dataclasses.replace(
            record,
            id=f"{record.id}/{pair[0]}-{pair[1]}",
            responses=two(record.responses),
            ranks=_ranks(two(record.ranks)),
            annotators=tuple(
                a._replace(ranks=_ranks(two(a.ranks))) for a in record.annotators
            ),
            ratings={name: two(values) for name, values in record.ratings.items()},
            steps=two(record.steps),
            reference_logp=two(record.reference_logp),
            meta={key: _of(value, pair, k) for key, value in record.meta.items()},
        )


def _ranks(two: Sequence[int | None]) -> tuple[int | None, ...]:
    """From 0 on: of 3 and 5 they are 0 and 1."""
    known = sorted({rank for rank in two if rank is not None})
    return tuple(None if rank is None else known.index(rank) for rank in two)


def _of(value: Any, pair: tuple[int, int], k: int) -> Any:
    each = isinstance(value, list | tuple) and len(value) == k
    return [value[i] for i in pair] if each else value
