"""One training step, as pure programs: a gradient a chunk, summed; one update.

    total = zeros(state)
    for chunk in batch:  total = gradient(state, total, chunk, ...)
    state, metrics = update(state, total)

The loss is sum(weight_e loss_e) / sum(weight_e) over all examples of the step, whatever
the number of chunks or hosts, because the divisor is known before the first chunk.
A regulariser that is a function of sums over the step (a correlation) takes one more
pass: the sums over all chunks first, then its derivative by them times their gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from rm_jax import losses
from rm_jax.losses.pairwise import pairs
from rm_jax.members import Members, axes, lift
from rm_jax.optim import Optimizer, ema_update, merge
from rm_jax.sharding import BATCH, replicated
from rm_jax.state import Guard, TrainState
from rm_jax.types import Labels, PackedBatch, RewardOutput

# (params, batch, examples, responses, key or None) -> RewardOutput; a key: training
ApplyFn = Callable[..., RewardOutput]


class Total(NamedTuple):
    """What the chunks of a step add up to.

    Attributes:
      grads: gradient of the step's loss by the trainable parameters.
      sums: metric -> (sum, count).
    """

    grads: Any
    sums: dict[str, Float[Array, "2"]]


class Step(NamedTuple):
    """The compiled programs of a step; `sums` and `weigh` are None when not needed."""

    zeros: Callable[[TrainState], Total]
    gradient: Callable[..., tuple[Total, Float[Array, "e"] | None]]
    update: Callable[[TrainState, Total], tuple[TrainState, dict[str, Array]]]
    sums: Callable[..., Any] | None
    weigh: Callable[..., Any] | None

    def compiled(self) -> int:
        """Programs compiled so far: one a chunk shape, and those around them."""
        return sum(f._cache_size() for f in self if f is not None)


def preference_sums(out: RewardOutput, labels: Labels) -> dict[str, Float[Array, "2"]]:
    """(sum, count) of a chunk's NLL, accuracy, margin and scores, by labelled pair.

    Each example counts its weight once, however many pairs it has; pairs that people
    tied do not count, pairs that the model ties count one half.
    """
    p = pairs(out, labels)
    ordered = (p.compared & ~p.tied).astype(jnp.float32)
    # Oriented so that the preferred response is first.
    delta = jnp.where(p.chance >= 0.5, p.delta, -p.delta)
    n = jnp.sum(ordered, axis=(1, 2))
    weight = labels.weight * (n > 0)
    each = (weight / jnp.maximum(n, 1.0))[:, None, None] * ordered
    count = jnp.sum(weight)

    def mean(values):
        return jnp.stack([jnp.sum(each * values), count])

    right = (delta > 0).astype(jnp.float32) + 0.5 * (delta == 0)
    present = (labels.present > 0) * (labels.weight > 0)[:, None]
    scores = jnp.where(present, out.scores, 0.0)
    responses = jnp.sum(present, dtype=jnp.float32)
    return {
        "nll": mean(jax.nn.softplus(-delta)),
        "accuracy": mean(right),
        "margin": mean(delta),
        "identical": mean((delta == 0).astype(jnp.float32)),
        "score_mean": jnp.stack([jnp.sum(scores), responses]),
        "score_square": jnp.stack([jnp.sum(scores**2), responses]),
    }


def source_sums(
    out: RewardOutput, labels: Labels, loss: Float[Array, "e"], sources: Sequence[str]
) -> dict[str, Float[Array, "2"]]:
    """ "SOURCE/METRIC" -> (sum, count) over a chunk's examples of that source."""
    sums = {}
    for s, source in enumerate(sources):
        own = labels._replace(weight=labels.weight * (labels.source == s))
        found = preference_sums(out, own)
        found["loss"] = jnp.stack([jnp.sum(own.weight * loss), jnp.sum(own.weight)])
        sums |= {f"{source}/{name}": found[name] for name in OF_SOURCE}
    return sums


