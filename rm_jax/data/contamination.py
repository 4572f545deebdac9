"""How many evaluation prompts were trained on, word for word or nearly.

An example is `same` when its prompt is that of a training example, and `near` when at
least half of its prompt's tokens lie in n-grams of tokens that one training prompt has
too. That is the rule of Lambert et al. 2024 (Tulu 3), section 3.2, whose n is 8 tokens
of about a word each; here n is what the contract makes of 8 words. An n-gram that more
than COMMON training examples have says nothing (a system prompt, the template) and is
left out.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt64

from rm_jax.data.cache import TokenSet

VERSION = 1
WORDS = 8  # of an n-gram
SHARE = 0.5  # of the tokens of an evaluation prompt
COMMON = 20  # training examples
BLOCK = 2048  # examples in memory at a time
_FILTER = 2**24  # entries of a table that most hashes fail at once
_PRIME = np.uint64(0x9E3779B97F4A7C15)


class Overlap(NamedTuple):
    """What of an evaluation set is in the training set.

    Attributes:
      examples: of the evaluation set.
      same: of them, those whose prompt is a training prompt.
      near: of the others, those that share at least half of their prompt with one.
      ids: of the first such examples, `same` and `near`, at most ten.
    """

    examples: int
    same: int
    near: int
    ids: list[str]

    def line(self, name: str) -> str:
        """The finding in words."""
        if not self.same + self.near:
            return f"{name}: no prompt of it is, or is near, a training prompt"
        loud = "WARNING " if self.same else ""
        return (
            f"{loud}{name}: of {self.examples} prompts {self.same} are training "
            f"prompts, {self.near} more share half of their text with one; the first: "
            f"{', '.join(self.ids[:3])}"
        )


def gram_tokens(data: TokenSet, decode: Callable[[Any], str], sample: int = 200) -> int:
    """Tokens of WORDS words, by the first prompts of a set; at least WORDS.

    Args:
      data: the set.
      decode: token ids -> text.
      sample: prompts to look at.
    """
    prompts = [data.branch(i, 0) for i in range(min(sample, len(data)))]
    words = sum(len(decode(prompt).split()) for prompt in prompts)
    tokens = sum(len(prompt) for prompt in prompts)
    return max(WORDS, round(WORDS * tokens / max(words, 1)))


def overlap(train: TokenSet, other: TokenSet, gram: int) -> Overlap:
    """Compares the prompts of two sets of one contract.

    Memory is that of the evaluation prompts and one block of training prompts.

    Args:
      train: the training set.
      other: the evaluation set.
      gram: n of the n-grams, tokens.
    """
    same = _trained_on(train, other.arrays["prompt_hash"])
    near = _near(train, other, gram) & ~same
    found = np.flatnonzero(same | near)[:10]
    ids = [other.id(int(i)) for i in found]
    return Overlap(len(other), int(same.sum()), int(near.sum()), ids)


def _trained_on(
    train: TokenSet, prompts: Int[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """Which of these prompts, as hashes, are training prompts."""
    known, index = np.unique(prompts, return_inverse=True)
    found = np.zeros(len(known), bool)
    for first in range(0, len(train), BLOCK):
        block = train.arrays["prompt_hash"][first : first + BLOCK]
        at = np.minimum(np.searchsorted(known, block), len(known) - 1)
        found[at[known[at] == block]] = True
    return found[index]


class _Grams(NamedTuple):
    """n-grams of consecutive examples: hash, example, place in its prompt."""

    hash: UInt64[np.ndarray, "n"]
    example: Int[np.ndarray, "n"]
    place: Int[np.ndarray, "n"]


def _near(train: TokenSet, other: TokenSet, gram: int) -> Bool[np.ndarray, "examples"]:
    blocks = list(_grams(other, gram))
    own = _Grams(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))
    known, index = np.unique(own.hash, return_inverse=True)
    held, example = _holders(_grams(train, gram), known)
    # Every (n-gram of an evaluation prompt, training example that has it).
    first = np.searchsorted(held, index)
    count = np.searchsorted(held, index, side="right") - first
    at = np.repeat(np.arange(len(index)), count)
    within = np.arange(len(at)) - np.repeat(np.cumsum(count) - count, count)
    holder = example[np.repeat(first, count) + within]
    e, place = own.example[at], own.place[at]
    order = np.lexsort((place, holder, e))
    e, holder, place = e[order], holder[order], place[order]
    # Tokens covered by overlapping grams count once: each up to where the next begins.
    next_same = (e[1:] == e[:-1]) & (holder[1:] == holder[:-1])
    covered = np.full(len(e), gram)
    covered[:-1][next_same] = np.minimum(gram, (place[1:] - place[:-1])[next_same])
    group = np.cumsum(np.append(0, ~next_same)) if len(e) else e
    tokens = np.bincount(group, covered)
    most = np.zeros(len(other))
    np.maximum.at(most, e[np.unique(group, return_index=True)[1]], tokens)
    return most >= SHARE * np.maximum(_prompt_lengths(other, 0, len(other)), 1)


def _holders(
    blocks: Iterable[_Grams], known: UInt64[np.ndarray, "g"]
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """(index into known, training example that has it), sorted, less common ones."""
    table = np.zeros(_FILTER, bool)
    table[known % np.uint64(_FILTER)] = True
    seen = np.zeros(len(known), np.int64)
    found: list[np.ndarray] = []
    for block in blocks:
        maybe = table[block.hash % np.uint64(_FILTER)]
        hash, example = block.hash[maybe], block.example[maybe]
        place = np.minimum(np.searchsorted(known, hash), max(len(known) - 1, 0))
        hit = known[place] == hash if len(known) else np.zeros(0, bool)
        pairs = np.unique(np.stack([place[hit], example[hit]], 1), axis=0)
        seen += np.bincount(pairs[:, 0], minlength=len(known))
        found.append(pairs[seen[pairs[:, 0]] <= COMMON])
    pairs = np.concatenate([*found, np.zeros((0, 2), np.int64)])
    pairs = pairs[seen[pairs[:, 0]] <= COMMON]
    return tuple(pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].T)


def _grams(data: TokenSet, gram: int) -> Iterator[_Grams]:
    """The n-grams of every prompt, block by block."""
    for first in range(0, len(data), BLOCK):
        stop = min(first + BLOCK, len(data))
        lengths = _prompt_lengths(data, first, stop)
        ends = np.cumsum(lengths)
        place = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        starts = data.arrays["branch_start"][data.arrays["example_branch"][first:stop]]
        tokens = data.tokens[np.repeat(starts, lengths) + place]
        hash = np.zeros(max(len(tokens) - gram + 1, 0), np.uint64)
        for j in range(gram):
            hash = (hash + tokens[j : j + len(hash)] + np.uint64(1)) * _PRIME
            hash ^= hash >> np.uint64(29)
        example = np.repeat(np.arange(first, stop), lengths)
        whole = example[: len(hash)] == example[gram - 1 :][: len(hash)]
        yield _Grams(
            hash[whole], example[: len(hash)][whole], place[: len(hash)][whole]
        )


def _prompt_lengths(data: TokenSet, first: int, stop: int) -> Int[np.ndarray, "n"]:
    branch = np.asarray(data.arrays["example_branch"][first:stop])
    starts = data.arrays["branch_start"]
    return np.asarray(starts[branch + 1]) - np.asarray(starts[branch])
