"""Everything a run needs before its first step, the cheapest checks first."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rm_jax import (
    cluster,
    ensemble,
    features,
    models,
    plugins,
    provenance,
    rundir,
    schemas,
    sharding,
    store,
)
from rm_jax import losses as losses_module
from rm_jax.config import ConfigError, parse_duration
from rm_jax.data import datasets, pack
from rm_jax.data.contract import Contract, Encoder
from rm_jax.data.loader import Loader, StepBatch
from rm_jax.data.relabel import of_config
from rm_jax.data.tokenizers import save_tokenizer, tokenizer_commit
from rm_jax.data.training import Training
from rm_jax.data.vectors import FeatureLoader
from rm_jax.evals import reducers
from rm_jax.evals.score import Scored, ScoreFn
from rm_jax.flops import step_flops
from rm_jax.members import Members
from rm_jax.models import ArchConfig, given
from rm_jax.models.arch import from_json
from rm_jax.optim import make_optimizer
from rm_jax.plugins import Plugin
from rm_jax.state import TrainState, new_params, new_state, plan
from rm_jax.step import Step, make_pick, make_score, make_step
from rm_jax.stepscores import make_step_scores
from rm_jax.types import Labels, Rows
from rm_jax.weights.source import open_source


class Built(NamedTuple):
    """Everything made before the first step; nothing here is compiled yet.

    Attributes:
      data: the sets.
      arch: of the model.
      mesh: the devices.
      members: of the program; None is a single model.
      together: whether the members are runs of their own, not an ensemble.
      training: batches of training.
      loaders: name -> Loader of every evaluation set.
      new: () -> TrainState before step 0, to be traced.
      shapes: what a checkpoint is restored into.
      shardings: where each array lives.
      step: the programs of a training step.
      score: (params, batch, labels) -> scores, or Scored, a program; of an ensemble
        [m e k].
      pick: (params, i) -> parameters of run i, a program.
      flops: model FLOPs of a training step.
      weights: of others that it starts from, or that its features were made with:
        {"where", "sha256"}, a list where config.model.init is one, None without.
      total: steps of the whole run.
      plugins: name -> code from outside.
    """

    data: datasets.Data
    arch: ArchConfig
    mesh: jax.sharding.Mesh
    members: Members | None
    together: bool
    training: Training
    loaders: dict[str, Loader]
    new: Callable[[], TrainState]
    shapes: TrainState
    shardings: TrainState
    step: Step
    score: Callable[..., Any]
    pick: Callable[[Any, int], Any]
    flops: Callable[[StepBatch], float]
    weights: dict[str, str] | list[dict[str, str]] | None
    total: int
    plugins: dict[str, Plugin]


def build(
    config: Any,
    workdir: str | None,
    losses: Mapping[str, Callable],
    regularizers: Mapping[str, Any],
    say: Callable[[str], None],
    units: Sequence[Any] = (),
) -> Built:
    """Makes everything a run needs, cheapest checks first; compiles nothing.

    Args:
      config: of the run.
      workdir: its directory; None has none.
      losses: name -> loss.
      regularizers: name -> Regularizer.
      say: told what a user should know.
      units: configs of runs that train together, `config` the first; () for one run.
    """
    found = plugins.find(config, losses, regularizers, workdir or "")
    each = tuple(units) if len(units) > 1 else ensemble.configs(config)
    members = _members(config, each, together=len(units) > 1)
    _check_processes(config, members)
    objectives = [losses_module.choose(c.loss, losses, regularizers) for c in each]
    objective = objectives[0].shared(objectives[1:])
    reducer = reducers.parse(config.members.reducer).reducer
    level = reducer.needs_centred and not losses_module.centred(config.loss)
    if config.members.count > 1 and level:
        say(
            f"WARNING config.members.reducer = {config.members.reducer!r} compares the "
            "levels of members, which a loss on pairs leaves open: add "
            "config.loss.regularizers.center"
        )
    info = rundir.run_json(workdir) if workdir is not None else {}
    plugins.check_same(workdir, info, found)
    mesh = sharding.make_mesh(config.mesh)
    shapes = pack.shapes(
        config.batch.row_lengths,
        config.batch.chunk_tokens,
        config.batch.tokens_per_slot,
    )
    for shape in shapes:
        sharding.rows_divide(mesh, shape.rows, f"chunk of row length {shape.length}")
    # The run's own tokenizer; run.json is written after it.
    kept = store.join(workdir, "tokenizer") if info else None
    head = _check_head(config, objective)
    with cluster.in_turn("data"):  # the first builds the caches, the others find them
        data = datasets.open_data(config, kept, say)
    for line in losses_module.check_labels(objective, datasets.label_counts(data)):
        say(f"WARNING {line}")
    losses_module.check_values(objective, functools.partial(datasets.first_not, data))
    strengths = config.data.denoise.scores and config.data.denoise.rule == "strength"
    if strengths and "strength" not in objective.needs:
        say(
            f"WARNING config.loss.name = {config.loss.name!r} does not read what "
            "config.data.denoise.rule = 'strength' gives: adaptive_margin does"
        )
    encoder = Encoder(data.contract, data.tokenizer)
    arch = models.make_arch(
        config.model,
        encoder.vocab_size,
        config.contract.pooling,
        data.train.meta["attributes"],
    )
    _check_arch(config, arch)
    if 0 < (n := given.context(config.model)) < config.contract.max_length:
        say(
            f"WARNING config.contract.max_length = {config.contract.max_length}, but "
            f"config.model.init = {config.model.init!r} was made for {n} tokens "
            "(max_position_embeddings): lower it to that"
        )
    sets = {"train": data.train, **data.evals}
    datasets.check_rows(sets, head.rivals, head.of_logp)
    of_steps = bool(head.steps)
    lay = functools.partial(
        Loader,
        shapes=shapes,
        examples=config.batch.examples,
        layout=config.batch.layout,
        rows=lambda shape: sharding.local_rows(mesh, shape.rows),
        steps=of_steps,
    )
    trunk = features.Trunk(config, arch, mesh, say) if config.model.features else None
    if trunk is not None:
        lay = functools.partial(
            FeatureLoader,
            features=trunk.features,
            examples=config.batch.examples,
            multiple=mesh.shape["data"] * mesh.shape["fsdp"],
            steps=of_steps,
        )
    training = _training(each, members, data, lay, say)
    loaders = {}
    for name, tokens in data.evals.items():
        room = {}
        if trunk is None:
            tell = lambda line, name=name: say(f"{name}: {line}")
            shared = config.batch.layout == "packed"
            room["shapes"] = pack.roomy(tokens, shapes, shared, of_steps, tell)
        loaders[name] = lay(tokens, **room)
    outputs = models.heads.shapes(arch)
    attributes = len(data.train.meta["attributes"])
    losses_module.check_terms(objective, attributes, outputs)
    init, apply = models.functions(arch, objective.needs_token_logp)
    elsewhere = {}
    if trunk is not None:
        elsewhere = jax.eval_shape(init, jax.random.key(0))
        init, apply = models.head_functions(arch)
    steps = lambda text: parse_duration(text).steps(
        config.batch.examples, training.epoch
    )
    total = steps(config.train.duration)
    params = jax.eval_shape(init, jax.random.key(0))
    losses_module.check_parameter_terms(objective, params)
    warmup = steps(config.optim.warmup)
    if warmup > total:
        say(
            f"WARNING config.optim.warmup = {config.optim.warmup!r} is longer than the "
            f"run: cut to its {total} steps, so the learning rate peaks at the last"
        )
    optimizers = [
        make_optimizer(
            params,
            n_pattern=arch.pattern,
            total_steps=total,
            warmup_steps=min(warmup, total),
            elsewhere={n: x for n, x in elsewhere.items() if n not in params},
            **_optim(c, arch, params),
        )
        for c in each
    ]
    optimizer = optimizers[0]
    apart = members is not None and members.independent
    numbers = lambda values: ensemble.stacked(values) if apart else values[0]

    def new() -> TrainState:
        return new_state(
            new_params(init, [c.init_seed for c in each], members),
            optimizer,
            numbers([o.hparams for o in objectives]),
            ema=config.train.ema > 0,
            spike_window=config.train.spike_window,
            dropout_seed=numbers([np.int32(c.dropout_seed) for c in each]),
            optim_hparams=numbers([o.hparams for o in optimizers]),
            members=members,
        )

    abstract, shardings = plan(new, mesh, members)
    step = make_step(
        apply,
        objective,
        optimizer,
        mesh,
        shardings,
        ema_decay=config.train.ema,
        spike_sigma=config.train.spike_sigma,
        sources=data.train.sources,
        example_losses=config.train.example_losses,
        members=members,
    )
    together = len(units) > 1
    pick, one = make_pick(shardings.params, abstract.params, mesh, members, together)
    make = make_step_scores if of_steps else make_score
    score = make(apply, mesh, one, None if together else members)
    token_logp = objective.needs_token_logp or head.of_logp
    work = functools.partial(_flops, arch, members, token_logp)
    if trunk is not None:  # last: it may take hours
        for loader in (*training.loaders, *loaders.values()):
            loader.compute()
        trunk.release()  # the head has the devices for itself
    return Built(
        data,
        arch,
        mesh,
        members,
        together,
        training,
        loaders,
        new,
        abstract,
        shardings,
        step,
        score,
        pick,
        work,
        _weights(config),
        total,
        found,
    )


def _weights(config: Any) -> dict[str, str] | list[dict[str, str]] | None:
    """What identifies the weights of others that config.model.init names.

    Reads all of their files, once in a process, also where a checkpoint is there to go
    on from: a run whose start nobody can tell any more cannot be repeated.
    """
    init = config.model.init
    sources = map(open_source, filter(given.is_foreign, given.named(config.model)))
    found = [{"where": s.where, "sha256": s.sha256()} for s in sources]
    return (found[0] if isinstance(init, str) else found) if found else None


def _check_processes(config: Any, members: Members | None) -> None:
    """Refuses members each with a trunk of others in several processes.

    Raises:
      ConfigError: they are; each is read whole onto one device before they are joined.
    """
    each = members is not None and members.share == "none"
    foreign = any(map(given.is_foreign, given.named(config.model)))
    if each and foreign and jax.process_count() > 1:
        raise ConfigError(
            f"{members.count} members that start from weights of others, "
            f"config.model.init = {config.model.init!r}, with {jax.process_count()} "
            "processes: start one process, or set config.members.share = 'adapters'"
        )


def _check_arch(config: Any, arch: ArchConfig) -> None:
    """Refuses what a trunk that is given cannot have.

    Raises:
      ConfigError: naming the knob.
    """
    if arch.attention == "full" and config.batch.layout != "padded":
        raise ConfigError(
            "the trunk of config.model.init is an encoder, which reads a whole row at "
            "once: set config.batch.layout = 'padded'"
        )
    longest = config.contract.max_length
    if arch.positions == "learned" and longest > arch.position_rows:
        raise ConfigError(
            f"config.contract.max_length = {longest}, but the model has positions for "
            f"{arch.position_rows} tokens: lower it to that"
        )


def _check_head(config: Any, objective: losses_module.Objective) -> models.heads.Head:
    """The head of a config, if the objective can be had with it; needs no data.

    Raises:
      ValueError: what is unknown, or what the objective and the model do not agree in.
    """
    models.check(config.model, config.contract.pooling)
    name = config.model.head.name
    head = models.heads.find(name)
    known = {name: head.outputs.keys() for name, head in models.heads.HEADS.items()}
    losses_module.check_outputs(objective, name, head.outputs.keys(), known)
    if objective.needs_token_logp and config.model.lm_head == "none":
        raise ValueError(
            f"{objective.needs['token_logp']} needs log p(token), but "
            "config.model.lm_head is 'none': set it to 'tied' or 'untied'"
        )
    if head.intercept and not losses_module.centred(config.loss):
        raise ValueError(
            f"config.model.head.name = {name!r} has an intercept, of which "
            f"config.loss.name = {config.loss.name!r} knows nothing, because it sees "
            "differences only: choose the head 'linear', or add "
            "config.loss.regularizers.center"
        )
    return head


def _optim(config: Any, arch: ArchConfig, params: Any) -> dict[str, Any]:
    """config.optim, with everything frozen that adapters leave frozen."""
    values = {name: value for name, value in config.optim.items() if name != "warmup"}
    if arch.lora_rank:
        rules = values["lr_multipliers"]
        models.lora.check_multipliers(rules, params, arch)
        values["lr_multipliers"] = ((models.lora.FROZEN, 0.0), *rules)
    return values


def _members(config: Any, each: Sequence[Any], together: bool) -> Members | None:
    share = "none" if together else config.members.share
    at_once = config.members.at_once
    if len(each) == 1:
        return None
    own_batches = len({c.data_seed for c in each}) > 1
    return Members(len(each), share, at_once, own_batches, together)


def _flops(
    arch: ArchConfig, members: Members | None, token_logp: bool, batch: StepBatch
) -> float:
    """Model FLOPs of a step of all members; heads on one trunk count as one."""
    if members is None or not members.own_batches:
        n = members.count if members and members.independent else 1
        return n * step_flops(arch, batch, token_logp)
    own = lambda rows, i: type(rows)(*(x[i] for x in rows))
    return sum(
        step_flops(
            arch,
            batch._replace(chunks=tuple((own(r, i), l) for r, l in batch.chunks)),
            token_logp,
        )
        for i in range(members.count)
    )


def _training(
    each: Sequence[Any],
    members: Members | None,
    data: datasets.Data,
    lay: Callable[..., Loader],
    say: Callable[[str], None],
) -> Training:
    """Batches in the order of the run, or of each member."""
    config = each[0]
    orders = [
        datasets.train_order(config.data, data.train, c.data_seed)
        for c in (each if members and members.own_batches else each[:1])
    ]
    if data.train.sources:
        say(datasets.epoch_line(config.data, orders[0]))
    if config.train.overfit_one_batch:
        orders = [order.only_first(config.batch.examples) for order in orders]
    loaders = [lay(data.train, order=order) for order in orders]
    hows = [of_config(c.data) for c in each]
    return Training(loaders, hows, members is not None)


def score_fn(built: Built, state: TrainState, run: int = 0) -> ScoreFn:
    """The model of a state, averaged if the run averages, as a function on chunks.

    Args:
      built: of the program.
      state: of it.
      run: which one of the runs that train together.
    """
    params = built.pick(state.params if state.ema is None else state.ema, run)

    def score(batch, labels) -> np.ndarray | Scored:
        found = built.score(params, *put_chunk(built.mesh, batch, labels))
        return jax.tree.map(np.asarray, found)

    return score


def put_chunk(mesh, batch: Rows, labels: Labels) -> tuple[Rows, Labels]:
    """A chunk on the devices: this host's rows of the batch, all of the labels."""
    own = batch.slot_ids.ndim == 4
    rows = labels.ranks.shape[-2] // batch.examples_per_row
    batch = type(batch)(*(sharding.put_rows(mesh, x, rows, own) for x in batch))
    return batch, Labels(*(sharding.put_whole(mesh, x) for x in labels))


