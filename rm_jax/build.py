"""Everything a run needs before its first step, the cheapest checks first."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rm_jax import (
    cluster,
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
from rm_jax.data.tokenizers import save_tokenizer, tokenizer_commit
from rm_jax.evals.score import Scored, ScoreFn
from rm_jax.flops import step_flops
from rm_jax.models import ArchConfig
from rm_jax.models.arch import from_json
from rm_jax.optim import make_optimizer
from rm_jax.plugins import Plugin
from rm_jax.state import TrainState, new_state, plan
from rm_jax.step import Step, make_score, make_step
from rm_jax.stepscores import make_step_scores
from rm_jax.types import Labels, PackedBatch


class Built(NamedTuple):
    """Everything made before the first step; nothing here is compiled yet.

    Attributes:
      data: the sets.
      arch: of the model.
      mesh: the devices.
      loaders: name -> Loader; "train" is the training set.
      new: () -> TrainState before step 0, to be traced.
      shapes: what a checkpoint is restored into.
      shardings: where each array lives.
      step: the programs of a training step.
      score: (params, batch, labels) -> scores, or Scored, a program.
      flops: model FLOPs of a training step.
      total: steps of the whole run.
      plugins: name -> code from outside.
    """

    data: datasets.Data
    arch: ArchConfig
    mesh: jax.sharding.Mesh
    loaders: dict[str, Loader]
    new: Callable[[], TrainState]
    shapes: TrainState
    shardings: TrainState
    step: Step
    score: Callable[..., Any]
    flops: Callable[[StepBatch], float]
    total: int
    plugins: dict[str, Plugin]


def build(
    config: Any,
    workdir: str | None,
    losses: Mapping[str, Callable],
    regularizers: Mapping[str, Any],
    say: Callable[[str], None],
) -> Built:
    """Makes everything a run needs, cheapest checks first; compiles nothing."""
    found = plugins.find(config, losses, regularizers, workdir or "")
    objective = losses_module.choose(config.loss, losses, regularizers)
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
    with cluster.in_turn("data"):  # the first builds the caches, the others find them
        data = datasets.open_data(config, kept, say)
    for line in losses_module.check_labels(objective, datasets.label_counts(data)):
        say(f"WARNING {line}")
    order = datasets.train_order(config.data, data.train, config.data_seed)
    if data.train.sources:
        say(datasets.epoch_line(config.data, order))
    if config.train.overfit_one_batch:
        order = order.only_first(config.batch.examples)
    encoder = Encoder(data.contract, data.tokenizer)
    arch = models.make_arch(
        config.model,
        encoder.vocab_size,
        config.contract.pooling,
        data.train.meta["attributes"],
    )
    of_steps = bool(models.heads.find(arch.head).steps)
    loaders = {
        name: Loader(
            tokens,
            shapes,
            config.batch.examples,
            order if name == "train" else None,
            config.batch.layout,
            rows=lambda shape: sharding.local_rows(mesh, shape.rows),
            steps=of_steps,
        )
        for name, tokens in {"train": data.train, **data.evals}.items()
    }
    outputs = models.heads.shapes(arch)
    known = {name: head.outputs.keys() for name, head in models.heads.HEADS.items()}
    losses_module.check_outputs(objective, arch.head, outputs.keys(), known)
    attributes = len(data.train.meta["attributes"])
    losses_module.check_terms(objective, attributes, outputs)
    init, apply = models.functions(arch, objective.needs_token_logp)
    steps = lambda text: parse_duration(text).steps(config.batch.examples, order.epoch)
    total = steps(config.train.duration)
    params = jax.eval_shape(init, jax.random.key(0))
    optim = dict(config.optim.items())
    warmup = steps(optim.pop("warmup"))
    if warmup > total:
        say(
            f"WARNING config.optim.warmup = {config.optim.warmup!r} is longer than the "
            f"run: cut to its {total} steps, so the learning rate peaks at the last"
        )
    optimizer = make_optimizer(
        params,
        n_pattern=arch.pattern,
        total_steps=total,
        warmup_steps=min(warmup, total),
        **optim,
    )

    def new() -> TrainState:
        return new_state(
            init(jax.random.key(config.init_seed)),
            optimizer,
            objective.hparams,
            ema=config.train.ema > 0,
            spike_window=config.train.spike_window,
        )

    abstract, shardings = plan(new, mesh)
    step = make_step(
        apply,
        objective,
        optimizer,
        mesh,
        shardings,
        dropout_seed=config.dropout_seed,
        ema_decay=config.train.ema,
        spike_sigma=config.train.spike_sigma,
        sources=data.train.sources,
        example_losses=config.train.example_losses,
    )
    make = make_step_scores if of_steps else make_score
    score = make(apply, mesh, shardings.params)
    work = lambda batch: step_flops(arch, batch, objective.needs_token_logp)
    return Built(
        data,
        arch,
        mesh,
        loaders,
        new,
        abstract,
        shardings,
        step,
        score,
        work,
        total,
        found,
    )


def score_fn(built: Built, state: TrainState) -> ScoreFn:
    """The model of a state, averaged if the run averages, as a function on chunks."""
    params = state.params if state.ema is None else state.ema

    def score(batch, labels) -> np.ndarray | Scored:
        found = built.score(params, *put_chunk(built.mesh, batch, labels))
        return jax.tree.map(np.asarray, found)

    return score


def put_chunk(mesh, batch: PackedBatch, labels: Labels) -> tuple[PackedBatch, Labels]:
    """A chunk on the devices: this host's rows of the batch, all of the labels."""
    rows = labels.ranks.shape[0] // batch.slots.shape[1]
    batch = PackedBatch(*(sharding.put_rows(mesh, x, rows) for x in batch))
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
    }
    sessions = rundir.run_json(workdir).get("sessions", [])
    text = rundir.config_text(config)
    record = provenance.run_record(config, text, sessions, more)
    store.write_sealed(at("run.json"), record)


def identity(config: Any, built: Built) -> dict[str, str]:
    """What must be the same in all processes of a run."""
    sets = {"train": built.data.train, **built.data.evals}
    prints = {name: provenance.fingerprints(data) for name, data in sets.items()}
    return {
        "config": rundir.config_text(config),
        "code of rm_jax": provenance.package_sha256(),
        "data": json.dumps(prints, sort_keys=True, default=str),
        "contract": built.data.contract.sha(),
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
    if changed:
        raise ConfigError(
            f"{workdir} was made with another {', another '.join(changed)} (a file, a "
            "hub revision or a template has changed): choose another --workdir, or "
            "bring the old one back"
        )


def check_model(where: str, meta: Mapping[str, Any], built: Built) -> None:
    """Refuses parameters of another architecture or of another tokenizer.

    Raises:
      ConfigError: naming the fields that differ.
    """
    own, other = built.arch.to_json(), from_json(meta["arch"]).to_json()
    fresh = ("dropout", "remat", "dtype", "head_init", "attention_block", schemas.KEY)
    changed = [
        f"{k}: {other.get(k)!r} -> {own[k]!r}"
        for k in own
        if own[k] != other.get(k) and k not in fresh
    ]
    contract = Contract.from_json(meta["contract"])
    if contract.tokenizer_sha != built.data.contract.tokenizer_sha:
        changed.append("another tokenizer")
    if changed:
        raise ConfigError(
            f"{where} holds another model: {'; '.join(changed)}: use its config, or "
            "start from scratch"
        )
