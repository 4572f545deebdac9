"""Where a run starts: its own last checkpoint, another run's, another's parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from rm_jax import config as config_module
from rm_jax import members, pretrained, rundir, together
from rm_jax.build import Built, check_model
from rm_jax.checkpoint import Checkpoints
from rm_jax.config import ConfigError
from rm_jax.manifest import check_match, named, nested
from rm_jax.models.given import is_foreign
from rm_jax.models.given import named as named_starts
from rm_jax.state import TrainState, create
from rm_jax.weights.source import open_source


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
    say: Callable[[str], None],
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
            if place is resume and config.model.features:  # else it has the trunk
                _check_weights(config.train.resume, built)
            windows = [
                {k: [float(total), n] for k, (total, n) in log.items()}
                for log in meta["logs"]
            ]
            # A log of `resume` is another run's.
            logged = meta["metrics_bytes"] if place is checkpoints else none
            stopped = {workdirs[int(i)]: why for i, why in meta["stopped"].items()}
            return Start(state, step, meta["evaluated"], windows, logged, stopped)
    state = create(built.new, built.shardings)
    head = config.model.head.init
    kept = f"kept from {config.model.init}" if head == "keep" else f"new, {head}"
    say(f"head {config.model.head.name}: {kept}")
    if config.model.init == "scratch" and built.arch.lora_rank:
        say(
            f"WARNING config.model.lora.rank = {built.arch.lora_rank} freezes a trunk "
            "that nothing has trained: config.model.init = 'scratch'"
        )
    if config.model.init != "scratch":
        params = _initial(config.model, built, state.params, on_event, say)
        ema = None if state.ema is None else jax.tree.map(jax.numpy.copy, params)
        state = state.replace(params=params, ema=ema)
    return Start(state, 0, True, [{} for _ in workdirs], none, {})


HEAD = ("head", "head_knobs", "attributes")
LORA = ("lora_rank", "lora_alpha", "lora_rslora", "lora_targets")


def _initial(
    model: Any,
    built: Built,
    fresh: Any,
    on_event: Callable[[dict[str, Any]], None],
    say: Callable[[str], None],
) -> Any:
    """Parameters of other runs, which members take in turn.

    Args:
      model: config.model: `init` names the runs, `head.init` says whose head stays.
      built: of this run.
      fresh: parameters drawn for this run; of them are the head, unless it is kept, and
        adapters that the other runs lack.
      on_event: told of damaged checkpoints.
      say: told whose adapters they are.

    Raises:
      ConfigError: another model; some of the runs have adapters and some have not.
    """
    runs = named_starts(model)
    wanted, drawn = named(built.shapes.params)[0], named(fresh)[0]
    keep_head = model.head.init == "keep"
    found = []
    for run in runs:
        if is_foreign(run):
            found.append(_foreign(run, model, built, say))
            continue
        arrays = _parameters(run, built, on_event, () if keep_head else HEAD)
        if not keep_head:
            arrays = {k: v for k, v in arrays.items() if k.split("/")[0] != "head"}
        found.append(arrays)
    share = built.members.share if built.members else "none"
    new_adapters = _new_adapters(runs, found, built, say)
    out = {}
    for path in wanted:
        each = [arrays.get(path) for arrays in found]
        is_new = path.split("/")[0] == "head" and not keep_head
        if is_new or ("/lora/" in path and new_adapters):
            out[path] = drawn[path]
        elif built.members and members.owns(path, share):
            n = built.members.count
            out[path] = jax.numpy.stack([each[i % len(each)] for i in range(n)])
        else:
            out[path] = each[0]
    shape = lambda x: {"shape": list(x.shape), "dtype": str(x.dtype)}
    saved = {k: shape(x) for k, x in out.items() if x is not None}
    saved |= {k: shape(x) for k, x in found[0].items() if k not in wanted}
    check_match(f"config.model.init = {model.init!r}", saved, wanted)
    return jax.tree.map(jax.device_put, nested(out), built.shardings.params)


def _new_adapters(
    runs: Sequence[str],
    found: Sequence[Mapping[str, jax.Array]],
    built: Built,
    say: Callable[[str], None],
) -> bool:
    """Whether this run's adapters are those drawn for it; says so."""
    rank = built.arch.lora_rank
    having = [
        run
        for run, arrays in zip(runs, found, strict=True)
        if any("/lora/" in path for path in arrays)
    ]
    if having and len(having) < len(runs):
        raise ConfigError(
            f"config.model.init: {having} have adapters and the other runs have not: "
            "merge them first, or name runs that are alike"
        )
    if rank:
        whose = f"kept from {', '.join(having)}" if having else "new"
        say(f"adapters of rank {rank} at {', '.join(built.arch.lora_targets)}: {whose}")
    return bool(rank) and not having