def describe(config: Any, workdir: str, built: Built) -> None:
    """Writes what the run is; called when all of it is known to be sound.

    config.json comes first: it is what makes the directory this run's, whatever
    happens next.
    """
    at = lambda name: store.join(workdir, name)
    store.makedirs(workdir)
    store.write_text(at("config.json"), rundir.config_text(config))
    if not store.exists(at("run.json")):  # it is written last: all above it is whole
        if store.exists(at("tokenizer")):
            store.remove_tree(at("tokenizer"))
        with store.new_folder(at("tokenizer")) as folder:
            save_tokenizer(built.data.tokenizer, folder)
    plugins.copy(workdir, built.plugins)
    store.write_sealed(at("contract.json"), json.loads(built.data.contract.to_json()))
    store.write_sealed(at("arch.json"), built.arch.to_json())
    sets = {"train": built.data.train, **built.data.evals}
    more = {
        "data": provenance.sets_record(sets),
        "specs": built.data.specs,
        "contamination": built.data.contamination,
        "contract_sha256": built.data.contract.sha(),
        "tokenizer_sha": built.data.contract.tokenizer_sha,
        "tokenizer_commit": tokenizer_commit(built.data.tokenizer),
        "plugins": {name: p.to_json() for name, p in built.plugins.items()},
        "parameters": sum(x.size for x in jax.tree.leaves(built.shapes.params)),
        "steps": built.total,
        "members": built.members and built.members._asdict(),
        "weights": built.weights,
    }
    sessions = rundir.run_json(workdir).get("sessions", [])
    text = rundir.config_text(config)
    record = provenance.run_record(config, text, sessions, more)
    store.write_sealed(at("run.json"), record)


