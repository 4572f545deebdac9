"""Arrays that cross module borders: a packed batch, its labels, a model's output.

Letters in shapes: b rows, t tokens of a row, s slots of a row, e examples of a chunk,
k responses of an example, p steps of a response, a attributes, m members, d features.
"""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class PackedBatch(NamedTuple):
    """Rows of several segments; a segment is one prompt and some of its responses.

    The prompt of a segment is stored once. Token i sees token j iff j <= i, both are in
    the same segment, j is in the prompt or in i's own branch, and, in a layer with
    window W, positions[i] - positions[j] < W.

    Attributes:
      tokens: token ids.
      positions: position in prompt + own response; every response restarts at the
        prompt's length.
      segments: 1, 2, ... inside a row; 0 is padding.
      branches: 0 is the prompt, k >= 1 the k-th response in this segment.
      slots: index in the row of each scored token; 0 where the slot is unused.
      slot_ids: (example, response, step) that each slot's score belongs to, the first
        two indices into Labels; step 0 is the end of the whole response, j >= 1 that of
        its j-th step. (-1, -1, -1) where the slot is unused.
    """

    tokens: Int[Array, "b t"]
    positions: Int[Array, "b t"]
    segments: Int[Array, "b t"]
    branches: Int[Array, "b t"]
    slots: Int[Array, "b s"]
    slot_ids: Int[Array, "b s 3"]

    @property
    def examples_per_row(self) -> int:
        """Examples that the labels of a chunk have room for, a row of it."""
        return self.slots.shape[-1]


class FeatureBatch(NamedTuple):
    """What a frozen trunk made of the examples of a chunk, one of them in a row.

    Takes the place of a PackedBatch where the head alone is trained; the shape of
    `prompts` is [b s 0] for a head that does not read it.

    Attributes:
      responses: the pooled vector of each scored position.
      prompts: the vector of the last token of the prompt before it.
      lengths: tokens of the response.
      slot_ids: as in PackedBatch.
    """

    responses: Float[Array, "b s d"]
    prompts: Float[Array, "b s _"]
    lengths: Float[Array, "b s"]
    slot_ids: Int[Array, "b s 3"]

    @property
    def examples_per_row(self) -> int:
        """As in PackedBatch."""
        return 1


Rows = PackedBatch | FeatureBatch  # what a model reads of a chunk


class Labels(NamedTuple):
    """What people said about each example of a chunk.

    Attributes:
      ranks: 0 is best, equal is a tie, -1 is unranked or no such response.
      present: 1 where the response exists, else 0.
      soft: probability that response 0 beats response 1; NaN where not given.
      strength: strength of the preference; NaN where not given.
      weight: weight of the example; 0 for padding examples.
      ratings: attribute ratings; NaN where not given.
      steps: step labels in [0, 1]; -1 where not given. p is the slots of a row, the
        most steps a response can have, or 0 where the head does not score steps.
      lengths: tokens of each response, template included.
      ids: index of the example in its data set; -1 for padding.
      source: index of the example's source in a mixture; 0 without one.
      reference_logp: log-probability of each response under a reference policy; NaN
        where not given.
    """

    ranks: Int[Array, "e k"]
    present: Int[Array, "e k"]
    soft: Float[Array, "e"]
    strength: Float[Array, "e"]
    weight: Float[Array, "e"]
    ratings: Float[Array, "e k a"]
    steps: Float[Array, "e k p"]
    lengths: Int[Array, "e k"]
    ids: Int[Array, "e"]
    source: Int[Array, "e"]
    reference_logp: Float[Array, "e k"]


class RewardOutput(NamedTuple):
    """What a reward model says of a chunk.

    Attributes:
      scores: one reward a response, float32; 0 where there is no response. With members
        the leading axis is m.
      aux: named extra outputs (attributes, quantiles, log-variance, step scores, ...).
      token_logp: sum over the response's tokens of log p(token | prompt, tokens
        before), or None when no loss asks for it.
    """

    scores: Float[Array, "*m e k"]
    aux: dict[str, Array]
    token_logp: Float[Array, "*m e k"] | None
