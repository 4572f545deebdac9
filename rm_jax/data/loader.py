"""Batches as a pure function of (seed, step): nothing to save, nothing to replay.

Step s takes items s*B ... (s+1)*B - 1 of an endless row (order.py), and the responses
of each in random order, so that no position in a chunk says which one was chosen.
"""

import math
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rm_jax.data import chunk_arrays, pack
from rm_jax.data.cache import TokenSet
from rm_jax.data.order import Order, of_one
from rm_jax.types import Labels, Rows


class StepBatch(NamedTuple):
    """What one step computes.

    Attributes:
      chunks: arrays of each chunk: this host's rows, everybody's labels.
      shapes: shape of each chunk, in the same order.
      weight: sum of the examples' weights over all chunks; [m] with members.
      examples: prompts in the step.
      pairs: pairs of responses to one prompt, K (K - 1) / 2 an example.
      tokens: tokens that are not padding.
      size: tokens with padding: rows x length of every chunk.
    """

    chunks: tuple[tuple[Rows, Labels], ...]
    shapes: tuple[pack.Shape, ...]
    weight: float | Float[np.ndarray, "m"]
    examples: int
    pairs: int
    tokens: int
    size: int

    @property
    def padding(self) -> float:
        """Share of the chunks that is padding."""
        return 1 - self.tokens / self.size


class Loader:
    """Chunks of a data set, by step (training) or in order (evaluation).

    Args:
      data: the tokens.
      shapes: chunk shapes.
      examples: prompts a step.
      order: of the examples in training; without one, a permutation an epoch by seed 0.
      layout: "packed" or "padded".
      rows: rows of a shape that this host holds; all of them by default.
      steps: whether the end of each step of a response is scored, too.

    Attributes:
      unit: what `StepBatch.tokens` counts.
    """

    unit = "tokens"

    def __init__(
        self,
        data: TokenSet,
        shapes: Sequence[pack.Shape],
        examples: int,
        order: Order | None = None,
        layout: str = "packed",
        rows: Callable[[pack.Shape], slice] = lambda shape: slice(None),
        steps: bool = False,
    ):
        self.data, self.shapes, self.examples = data, tuple(shapes), examples
        self.order = order or of_one(len(data), seed=0)
        self.shared, self.rows, self.steps = layout == "packed", rows, steps
        pack.check_fits(data, self.shapes, self.shared, steps)

    def of(self, data: TokenSet) -> "Loader":
        """Lays out another set as this one."""
        layout = "packed" if self.shared else "padded"
        return Loader(
            data, self.shapes, self.examples, None, layout, self.rows, self.steps
        )

    def items_at(self, step: int) -> list[pack.Item]:
        """The examples of a step, each with its responses in random order."""
        rng = np.random.default_rng([self.order.seed, step, 1])
        keys = rng.random((self.examples, self.data.max_responses))
        chosen = self.order.items(step * self.examples, self.examples)
        counts = self.data.counts(chosen)
        keys[np.arange(keys.shape[1]) >= counts[:, None]] = 1  # above all others
        orders = np.argsort(keys, axis=1).tolist()
        return [
            pack.Item(example, tuple(order[:k]))
            for example, k, order in zip(
                chosen.tolist(), counts.tolist(), orders, strict=True
            )
        ]

    def layout(self, items: Sequence[pack.Item]) -> list[pack.Chunk]:
        """The chunks that hold these examples."""
        largest = self.shapes[-1]
        groups = pack.segments(self.data, items, largest, self.shared, self.steps)
        return pack.layout(groups, self.shapes, alone=not self.shared)

    def batch_at(self, step: int) -> StepBatch:
        """The batch of a step: pure in (seed, step)."""
        return self._batch(self.items_at(step))

    def in_order(
        self, limit: int = 0, block: int = 256, backwards: bool = False
    ) -> Iterator[StepBatch]:
        """Every example (or the first `limit`) once, responses in their own order.

        Args:
          limit: 0 is all.
          block: examples laid out together.
          backwards: responses in reverse order.
        """
        n = min(limit, len(self.data)) if limit else len(self.data)
        return self.chosen(range(n), block, backwards)

    def chosen(
        self, examples: Sequence[int], block: int = 256, backwards: bool = False
    ) -> Iterator[StepBatch]:
        """These examples, as `in_order`."""
        for first in range(0, len(examples), block):
            items = []
            for i in examples[first : first + block]:
                order = tuple(range(self.data.count(i)))
                items.append(pack.Item(i, order[::-1] if backwards else order))
            yield self._batch(items)

    def fill(self, items: Sequence[pack.Item], chunk: pack.Chunk) -> Rows:
        """What the model reads of a chunk: this host's rows."""
        return chunk_arrays.fill(
            self.data, items, chunk, self.rows(chunk.shape), self.steps
        )

    def _batch(self, items: list[pack.Item]) -> StepBatch:
        chunks = self.layout(items)
        filled = tuple(self._filled(items, chunk) for chunk in chunks)
        return StepBatch(
            chunks=filled,
            shapes=tuple(c.shape for c in chunks),
            weight=float(sum(labels.weight.sum() for _, labels in filled)),
            examples=len(items),
            pairs=sum(math.comb(len(item.order), 2) for item in items),
            tokens=sum(c.tokens for c in chunks),
            size=sum(c.shape.rows * c.shape.length for c in chunks),
        )

    def _filled(
        self, items: Sequence[pack.Item], chunk: pack.Chunk
    ) -> tuple[Rows, Labels]:
        rows, k = self.fill(items, chunk), self.data.max_responses
        e = chunk.shape.rows * rows.examples_per_row
        return rows, chunk_arrays.labels(self.data, items, chunk, e, k, self.steps)


def prefetch(
    batch_at: Callable[[int], StepBatch], start: int, stop: int, ahead: int
) -> Iterator[StepBatch]:
    """Batches of steps start ... stop - 1, made by a thread `ahead` steps early."""
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    closed = threading.Event()

    def put(value) -> bool:
        while not closed.is_set():
            try:
                ready.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for step in range(start, stop):
                if not put(batch_at(step)):
                    return
        except BaseException as error:  # handed to the consumer, raised there
            put(error)

    thread = threading.Thread(target=work, daemon=True, name="rm_jax-loader")
    thread.start()
    try:
        for _ in range(start, stop):
            value = ready.get()
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        closed.set()
        thread.join()
