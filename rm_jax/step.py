"""One training step, as pure programs: a gradient a chunk, summed; one update.

    total = zeros(state)
    for chunk in batch:  total = gradient(state, total, chunk, ...)
    state, metrics = update(state, total)

The loss is sum(weight_e loss_e) / sum(weight_e) over all examples of the step, whatever
the number of chunks or hosts, because the divisor is known before the first chunk.
A regulariser that is a function of sums over the step (a correlation) takes one more
pass: the sums over all chunks first, then its derivative by them times their gradients.

Every function here is of one model. With members (members.py) the same functions are
lifted over the leading axis m of what each member owns, and so is every metric.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from rm_jax import losses
from rm_jax.losses.pairwise import pairs
from rm_jax.members import Members, axes, lift, take
from rm_jax.optim import Optimizer, ema_update, merge
from rm_jax.sharding import batch_sharding, replicated, tree_shardings
from rm_jax.state import Guard, TrainState
from rm_jax.types import Labels, RewardOutput, Rows

# (params, batch, examples, responses, keys or None, reference_logp [e k]) ->
# RewardOutput. Keys, a pair for the trunk and the head, mean training.
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
    ema_decay: float,
    spike_sigma: float,
    sources: Sequence[str] = (),
    example_losses: bool = False,
    members: Members | None = None,
) -> Step:
    """Compiles nothing yet: jitted programs with their in and out shardings.

    A chunk's key is fold_in(fold_in(key(dropout_seed), step), chunk), split into those
    of the trunk, the head and the losses.

    Args:
      apply_fn: the model.
      objective: losses.choose.
      optimizer: optim.make_optimizer.
      mesh: the devices.
      shardings: of the state.
      ema_decay: 0 is off.
      spike_sigma: gradient norms over mean + sigma std of the window are skipped; 0 is
        off.
      sources: names of a mixture's sources, for "SOURCE/METRIC", each as (sum, count).
      example_losses: `gradient` also returns the loss of each example of the chunk.
      members: of the state; None is a single model.
    """
    whole = replicated(mesh)
    split = optimizer.split
    total = Total(split(shardings.params)[0], whole)
    share = members.share if members else "none"
    owned = axes(shardings.params, share)
    trained, fixed = split(owned)
    own = 0 if not members or members.independent else None
    own_batch = 0 if members and members.own_batches else None
    rows = batch_sharding(mesh, own_batch == 0)
    has_sums = any(r.stats is not None for r in objective.regularizers.values())

    def forward(params, hparams, number, step, batch, labels, chunk):
        key = jax.random.fold_in(jax.random.key(hparams["dropout_seed"]), step)
        of_trunk, *own_keys = jax.random.split(jax.random.fold_in(key, chunk), 3)
        of_head, of_loss = (jax.random.fold_in(k, number) for k in own_keys)
        out = apply_fn(
            params, batch, *labels.ranks.shape, (of_trunk, of_head),
            labels.reference_logp,
        )  # fmt: skip
        terms = losses.example_terms(objective, out, labels, hparams["loss"], of_loss)
        return out, terms

    def loss_of(trainable, frozen, hparams, number, step, batch, labels, chunk, weight,
                slope):  # fmt: skip
        params = merge(trainable, frozen)
        out, terms = forward(params, hparams, number, step, batch, labels, chunk)
        count = jnp.sum(labels.weight)
        sums = {
            name: jnp.stack([jnp.sum(labels.weight * term), count])
            for name, term in terms.items()
        }
        loss = sum(s[0] for s in sums.values()) / weight
        sums["loss"] = jnp.stack([loss * weight, count])
        if has_sums:
            found = losses.sums(objective, out, labels, hparams["loss"])
            pairs_of = zip(jax.tree.leaves(slope), jax.tree.leaves(found), strict=True)
            loss += sum(jnp.sum(a * b) for a, b in pairs_of)
        each = sum(terms.values())
        sums |= preference_sums(out, labels)
        sums |= source_sums(out, labels, each, sources)
        return loss, (sums, each if example_losses else None)

    # (state parts of each member; number; step; chunk; weight; slope)
    of_member = (trained, fixed, own, 0, None, own_batch, 0, None, 0, 0)
    if members and not members.independent:

        def mean_loss(*args):
            loss, aux = lift(members, loss_of, of_member)(*args)
            return jnp.mean(loss), aux

        differentiate = jax.grad(mean_loss, has_aux=True)
    else:
        one = jax.grad(loss_of, has_aux=True)
        differentiate = lift(members, one, of_member, turns=True)

    def numbers():
        """What tells members of one trunk apart in keys; alone every model is 0."""
        if members is None:
            return jnp.int32(0)
        return jnp.arange(members.count) * (0 if members.independent else 1)

    def zeros(state: TrainState) -> Total:
        trainable, _ = split(state.params)
        names = ["loss", *_term_names(objective), *METRICS]
        names += [f"{source}/{name}" for source in sources for name in OF_SOURCE]
        shape = (members.count, 2) if members else (2,)
        return Total(
            jax.tree.map(jnp.zeros_like, trainable),
            {name: jnp.zeros(shape, jnp.float32) for name in names},
        )

    def gradient(state, total, batch, labels, chunk, weight, slope):
        grads, (sums, each) = differentiate(
            *split(state.params), state.hparams, numbers(), state.step, batch, labels,
            chunk, weight, slope,
        )  # fmt: skip
        added = {name: total.sums[name] + value for name, value in sums.items()}
        grads = jax.tree.map(jnp.add, total.grads, grads)
        return Total(grads, total.sums | added), each

    def chunk_sums(state, batch, labels, chunk, before):
        def one(params, hparams, number, step, batch, labels, chunk):
            out, _ = forward(params, hparams, number, step, batch, labels, chunk)
            return losses.sums(objective, out, labels, hparams["loss"])

        in_axes = (owned, own, 0, None, own_batch, 0, None)
        found = lift(members, one, in_axes, turns=True)(
            state.params, state.hparams, numbers(), state.step, batch, labels, chunk
        )
        return found if before is None else jax.tree.map(jnp.add, before, found)

    def weigh(state, sums):
        def value(sums, hparams):
            terms = losses.global_terms(objective, sums, hparams["loss"])
            return sum(terms.values()), terms

        return lift(members, jax.grad(value, has_aux=True), (0, own))(
            sums, state.hparams
        )

    def penalties(state):
        """Gradient and values of regularisers that are functions of parameters."""
        trainable, frozen = split(state.params)
        alone = members is None or members.runs

        def one(trainable, frozen, hparams):
            params = merge(trainable, frozen)
            found = losses.parameter_terms(objective, params, hparams["loss"])
            if alone:
                of_one = jax.tree.map(lambda x: x[None], params)
                found |= losses.parameter_terms(
                    objective, of_one, hparams["loss"], True
                )
            return sum(found.values()), found

        def all_of(trainable):
            one_each = lift(members, one, (trained, fixed, own))
            value, found = one_each(trainable, frozen, state.hparams)
            value = jnp.sum(value) if own == 0 else jnp.mean(value)
            if alone:
                return value, found
            whole, hparams = merge(trainable, frozen), state.hparams["loss"]
            if own == 0:
                hparams = jax.tree.map(lambda x: x[0], hparams)
            all_at_once = losses.parameter_terms(objective, whole, hparams, True)
            value += sum(all_at_once.values())
            return value, found | {
                name: jnp.broadcast_to(term, members.count)
                for name, term in all_at_once.items()
            }

        return jax.grad(all_of, has_aux=True)(trainable)

    def means_of(sums, terms):
        means = {
            name: s if "/" in name else s[0] / jnp.maximum(s[1], 1e-30)
            for name, s in sums.items()
        }
        means |= terms
        means["loss"] += sum(terms.values(), jnp.zeros(()))
        square = means.pop("score_square") - means["score_mean"] ** 2
        means["score_std"] = jnp.sqrt(jnp.maximum(square, 0.0))
        return means

    def advance(trainable, opt_state, ema, guard, hparams, grads, loss, step):
        new, new_opt, stats = optimizer.update(
            grads, opt_state, trainable, hparams["optim"], step
        )
        ok, judged = judge(guard, loss, stats["grad_norm"], spike_sigma)
        keep = lambda a, b: jax.tree.map(lambda x, y: jnp.where(ok, x, y), a, b)
        new = keep(new, trainable)
        if ema is not None:
            ema = keep(ema_update(ema, new, ema_decay, guard.taken), ema)
        stats |= {"skips": judged.skips, "skips_in_row": judged.in_row}
        return (new, keep(new_opt, opt_state), ema, judged), stats

    def update(state: TrainState, total: Total, terms: dict[str, Array]):
        trainable, frozen = split(state.params)
        grads = total.grads
        if any(r.params is not None for r in objective.regularizers.values()):
            more, found = penalties(state)
            grads, terms = jax.tree.map(jnp.add, grads, more), terms | found
        means = lift(members, means_of, (0, 0))(total.sums, terms)
        loss = means["loss"] if own == 0 else jnp.mean(means["loss"])
        ema, ema_frozen = (None, None) if state.ema is None else split(state.ema)
        step_all = advance
        if own == 0:
            step_all = lift(members, advance, (0, 0, 0, 0, 0, 0, 0, None))
        (new, opt_state, ema, guard), stats = step_all(
            trainable, state.opt_state, ema, state.guard, state.hparams, grads, loss,
            state.step,
        )  # fmt: skip
        state = state.replace(
            step=state.step + 1,
            params=merge(new, frozen),
            opt_state=opt_state,
            ema=None if ema is None else merge(ema, ema_frozen),
            guard=guard,
        )
        return state, means | stats

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
    chunks: list[tuple[Rows, Labels]],
    weight: Float[np.ndarray, "*m"] | float,
) -> tuple[TrainState, dict[str, Any]]:
    """Dispatches one step; returns before the devices have finished it.

    The metrics of a step that was made with `example_losses` hold them, too: a list,
    [e] of each chunk.

    Args:
      step: of `make_step`.
      state: consumed: its arrays are donated.
      chunks: device arrays.
      weight: sum of the examples' weights over all chunks, of each member.
    """
    total = step.zeros(state)
    slope, terms = None, {}
    weight = np.maximum(np.float32(weight), 1e-30)
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

    def score(params, batch: Rows, labels: Labels):
        shape, reference = labels.ranks.shape, labels.reference_logp
        one = lambda params: apply_fn(params, batch, *shape, None, reference).scores
        return lift(members, one, (owned,), turns=True)(params)

    whole, rows = replicated(mesh), batch_sharding(mesh)
    return jax.jit(
        score, in_shardings=(params_shardings, rows, whole), out_shardings=whole
    )


def make_pick(
    shardings: Any, params: Any, mesh: Mesh, members: Members | None, together: bool
) -> tuple[Callable[[Any, int], Any], Any]:
    """The program (params, i) -> parameters of run i, and where these live.

    Args:
      shardings: of the parameters of the program.
      params: their shapes.
      mesh: the devices.
      members: of the program.
      together: whether each member is a run; else run 0 is all there is.
    """
    if not together:
        return lambda params, i: params, shardings
    one = jax.eval_shape(lambda p: take(p, members.share, 0), params)
    where = tree_shardings(one, one, mesh)
    pick = jax.jit(
        lambda params, i: take(params, members.share, i),
        in_shardings=(shardings, replicated(mesh)),
        out_shardings=where,
    )
    return pick, where