def make_step(
    apply_fn: ApplyFn,
    objective: losses.Objective,
    optimizer: Optimizer,
    mesh: Mesh,
    shardings: TrainState,
    *,
    dropout_seed: int,
    ema_decay: float,
    spike_sigma: float,
    sources: Sequence[str] = (),
    example_losses: bool = False,
) -> Step:
    """Compiles nothing yet: jitted programs with their in and out shardings.

    Args:
      apply_fn: the model.
      objective: losses.choose.
      optimizer: optim.make_optimizer.
      mesh: the devices.
      shardings: of the state.
      dropout_seed: a chunk's key is fold_in(fold_in(key(seed), step), chunk); split,
        half of it is the model's and half the losses'.
      ema_decay: 0 is off.
      spike_sigma: gradient norms over mean + sigma std of the window are skipped; 0 is
        off.
      sources: names of a mixture's sources, for "SOURCE/METRIC", each as (sum, count).
      example_losses: `gradient` also returns the loss of each example of the chunk.
    """
    whole = replicated(mesh)
    rows = NamedSharding(mesh, BATCH)
    grads = optimizer.split(shardings.params)[0]
    total = Total(grads, whole)
    has_sums = any(r.stats is not None for r in objective.regularizers.values())

    def forward(params, hparams, batch, labels, key):
        examples, responses = labels.ranks.shape
        ours, theirs = jax.random.split(key)
        out = apply_fn(params, batch, examples, responses, ours)
        terms = losses.example_terms(objective, out, labels, hparams["loss"], theirs)
        return out, terms

    def zeros(state: TrainState) -> Total:
        trainable, _ = optimizer.split(state.params)
        names = ["loss", *_term_names(objective), *METRICS]
        names += [f"{source}/{name}" for source in sources for name in OF_SOURCE]
        return Total(
            jax.tree.map(jnp.zeros_like, trainable),
            {name: jnp.zeros((2,), jnp.float32) for name in names},
        )

    def chunk_key(state, chunk):
        key = jax.random.fold_in(jax.random.key(dropout_seed), state.step)
        return jax.random.fold_in(key, chunk)

    def gradient(state, total, batch, labels, chunk, weight, slope):
        trainable, frozen = optimizer.split(state.params)

        def loss_fn(trainable):
            params = merge(trainable, frozen)
            key = chunk_key(state, chunk)
            out, terms = forward(params, state.hparams, batch, labels, key)
            sums = {
                name: jnp.stack([jnp.sum(labels.weight * term), jnp.sum(labels.weight)])
                for name, term in terms.items()
            }
            loss = sum(s[0] for s in sums.values()) / weight
            sums["loss"] = jnp.stack([loss * weight, jnp.sum(labels.weight)])
            if has_sums:
                own = losses.sums(objective, out, labels, state.hparams["loss"])
                loss += sum(
                    jnp.sum(a * b)
                    for a, b in zip(
                        jax.tree.leaves(slope), jax.tree.leaves(own), strict=True
                    )
                )
            each = sum(terms.values())
            of_sources = source_sums(out, labels, each, sources)
            sums |= preference_sums(out, labels) | of_sources
            return loss, (sums, each if example_losses else None)

        grads, (sums, each) = jax.grad(loss_fn, has_aux=True)(trainable)
        added = {name: total.sums[name] + value for name, value in sums.items()}
        grads = jax.tree.map(jnp.add, total.grads, grads)
        return Total(grads, total.sums | added), each

    def chunk_sums(state, batch, labels, chunk, before):
        out, _ = forward(
            state.params, state.hparams, batch, labels, chunk_key(state, chunk)
        )
        own = losses.sums(objective, out, labels, state.hparams["loss"])
        return own if before is None else jax.tree.map(jnp.add, before, own)

    def weigh(state, sums):
        def value(sums):
            terms = losses.global_terms(
                objective, sums, state.params, state.hparams["loss"]
            )
            return sum(terms.values()), terms

        return jax.grad(value, has_aux=True)(sums)

    def update(state: TrainState, total: Total, terms: dict[str, Array]):
        trainable, frozen = optimizer.split(state.params)
        grads = total.grads
        by_params = {
            n: r for n, r in objective.regularizers.items() if r.params is not None
        }
        if by_params:

            def penalty(trainable):
                params = merge(trainable, frozen)
                own = objective._replace(regularizers=by_params)
                found = losses.global_terms(own, {}, params, state.hparams["loss"])
                return sum(found.values()), found

            more, found = jax.grad(penalty, has_aux=True)(trainable)
            grads, terms = jax.tree.map(jnp.add, grads, more), terms | found
        means = {
            name: s if "/" in name else s[0] / jnp.maximum(s[1], 1e-30)
            for name, s in total.sums.items()
        }
        means |= terms
        means["loss"] += sum(terms.values(), jnp.zeros(()))
        new, opt_state, stats = optimizer.update(
            grads, state.opt_state, trainable, state.hparams["optim"], state.step
        )
        ok, guard = judge(state.guard, means["loss"], stats["grad_norm"], spike_sigma)
        keep = lambda a, b: jax.tree.map(lambda x, y: jnp.where(ok, x, y), a, b)
        params = merge(keep(new, trainable), frozen)
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=keep(opt_state, state.opt_state),
            ema=state.ema
            if state.ema is None
            else keep(
                ema_update(state.ema, params, ema_decay, state.guard.taken), state.ema
            ),
            guard=guard,
        )
        square = means.pop("score_square") - means["score_mean"] ** 2
        means["score_std"] = jnp.sqrt(jnp.maximum(square, 0.0))
        means |= stats | {"skips": guard.skips, "skips_in_row": guard.in_row}
        return state, means

    jit = jax.jit
    chunk = (rows, whole, whole)  # batch, labels, number of the chunk
    return Step(
        zeros=jit(zeros, in_shardings=(shardings,), out_shardings=total),
        gradient=jit(
            gradient,
            in_shardings=(shardings, total, *chunk, whole, whole),
            out_shardings=(total, whole),
            donate_argnums=1,
        ),
        update=jit(
            update,
            in_shardings=(shardings, total, whole),
            out_shardings=(shardings, whole),
            donate_argnums=0,
        ),
        sums=jit(
            chunk_sums, in_shardings=(shardings, *chunk, whole), out_shardings=whole
        )
        if has_sums
        else None,
        weigh=jit(weigh, in_shardings=(shardings, whole), out_shardings=whole)
        if has_sums
        else None,
    )