def identity(configs: Sequence[Any], built: Built) -> dict[str, str]:
    """What must be the same in all processes of a program."""
    sets = {"train": built.data.train, **built.data.evals}
    prints = {name: provenance.fingerprints(data) for name, data in sets.items()}
    return {
        "config": "".join(map(rundir.config_text, configs)),
        "code of rm_jax": provenance.package_sha256(),
        "data": json.dumps(prints, sort_keys=True, default=str),
        "contract": built.data.contract.sha(),
        "content of config.model.init": json.dumps(built.weights),
    }


def begin_session(workdir: str, built: Built, step: int) -> None:
    """Notes in run.json that this process goes on from `step`."""
    more = {"mesh": dict(built.mesh.shape)}
    provenance.add_session(store.join(workdir, "run.json"), step, more)


def check_same(workdir: str, built: Built) -> None:
    """Refuses to continue a run whose data or contract are no longer what they were.

    Raises:
      ConfigError: naming the set or the contract; nothing was written.
    """
    info = rundir.run_json(workdir)
    if not info:  # killed before it was written: nothing was trained
        return
    sets = {"train": built.data.train, **built.data.evals}
    changed = [
        f"content of {name!r}"
        for name, data in sets.items()
        if info["data"][name]["fingerprints"] != provenance.fingerprints(data)
    ]
    if info["contract_sha256"] != built.data.contract.sha():
        changed.append("contract")
    if info.get("weights") != built.weights:
        changed.append("content of config.model.init")
    if changed:
        raise ConfigError(
            f"{workdir} was made with another {', another '.join(changed)} (a file, a "
            "hub revision or a template has changed): choose another --workdir, or "
            "bring the old one back"
        )


def check_model(
    where: str, meta: Mapping[str, Any], built: Built, new: Sequence[str] = ()
) -> None:
    """Refuses parameters of another architecture or of another tokenizer.

    Args:
      where: what holds them.
      meta: of their checkpoint.
      built: of this run.
      new: fields of the arch that may differ, since what they are about is made anew.

    Raises:
      ConfigError: naming the fields that differ.
    """
    own, other = built.arch.to_json(), from_json(meta["arch"]).to_json()
    fresh = (
        "dropout", "lora_dropout", "remat", "dtype", "head_init", "attention_block",
        schemas.KEY,
    )  # fmt: skip
    changed = [
        f"{k}: {other.get(k)!r} -> {own[k]!r}"
        for k in own
        if own[k] != other.get(k) and k not in (*fresh, *new)
    ]
    contract = Contract.from_json(meta["contract"])
    if contract.tokenizer_sha != built.data.contract.tokenizer_sha:
        changed.append("another tokenizer")
    if changed:
        raise ConfigError(
            f"{where} holds another model: {'; '.join(changed)}: use its config, or "
            "start from scratch"
        )
