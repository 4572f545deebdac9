"""Where a run starts: its own last checkpoint, another run's, another's parameters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from rm_jax import members, together
from rm_jax.build import Built, check_model
from rm_jax.checkpoint import Checkpoints
from rm_jax.config import ConfigError
from rm_jax.manifest import check_match, named
from rm_jax.state import TrainState, create


class Start(NamedTuple):
    """Where a run starts.

    Attributes:
      state: after `step` steps.
      step: steps done.
      evaluated: whether this step's evaluation is in the log already.
      windows: of each run, numbers of steps that no line of its log has yet.
      logged: bytes that the log of each run must have, None where nobody knows.
      stopped: run directory -> why it stopped, of runs that train together.
    """

    state: TrainState
    step: int
    evaluated: bool
    windows: list[dict[str, list[float]]]
    logged: list[int | None]
    stopped: dict[str, str]


def where_to_start(
    config: Any,
    built: Built,
    workdirs: Sequence[str],
    checkpoints: Checkpoints,
    on_event: Callable[[dict[str, Any]], None],
) -> Start:
    """The first that there is of: its own directory, config.train.resume, model.init.

    `resume` continues another run, optimiser and all; `model.init` takes another run's
    parameters only; without any the parameters are fresh.
    """
    resume = config.train.resume and Checkpoints(together.place(config.train.resume)[0])
    none = [None] * len(workdirs)
    for place in (checkpoints, resume):
        if place and (place is resume or place.steps()):
            state, meta, step = place.restore(built.shapes, on_event=on_event)
            check_model(place.directory, meta, built)
            windows = [
                {k: [float(total), n] for k, (total, n) in log.items()}
                for log in meta["logs"]
            ]
            # A log of `resume` is another run's.
            logged = meta["metrics_bytes"] if place is checkpoints else none
            stopped = {workdirs[int(i)]: why for i, why in meta["stopped"].items()}
            return Start(state, step, meta["evaluated"], windows, logged, stopped)
    state = create(built.new, built.shardings)
    if config.model.init != "scratch":
        params = _initial(config.model.init, built, on_event)
        ema = None if state.ema is None else jax.tree.map(jax.numpy.copy, params)
        state = state.replace(params=params, ema=ema)
    return Start(state, 0, True, [{} for _ in workdirs], none, {})


def _initial(
    init: str | Sequence[str],
    built: Built,
    on_event: Callable[[dict[str, Any]], None],
) -> Any:
    """Parameters of other runs; members take the runs in turn."""
    runs = [init] if isinstance(init, str) else list(init)
    places = [together.place(run) for run in runs]
    wanted = built.shapes.params
    # One model into one goes straight to where its arrays belong.
    direct = built.members is None and places[0].member is None
    found = []
    for run, place in zip(runs, places, strict=True):
        checkpoints = Checkpoints(place.folder)
        params, meta, _ = checkpoints.restore_part(
            "params", wanted if direct else None, on_event=on_event
        )
        check_model(checkpoints.directory, meta, built)
        if meta["members"]:
            raise ConfigError(
                f"config.model.init = {run!r} is an ensemble: average it into one "
                "model first, with `rm-jax average`"
            )
        found.append(_own(params, place.member))
    if direct:
        return found[0]
    params = found[0]
    if built.members is not None:
        each = [found[i % len(found)] for i in range(built.members.count)]
        params = members.stack(each, built.members.share)
    shape = lambda x: {"shape": list(x.shape), "dtype": str(x.dtype)}
    saved = {name: shape(x) for name, x in named(params)[0].items()}
    check_match(f"config.model.init = {init!r}", saved, named(wanted)[0])
    return jax.tree.map(jax.device_put, params, built.shardings.params)


def _own(params: Any, member: int | None) -> Any:
    return params if member is None else members.take(params, "none", member)


def check_start(config: Any) -> None:
    """Refuses a start that is not there, before anything is tokenised.

    Raises:
      ConfigError: naming the knob.
    """
    init = config.model.init
    runs = [] if init == "scratch" else [init] if isinstance(init, str) else list(init)
    key = "model.init"
    if config.train.resume:
        key, runs = "train.resume", [config.train.resume]
    for run in runs:
        folder, _ = together.place(run)
        if not Checkpoints(folder).steps():
            raise ConfigError(
                f"config.{key} = {run!r}: {folder} has no checkpoint: "
                "give the --workdir of a run that saved one"
            )