METRICS = ("nll", "accuracy", "margin", "identical", "score_mean", "score_square")
OF_SOURCE = ("loss", "nll", "accuracy", "margin")  # of each source of a mixture


def _term_names(objective: losses.Objective) -> list[str]:
    return [n for n, r in objective.regularizers.items() if r.per_example is not None]


def judge(guard: Guard, loss: Array, norm: Array, sigma: float) -> tuple[Array, Guard]:
    """Whether a step may be taken, and the memory after it.

    A step is refused when its loss or gradient norm is not finite, or, with sigma > 0
    and a full window, when its norm is above mean + sigma std of the window.
    """
    ok = jnp.isfinite(loss) & jnp.isfinite(norm)
    if sigma:
        full = guard.taken >= guard.norms.shape[0]
        limit = jnp.mean(guard.norms) + sigma * jnp.std(guard.norms)
        ok &= ~(full & (norm > limit))
    slot = guard.taken % guard.norms.shape[0]
    refused = (~ok).astype(jnp.int32)
    return ok, Guard(
        skips=guard.skips + refused,
        in_row=(guard.in_row + 1) * refused,
        norms=jnp.where(ok, guard.norms.at[slot].set(norm), guard.norms),
        taken=guard.taken + 1 - refused,
    )


def run_step(
    step: Step,
    state: TrainState,
    chunks: list[tuple[PackedBatch, Labels]],
    weight: float,
) -> tuple[TrainState, dict[str, Any]]:
    """Dispatches one step; returns before the devices have finished it.

    The metrics of a step that was made with `example_losses` hold them, too: a list,
    [e] of each chunk.

    Args:
      step: of `make_step`.
      state: consumed: its arrays are donated.
      chunks: device arrays.
      weight: sum of the examples' weights over all chunks.
    """
    total = step.zeros(state)
    slope, terms = None, {}
    weight = jnp.float32(max(weight, 1e-30))
    if step.sums is not None:
        sums = None
        for i, (batch, labels) in enumerate(chunks):
            sums = step.sums(state, batch, labels, i, sums)
        slope, terms = step.weigh(state, sums)
    each = []
    for i, (batch, labels) in enumerate(chunks):
        total, own = step.gradient(state, total, batch, labels, i, weight, slope)
        each.append(own)
    state, metrics = step.update(state, total, terms)
    if each[0] is not None:
        metrics["example_losses"] = each
    return state, metrics


def make_score(
    apply_fn: ApplyFn, mesh: Mesh, params_shardings: Any, members: Members | None = None
) -> Callable:
    """Compiled (params, batch, labels) -> scores, the same on every device.

    [e k]; with members, whose batch is always one, [m e k].
    """
    owned = axes(params_shardings, members.share if members else "none")

    def score(params, batch: PackedBatch, labels: Labels):
        one = lambda params: apply_fn(params, batch, *labels.ranks.shape, None).scores
        return lift(members, one, (owned,), turns=True)(params)

    whole, rows = replicated(mesh), NamedSharding(mesh, BATCH)
    return jax.jit(
        score, in_shardings=(params_shardings, rows, whole), out_shardings=whole
    )
