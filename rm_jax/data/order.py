"""Which example comes n-th in training: a pure function, so that any step can be made.

A run takes items 0, 1, 2, ... of an endless row, cut into rounds. A round takes a fixed
number of examples of each source, in random order; each source goes through its own
examples in random order, all of them before one comes again.

  one source       a round is one epoch: every example once
  counted mixture  a round is one epoch: `count` examples of each source, always those
  weighted mixture a round is `shares.ROUND` examples, shared out by the weights
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from rm_jax.shares import quotas


class Share(NamedTuple):
    """What a round takes of one source.

    Attributes:
      name: of the source; "" where it is the only one.
      examples: indices of its examples in the joined set, [n].
      take: examples of it in a round.
    """

    name: str
    examples: Int[np.ndarray, "n"]
    take: int


class Order:
    """Items of the endless row, by number.

    Args:
      shares: what a round takes of each source.
      epoch: examples that "1 epoch" is.
      seed: of every permutation.
    """

    def __init__(self, shares: Sequence[Share], epoch: int, seed: int):
        self.shares, self.epoch, self.seed = tuple(shares), epoch, seed
        self._ends = np.cumsum([s.take for s in self.shares])
        self._permutations: dict[tuple[int, ...], np.ndarray] = {}

    def items(self, first: int, count: int) -> Int[np.ndarray, "count"]:
        """The examples that come as number first ... first + count - 1, from 0."""
        size = int(self._ends[-1])
        rounds, at = np.divmod(np.arange(first, first + count), size)
        slots = np.empty(count, np.int64)
        for r in np.unique(rounds):
            here = rounds == r
            slots[here] = self._permutation((int(r),), size)[at[here]]
        of = np.searchsorted(self._ends, slots, side="right")
        out = np.empty(count, np.int64)
        for s in np.unique(of):
            here = of == s
            begin = self._ends[s] - self.shares[s].take
            out[here] = self._of_source(int(s), rounds[here], slots[here] - begin)
        return out

    def only_first(self, n: int) -> "Order":
        """The first n items of this order, in another order each time, for ever."""
        return Order([Share("", self.items(0, n), n)], self.epoch, self.seed)

    def _of_source(self, s: int, rounds: np.ndarray, slots: np.ndarray) -> np.ndarray:
        _, examples, take = self.shares[s]
        if take == len(examples):  # the round's own permutation has mixed them
            return examples[slots]
        laps, slots = np.divmod(rounds * take + slots, len(examples))
        for lap in np.unique(laps):
            here = laps == lap
            slots[here] = self._permutation((int(lap), s, 2), len(examples))[
                slots[here]
            ]
        return examples[slots]

    def _permutation(self, key: tuple[int, ...], n: int) -> np.ndarray:
        """The permutation of a key; those of the last laps of each kind are kept."""
        if key not in self._permutations:
            kind = key[1:]
            same = sorted(k for k in self._permutations if k[1:] == kind)
            for old in same[:-1]:  # a step touches two laps, rarely more
                self._permutations.pop(old)
            rng = np.random.default_rng([self.seed, *key])
            self._permutations[key] = rng.permutation(n)
        return self._permutations[key]


def of_one(n: int, seed: int) -> Order:
    """The order of a set that is no mixture."""
    return Order([Share("", np.arange(n), n)], n, seed)


def of_mixture(
    sources: Mapping[str, Int[np.ndarray, "n"]],
    amounts: Mapping[str, float],
    counted: bool,
    seed: int,
) -> Order:
    """The order of a mixture.

    Args:
      sources: name -> indices of its examples in the joined set.
      amounts: name -> weight, or number of examples where counted.
      counted: an epoch is `count` examples of each source; else it is as many as there
        are examples in all.
      seed: of every permutation, and of which examples are counted.

    Raises:
      ValueError: a source has fewer examples than its count, or a weight is too small
        a share to be kept.
    """
    if counted:
        takes = {name: int(n) for name, n in amounts.items()}
        for name, n in takes.items():
            if n > len(sources[name]):
                raise ValueError(
                    f"config.data.train.{name}.count = {n}, but {len(sources[name])} "
                    "examples of it are usable: lower it, or give weights instead"
                )
        rng = np.random.default_rng([seed, 3])
        sources = {
            name: np.sort(rng.permutation(sources[name])[:n])
            for name, n in takes.items()
        }
    else:
        takes = quotas(amounts)
    epoch = sum(takes.values()) if counted else sum(map(len, sources.values()))
    return Order([Share(n, sources[n], take) for n, take in takes.items()], epoch, seed)