def _parameters(
    run: str,
    built: Built,
    on_event: Callable[[dict[str, Any]], None],
    new: Sequence[str],
) -> dict[str, jax.Array]:
    """Arrays of one run by name, those that are as wanted where they belong."""
    place = together.place(run)
    checkpoints = Checkpoints(place.folder)
    alone = built.members is None and place.member is None
    like = named(built.shapes.params)[0] if alone else {}
    params, meta, _ = checkpoints.restore_part("params", like, on_event=on_event)
    if not meta["arch"].get("lora_rank"):
        new = (*new, *LORA)
    check_model(checkpoints.directory, meta, built, new)
    if meta.get("members"):
        raise ConfigError(
            f"config.model.init = {run!r} is an ensemble: average it into one model "
            "first, with `rm-jax average`"
        )
    if place.member is not None:
        params = members.take(params, "none", place.member)
    return named(params)[0]


def _foreign(
    spec: str, model: Any, built: Built, say: Callable[[str], None]
) -> dict[str, jax.Array]:
    """Arrays of weights that others wrote, by our names; their head if it is kept."""
    source = open_source(spec)
    share = built.members.share if built.members else "none"
    home = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {}
    for path, x in named(built.shapes.params)[0].items():
        if built.members and members.owns(path, share):
            x = jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=home)
        like[path] = x
    arrays = {}
    if not all(map(pretrained.is_new, like)):  # else it is in the features
        arrays = pretrained.load(source, built.arch, like)
        count = sum(x.size for x in arrays.values())
        say(
            f"trunk: {source.config['model_type']}, {built.arch.n_layers} layers of "
            f"{built.arch.d_model}, {count / 1e6:.1f} M parameters from {source.where}"
        )
    if model.head.init != "keep":
        return arrays
    found = pretrained.head_of(source, built.arch.d_model)
    if found.name != model.head.name:
        raise ConfigError(
            f"config.model.head.init = 'keep': the head of {spec} is "
            f"{found.name!r}, config.model.head.name = {model.head.name!r}: set it to "
            "that, or head.init to 'zero'"
        )
    params = found.params
    if found.name == "attributes":
        attributes = built.arch.attributes
        params = pretrained.as_attributes(found, attributes, source.where)
    return arrays | {path: jax.numpy.asarray(x) for path, x in params.items()}


def check_start(config: Any) -> None:
    """Refuses a start that is not there, before anything is tokenised.

    Raises:
      ConfigError: naming the knob.
    """
    init = config.model.init
    runs = [] if init == "scratch" else named_starts(config.model)
    runs = [run for run in runs if not is_foreign(run)]
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
        _check_whole(key, run, config.model.features)


def _check_whole(key: str, run: str, features: int) -> None:
    """Refuses to start one of a head on features and a whole model from the other."""
    theirs = config_module.load(run).model.features
    if key == "train.resume" and theirs != features:
        raise ConfigError(
            f"config.train.resume = {run!r} has config.model.features = {theirs}, "
            f"this run {features}: set it to {theirs}"
        )
    if key == "model.init" and theirs:
        raise ConfigError(
            f"config.model.init = {run!r} holds a head alone, on features of another's "
            f"trunk (config.model.features = {theirs}): `rm-jax export` it and name "
            "the folder, 'hf:FOLDER', or `rm-jax average` several of its kind"
        )


def _check_weights(resume: str, built: Built) -> None:
    """Refuses to go on with a head on features of another trunk."""
    theirs = rundir.weights_sha256(resume)
    if theirs != built.weights["sha256"]:
        raise ConfigError(
            f"config.train.resume = {resume!r} has its head on features of weights "
            f"with sha256 {theirs[:12]}, config.model.init has "
            f"{built.weights['sha256'][:12]}: bring the old weights back"
        )
