"""The train state: everything a step reads and changes, and nothing else.

Counters that decide anything live here, so a resumed run decides the same.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

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
      hparams: {"optim": ..., "loss": ...}: every number that a unit of a vectorised
        sweep may have for itself.
      guard: the NaN and spike policy's memory.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    hparams: Any
    guard: Guard


def new_state(
    params: Any, optimizer: Optimizer, loss_hparams: Any, ema: bool, spike_window: int
) -> TrainState:
    """State before the first step, from fresh or imported parameters."""
    zero = lambda: jnp.zeros((), jnp.int32)
    state = TrainState(
        step=zero(),
        params=params,
        opt_state=optimizer.init(optimizer.split(params)[0]),
        ema=jax.tree.map(jnp.array, params) if ema else None,
        hparams=jax.tree.map(
            jnp.asarray, {"optim": optimizer.hparams, "loss": loss_hparams}
        ),
        guard=Guard(
            zero(), zero(), jnp.full((spike_window,), jnp.nan, jnp.float32), zero()
        ),
    )
    # A type that jax calls weak is strong after one update: another type, for which
    # every program would be compiled once more.
    return jax.tree.map(lambda x: x.astype(x.dtype), state)


def plan(whole: Callable[[], TrainState], mesh: Mesh) -> tuple[TrainState, TrainState]:
    """What a state will be, before any array exists.

    Args:
      whole: () -> TrainState, traced only.
      mesh: the devices.

    Returns:
      its shapes (ShapeDtypeStructs with shardings, what a checkpoint is restored into)
      and its shardings.
    """
    shapes = jax.eval_shape(whole)
    shardings = tree_shardings(shapes, shapes.params, mesh)
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(place, shapes, shardings), shardings


def create(whole: Callable[[], TrainState], shardings: TrainState) -> TrainState:
    """Runs `whole` with every array created where it belongs, never unsharded."""
    return jax.jit(whole, out_shardings=shardings)()
