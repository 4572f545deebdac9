"""Where a run starts: its own last checkpoint, another run's, another's parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from rm_jax import store
from rm_jax.build import Built, check_model
from rm_jax.checkpoint import Checkpoints
from rm_jax.config import ConfigError
from rm_jax.state import TrainState, create


class Start(NamedTuple):
    """Where a run starts.

    Attributes:
      state: after `step` steps.
      step: steps done.
      evaluated: whether this step's evaluation is in the log already.
      window: numbers of steps that no line of the log has yet.
      logged: bytes that the log of this run must have, None where nobody knows.
    """

    state: TrainState
    step: int
    evaluated: bool
    window: dict[str, list[float]]
    logged: int | None = None


def where_to_start(
    config: Any,
    built: Built,
    checkpoints: Checkpoints,
    on_event: Callable[[dict[str, Any]], None],
) -> Start:
    """The first that there is of: its own directory, config.train.resume, model.init.

    `resume` continues another run, optimiser and all; `model.init` takes another run's
    parameters only; without any the parameters are fresh.
    """
    resume = config.train.resume and Checkpoints(folder_of(config.train.resume))
    for place in (checkpoints, resume):
        if place and (place is resume or place.steps()):
            state, meta, step = place.restore(built.shapes, on_event=on_event)
            check_model(place.directory, meta, built)
            window = {k: [float(total), n] for k, (total, n) in meta["log"].items()}
            # A log of `resume` is another run's; one of older checkpoints is unknown.
            logged = meta.get("metrics_bytes") if place is checkpoints else None
            return Start(state, step, meta["evaluated"], window, logged)
    state = create(built.new, built.shardings)
    if config.model.init != "scratch":
        other = Checkpoints(folder_of(config.model.init))
        shapes = built.shapes.params
        params, meta, _ = other.restore_part("params", shapes, on_event=on_event)
        check_model(other.directory, meta, built)
        ema = None if state.ema is None else jax.tree.map(jax.numpy.copy, params)
        state = state.replace(params=params, ema=ema)
    return Start(state, 0, True, {})


def check_start(config: Any) -> None:
    """Refuses a start that is not there, before anything is tokenised.

    Raises:
      ConfigError: naming the knob.
    """
    key, run = "train.resume", config.train.resume
    if not run:
        key, run = "model.init", config.model.init
    if run != "scratch" and not Checkpoints(folder_of(run)).steps():
        raise ConfigError(
            f"config.{key} = {run!r}: {folder_of(run)} has no checkpoint: "
            "give the --workdir of a run that saved one"
        )


def folder_of(run: str) -> str:
    """Folder of a run's checkpoints."""
    return store.join(run, "checkpoints")
