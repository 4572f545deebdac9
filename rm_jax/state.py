"""The train state: everything a step reads and changes, and nothing else.

Counters that decide anything live here, so a resumed run decides the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array

from rm_jax.members import Members, axes
from rm_jax.optim import Optimizer
from rm_jax.sharding import tree_shardings


@flax.struct.dataclass
class Guard:
    """What the NaN and spike policy remembers.

    Attributes:
      skips: steps skipped so far.
      in_row: steps skipped since the last one that was taken.
      norms: gradient norms of the last accepted steps, NaN where none yet.
      taken: accepted steps.
    """

    skips: jax.Array
    in_row: jax.Array
    norms: jax.Array
    taken: jax.Array


@flax.struct.dataclass
class TrainState:
    """State between two steps.

    Attributes:
      step: steps done.
      params: nested dict of float32 arrays.
      opt_state: of the trainable parameters.
      ema: average of params, or None.
      hparams: {"optim", "loss", "dropout_seed"}: every number that a unit of a
        vectorised sweep may have for itself.
      guard: the NaN and spike policy's memory.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    hparams: Any
    guard: Guard


def new_state(
    params: Any,
    optimizer: Optimizer,
    loss_hparams: Any,
    ema: bool,
    spike_window: int,
    dropout_seed: ArrayLike = 0,
    optim_hparams: Mapping[str, ArrayLike] | None = None,
    members: Members | None = None,
) -> TrainState:
    """State before the first step, from fresh or imported parameters.

    Args:
      params: with members, those that each owns have a leading axis m.
      optimizer: of one model.
      loss_hparams: of the objective; [m] arrays where members are independent, as are
        the other numbers.
      ema: whether an average is kept.
      spike_window: norms that the guard remembers.
      dropout_seed: of the keys of dropout, heads and losses.
      optim_hparams: those of the optimizer by default.
      members: of the program.
    """
    trainable, _ = optimizer.split(params)
    hparams = {
        "optim": optimizer.hparams if optim_hparams is None else optim_hparams,
        "loss": loss_hparams,
        "dropout_seed": jnp.asarray(dropout_seed, jnp.int32),
    }
    apart = members is not None and members.independent
    each = (members.count,) if apart else ()
    zero = lambda: jnp.zeros(each, jnp.int32)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=(jax.vmap(optimizer.init) if apart else optimizer.init)(trainable),
        ema=jax.tree.map(jnp.array, params) if ema else None,
        hparams=jax.tree.map(jnp.asarray, hparams),
        guard=Guard(
            zero(),
            zero(),
            jnp.full((*each, spike_window), jnp.nan, jnp.float32),
            zero(),
        ),
    )
    # A type that jax calls weak is strong after one update: another type, for which
    # every program would be compiled once more.
    return jax.tree.map(lambda x: x.astype(x.dtype), state)


def new_params(
    init: Callable[[Array], Any], seeds: Sequence[int], members: Members | None
) -> Any:
    """Fresh parameters; a shared trunk is the first seed's.

    Args:
      init: key -> parameters of one model.
      seeds: one a member.
      members: of the program; None for a single model.
    """
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    one = init(keys[0])
    if members is None:
        return one
    own = jax.vmap(init)(keys)  # what is not used of it is never computed
    pick = lambda axis, one, own: one if axis is None else own
    which = axes(one, members.share)
    return jax.tree.map(pick, which, one, own, is_leaf=lambda x: x is None)


def plan(
    whole: Callable[[], TrainState], mesh: Mesh, members: Members | None = None
) -> tuple[TrainState, TrainState]:
    """What a state will be, before any array exists.

    Args:
      whole: () -> TrainState, traced only.
      mesh: the devices.
      members: of the program.

    Returns:
      its shapes (ShapeDtypeStructs with shardings, what a checkpoint is restored into)
      and its shardings.
    """
    shapes = jax.eval_shape(whole)
    own = members and axes(shapes.params, members.share)
    shardings = tree_shardings(shapes, shapes.params, mesh, own)
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(place, shapes, shardings), shardings


def create(whole: Callable[[], TrainState], shardings: TrainState) -> TrainState:
    """Runs `whole` with every array created where it belongs, never unsharded."""
    return jax.jit(whole, out_shardings=shardings)()
