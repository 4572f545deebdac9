"""The reward model: a trunk, pooling at the scored tokens, a float32 head (heads.py).

The score has no bias: under a pairwise loss its gradient is zero, and Adam would turn
its rounding noise into full steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from rm_jax.models import heads
from rm_jax.models.arch import ArchConfig
from rm_jax.models.transformer import Trunk, take
from rm_jax.types import FeatureBatch, PackedBatch, RewardOutput

LOGP_BLOCK = 128  # tokens whose logits exist at one time, a row


class RewardModel(Trunk):
    """score = head . pool(trunk(tokens)), one a slot, scattered to [e k]."""

    @nn.compact
    def __call__(
        self,
        batch: PackedBatch,
        examples: int,
        responses: int,
        train: bool = False,
        token_logp: bool = False,
        reference_logp: Float[Array, "e k"] | None = None,
    ) -> RewardOutput:
        """Scores a chunk.

        Args:
          batch: the chunk.
          examples: e, the leading size of its labels.
          responses: k.
          train: dropout on.
          token_logp: also sum log p of each response's tokens (needs an LM head).
          reference_logp: of the labels, for heads that read it.

        Raises:
          ValueError: token_logp without an LM head.
        """
        a = self.arch
        head = heads.find(a.head)
        token_logp = token_logp or head.of_logp
        at_slots = a.pooling == "last" and not token_logp
        wanted = batch
        if head.prompt:
            both = jnp.concatenate([batch.slots, prompt_ends(batch)], axis=1)
            wanted = batch._replace(slots=both)
        hidden = self.hidden(wanted, at_slots, train)
        response, prompt = hidden, None
        if head.prompt:
            ends = hidden if at_slots else take(hidden, wanted.slots)
            prompt = ends[:, batch.slots.shape[1] :].astype(jnp.float32)
        if at_slots:
            response = hidden[:, : batch.slots.shape[1]].astype(jnp.float32)
        else:
            response = pool(hidden, batch, a.pooling)
        lengths = jnp.sum(same_response(batch), axis=-1)
        params = self.param("head", head.init, a) if head.init else None
        key = self.make_rng("head") if train else None
        logp = None
        if a.lm_head == "untied":
            init = nn.initializers.normal(a.d_model**-0.5)
            unembed = self.param(
                "lm_head", init, (a.vocab_size, a.d_model), jnp.float32
            )
        if token_logp:
            if a.lm_head == "none":
                raise ValueError(
                    "log p(token) is asked for, but config.model.lm_head is 'none': "
                    "set it to 'tied' or 'untied'"
                )
            if a.lm_head == "tied":
                unembed = self.variables["params"]["embed"]["embedding"]
            logp = scatter(
                response_logp(hidden, batch, unembed, a.logit_cap),
                batch,
                examples,
                responses,
            )
        pooled = heads.Pooled(response, prompt, lengths)
        size = examples, responses
        return score(params, pooled, batch, *size, a, key, logp, reference_logp)


def score(
    params: Any,
    pooled: heads.Pooled,
    batch: PackedBatch | FeatureBatch,
    examples: int,
    responses: int,
    arch: ArchConfig,
    key: Array | None,
    logp: Float[Array, "e k"] | None = None,
    reference_logp: Float[Array, "e k"] | None = None,
) -> RewardOutput:
    """What the head makes of pooled vectors.

    Args:
      params: of the head.
      pooled: what it sees of each slot.
      batch: says whose each slot is.
      examples, responses: as of RewardModel.
      arch: of the model.
      key: of the head's draws in training; None is an evaluation.
      logp: log p of each response, where it is asked for.
      reference_logp: of the labels.
    """
    head = heads.find(arch.head)
    outputs = {
        n: (scatter_steps if n in head.steps else scatter)(
            v, batch, examples, responses
        )
        for n, v in head.apply(params, pooled, arch, key).items()
    }
    if head.combine is not None:
        there = jnp.ones(batch.slot_ids.shape[:2])
        present = scatter(there, batch, examples, responses)
        of = heads.Responses(present > 0, logp, reference_logp)
        outputs = head.combine(outputs, of, arch)
    scores = outputs.pop("scores")
    return RewardOutput(scores, outputs, logp)


def same_response(batch: PackedBatch) -> Float[Array, "b s t"]:
    """1 where a token belongs to the response that a slot scores, else 0."""
    segment = jnp.take_along_axis(batch.segments, batch.slots, axis=1)
    branch = jnp.take_along_axis(batch.branches, batch.slots, axis=1)
    same = batch.segments[:, None] == segment[..., None]
    same &= batch.branches[:, None] == branch[..., None]
    return same.astype(jnp.float32)


def pool(
    hidden: Float[Array, "b t d"], batch: PackedBatch, how: str
) -> Float[Array, "b s d"]:
    """One float32 vector a slot: its token's, or the mean or sum over its response."""
    if how == "last":
        return take(hidden, batch.slots).astype(jnp.float32)
    mask = same_response(batch)
    total = jnp.einsum(
        "bst,btd->bsd",
        mask,
        hidden.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    if how == "sum":
        return total
    return total / jnp.maximum(mask.sum(-1, keepdims=True), 1.0)


def prompt_ends(batch: PackedBatch) -> Int[Array, "b s"]:
    """Index of the last token of the prompt that each slot's response answers."""
    segment = jnp.take_along_axis(batch.segments, batch.slots, axis=1)
    own = batch.segments[:, None] == segment[..., None]
    own &= (batch.branches == 0)[:, None]
    index = jnp.arange(batch.tokens.shape[1])[None, None]
    return jnp.max(jnp.where(own, index, 0), axis=-1)


def scatter(
    values: Float[Array, "b s *n"],
    batch: PackedBatch | FeatureBatch,
    examples: int,
    responses: int,
) -> Float[Array, "e k *n"]:
    """Values at the ends of responses to their (example, response); 0 without one."""
    e, k, step = (batch.slot_ids[..., i] for i in range(3))
    found = _scatter(values, e * responses + k, step == 0, examples * responses)
    return found.reshape(examples, responses, *values.shape[2:])


def scatter_steps(
    values: Float[Array, "b s *n"],
    batch: PackedBatch | FeatureBatch,
    examples: int,
    responses: int,
) -> Float[Array, "e k p *n"]:
    """Values at the ends of steps to their (example, response, step); 0 without one.

    p is s: all the steps of a response are in one row.
    """
    e, k, step = (batch.slot_ids[..., i] for i in range(3))
    p = batch.slot_ids.shape[1]
    at = (e * responses + k) * p + step - 1
    found = _scatter(values, at, step > 0, examples * responses * p)
    return found.reshape(examples, responses, p, *values.shape[2:])


def _scatter(
    values: Float[Array, "b s *n"], at: Array, use: Array, size: int
) -> Float[Array, "size *n"]:
    rest = values.shape[2:]
    flat = jnp.where(use, at, size).reshape(-1)
    out = jnp.zeros((size + 1, *rest), jnp.float32)
    return out.at[flat].add(values.reshape(-1, *rest))[:-1]


def predecessors(batch: PackedBatch) -> Int[Array, "b t"]:
    """Index of the token that each token follows.

    The token before it, except for the first token of a response, which follows the
    last token of its prompt however many responses lie between.
    """
    b, t = batch.tokens.shape
    index = jnp.broadcast_to(jnp.arange(t)[None], (b, t))
    new = jnp.concatenate(
        [jnp.ones((b, 1), bool), batch.segments[:, 1:] != batch.segments[:, :-1]], 1
    )
    begin = jax.lax.cummax(jnp.where(new, index, 0), axis=1)
    opens = jnp.concatenate(
        [jnp.zeros((b, 1), bool), batch.branches[:, 1:] != batch.branches[:, :-1]], 1
    )
    jump = begin + batch.positions - 1
    return jnp.maximum(jnp.where(opens & ~new, jump, index - 1), 0)


def token_logits(
    hidden: Float[Array, "b n d"], unembed: Float[Array, "v d"], cap: float
) -> Float[Array, "b n v"]:
    """hidden . unembed, as cap tanh(. / cap) where the model has a cap."""
    logits = jnp.einsum("bnd,vd->bnv", hidden, unembed)
    return cap * jnp.tanh(logits / cap) if cap else logits


def response_logp(
    hidden: Float[Array, "b t d"],
    batch: PackedBatch,
    unembed: Float[Array, "v d"],
    cap: float = 0.0,
) -> Float[Array, "b s"]:
    """Sum over each scored response of log p(token | tokens before), by blocks."""
    previous = take(hidden, predecessors(batch)).astype(jnp.float32)

    def block(args):
        x, tokens = args
        logits = token_logits(x, unembed, cap)
        logp = jax.nn.log_softmax(logits, axis=-1)
        return jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]

    parts = []
    t = batch.tokens.shape[1]
    for start in range(0, t, LOGP_BLOCK):
        cut = slice(start, min(start + LOGP_BLOCK, t))
        parts.append(jax.checkpoint(block)((previous[:, cut], batch.tokens[:, cut])))
    logp = jnp.concatenate(parts, axis=1)
    return jnp.einsum("bst,bt->bs", same_response(batch), logp)
