"""`rm-jax inspect`: what one step of a run computed, in text a person can check."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rm_jax import ensemble, losses, plugins, store
from rm_jax.data import datasets
from rm_jax.data.loader import StepBatch
from rm_jax.data.relabel import of_config
from rm_jax.data.training import Training
from rm_jax.members import take
from rm_jax.models import RewardModel
from rm_jax.models.attention import Place, tree_mask
from rm_jax.serve.scorer import Scorer, load
from rm_jax.types import Labels, PackedBatch, RewardOutput

WIDTH = 64  # characters of a picture of the mask


def inspect_step(run: str, step: int, rows: int, member: int = 0) -> Iterator[str]:
    """Lines about step `step`: its layout, then each example and `rows` rows.

    Examples show their prompt, responses, truncation, the token that was scored,
    labels, the scores of the last checkpoint and the loss; rows show every segment and
    the mask.

    Args:
      run: the run directory.
      step: from 0: the step that made state step + 1.
      rows: rows shown of each chunk; 0 is all.
      member: of an ensemble: its examples, labels, scores and loss.

    Raises:
      FileNotFoundError: no run directory, or no checkpoint in it.
      ValueError: a step or a number of rows below 0, a step not made yet, no such
        member, or code of the run that cannot be imported here.
    """
    for name, n in ("--step", step), ("--rows", rows):
        if n < 0:
            raise ValueError(f"{name} {n}: must be 0 or more")
    model = load(run)
    if step >= model.step:
        raise ValueError(
            f"--step {step}: {run} has made steps 0 to {model.step - 1} so far"
        )
    plugins.find(model.config, run=run)  # now, with the way to the run's own copies
    say = lambda line: print(line, file=sys.stderr, flush=True)
    data = datasets.open_data(model.config, store.join(run, "tokenizer"), say)
    own, params = _member(model, member)
    order = datasets.train_order(own.data, data.train, own.data_seed)
    if own.train.overfit_one_batch:
        order = order.only_first(own.batch.examples)
    how = of_config(own.data)
    training = Training([model.loader(data.train, order)], [how], members=False)
    batch = training.batch_at(step)
    of = f", member {member} of {model.members.count}" if model.members else ""
    yield (
        f"step {step} of {run}{of}: {batch.examples} examples, {batch.tokens} tokens, "
        f"{len(batch.chunks)} chunks, {batch.padding:.1%} padding; scores of the "
        f"checkpoint at step {model.step}"
    )
    yield from _chunks(model, params, data, batch, rows)


def _member(model: Scorer, member: int) -> tuple[Any, Any]:
    """The config and the parameters of a member, of a single model its own."""
    each = ensemble.configs(model.config)
    if not 0 <= member < len(each):
        raise ValueError(
            f"--member {member}: {model.run} has {len(each)} members, 0 is the first"
        )
    if model.members is None:
        return model.config, model.params
    return each[member], take(model.params, model.members.share, member)


def _chunks(
    model: Scorer, params: Any, data: datasets.Data, batch: StepBatch, rows: int
) -> Iterator[str]:
    objective = losses.choose(model.config.loss.to_dict())
    outputs = _outputs(model, params, objective.needs_token_logp)
    for number, (packed, labels) in enumerate(batch.chunks):
        shape = batch.shapes[number]
        yield f"\nchunk {number}: {shape.rows} rows of {shape.length} tokens"
        out = outputs(packed, labels)
        scores = np.asarray(out.scores)
        each = losses.example_terms(
            objective,
            out,
            jax.tree.map(jnp.asarray, labels),
            objective.hparams,
            jax.random.key(0),
        )
        for e in np.flatnonzero(labels.ids >= 0):
            yield from _example(model, data, labels, scores, each, int(e))
        shown = packed.tokens.shape[0] if rows == 0 else rows
        for b in range(min(shown, packed.tokens.shape[0])):
            yield from _row(model, packed, b)


def _outputs(
    model: Scorer, params: Any, token_logp: bool
) -> Callable[[PackedBatch, Labels], RewardOutput]:
    """The model on a chunk, without dropout, with all that its loss asks for."""
    module = RewardModel(model.arch)

    def apply(params, batch, labels):
        return module.apply(
            {"params": params},
            batch,
            *labels.ranks.shape,
            token_logp=token_logp,
            reference_logp=labels.reference_logp,
        )

    jitted = jax.jit(apply)
    return lambda batch, labels: jitted(params, batch, labels)


def _example(model, data, labels: Labels, scores, each, e: int) -> Iterator[str]:
    i = int(labels.ids[e])
    terms = ", ".join(f"{name} {float(v[e]):.4f}" for name, v in each.items())
    yield f"  example {e}: id {data.train.id(i)}, weight {labels.weight[e]:g}, {terms}"
    prompt = data.train.branch(i, 0)
    yield f"    prompt ({len(prompt)} tokens) {_text(model, prompt)}"
    keeps = data.train.per_response("prompt_keep", i)
    cut = [int(k) for k in keeps if k < len(prompt)]
    if cut:
        yield f"    prompt cut to {cut} tokens on the {model.contract.truncation_side}"
    for k in np.flatnonzero(labels.present[e]):
        rank = labels.ranks[e, k]
        yield (
            f"    response {k}: rank {rank if rank >= 0 else '-'}, "
            f"{labels.lengths[e, k]} tokens, score {scores[e, k]:+.4f}"
        )


def _row(model, packed: PackedBatch, b: int) -> Iterator[str]:
    used = packed.segments[b] > 0
    yield f"  row {b}: {int(used.sum())} of {len(used)} tokens used"
    for s in range(1, int(packed.segments[b].max()) + 1):
        here = packed.segments[b] == s
        for branch in range(int(packed.branches[b][here].max()) + 1):
            at = np.flatnonzero(here & (packed.branches[b] == branch))
            name = "prompt" if branch == 0 else f"response {branch}"
            yield (
                f"    segment {s} {name} at {at[0]}-{at[-1]}: "
                f"{_text(model, packed.tokens[b, at])}"
            )
    for slot, (e, k, step) in zip(packed.slots[b], packed.slot_ids[b], strict=True):
        if e >= 0:
            token = model.encoder().decode([packed.tokens[b, slot]])
            of_step = f", step {step}" if step else ""
            yield (
                f"    scored: token {slot} {token!r} -> example {e}, response {k}"
                f"{of_step}"
            )
    for window in sorted(set(model.arch.windows)):
        yield f"    mask, window {window or 'unlimited'}:"
        causal = model.arch.attention == "causal"
        yield from (f"    {line}" for line in picture(packed, b, window, causal))


def picture(packed: PackedBatch, b: int, window: int, causal: bool) -> list[str]:
    """The attention mask of a row as text, '#' where anything is seen."""
    index = np.arange(packed.tokens.shape[1])[None]
    place = Place(
        index, packed.positions[b : b + 1], packed.segments[b : b + 1],
        packed.branches[b : b + 1],
    )  # fmt: skip
    mask = np.asarray(tree_mask(place, place, window, causal))[0]
    mask &= (packed.segments[b] > 0)[:, None]
    n = -(-len(mask) // WIDTH)
    size = -(-len(mask) // n)
    padded = np.zeros((size * n, size * n), bool)
    padded[: len(mask), : len(mask)] = mask
    cells = padded.reshape(size, n, size, n).any((1, 3))
    return ["".join("#" if c else "." for c in row) for row in cells]


def _text(model: Scorer, ids, most: int = 160) -> str:
    text = repr(model.encoder().decode(ids))
    return text if len(text) <= most else f"{text[:60]} … {text[-90:]}"
