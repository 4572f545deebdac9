"""THE loop. Read it top to bottom; every part it calls can be read on its own.

    metrics = train(rm_jax.config.load("rm_jax:quickstart"), "runs/quickstart")
"""

import contextlib
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

from rm_jax import losses as losses_module
from rm_jax import models, rundir, sharding, store
from rm_jax.checkpoint import Checkpoints, CheckpointWriter
from rm_jax.config import ConfigError, parse_duration, validate
from rm_jax.data import datasets, pack
from rm_jax.data.contract import Encoder
from rm_jax.data.loader import Loader, StepBatch
from rm_jax.data.tokenizers import save_tokenizer
from rm_jax.evals import evaluate
from rm_jax.evals.alarms import alarms
from rm_jax.evals.run import evaluate_set, summary_lines
from rm_jax.evals.score import ScoreFn, score_table
from rm_jax.models import ArchConfig
from rm_jax.optim import make_optimizer
from rm_jax.progress import Progress
from rm_jax.state import TrainState, create, new_state, plan
from rm_jax.step import Step, make_score, make_step, run_step
from rm_jax.types import Labels, PackedBatch
from rm_jax.writer import RunWriter, to_json


class TrainingError(RuntimeError):
    """Training cannot go on: names the step and why."""


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
      score: (params, batch, labels) -> scores, a program.
      total: steps of the whole run.
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
    total: int


def train(
    config: Any,
    workdir: str,
    *,
    losses: Mapping[str, Callable] = losses_module.LOSSES,
    regularizers: Mapping[str, Any] = losses_module.REGULARIZERS,
    stream: TextIO = sys.stderr,
) -> dict[str, dict[str, Any]]:
    """Trains the model of a config, or continues it; returns its final evaluation.

    Interrupting it (SIGTERM, or Ctrl-C in a notebook) saves a checkpoint and returns {}.

    Args:
      config: a ConfigDict, e.g. `rm_jax.config.load("rm_jax:quickstart")`.
      workdir: the run directory; an existing run is continued where it stopped.
      losses: name -> loss, to add one without a fork.
      regularizers: name -> Regularizer.
      stream: where progress goes.

    Raises:
      ConfigError: a config that cannot run, or another run in workdir.
      TrainingError: losses that are not finite, by config.train.on_nonfinite.
    """
    config = validate(config)
    continued = rundir.claim(workdir, config)
    with _stop_on_sigterm() as stop:
        built = build(config, workdir, losses, regularizers, _printer(stream))
        _describe(config, workdir, built)
        with _checkpoints(config, workdir) as checkpoints:
            events: list[dict[str, Any]] = []
            state, start = _start(config, built, checkpoints, events.append)
            with (
                RunWriter(
                    workdir,
                    step=start if continued else -1,
                    tensorboard=config.train.tensorboard,
                    active=jax.process_index() == 0,
                ) as writer,
                Progress(
                    built.total, start, stream, active=jax.process_index() == 0
                ) as progress,
            ):
                if continued:
                    progress.say(f"continuing {workdir} at step {start}/{built.total}")
                    writer.write_event(start, "resumed")
                for event in events:
                    progress.say(f"WARNING {event}")
                    fields = {k: v for k, v in event.items() if k != "event"}
                    writer.write_event(start, event["event"], **fields)
                state, step = loop(
                    config, built, state, start, checkpoints, writer, progress, stop
                )
                if step < built.total:
                    progress.say(f"stopped at step {step}; the same command continues")
                    return {}
                return finish(config, workdir, built, state, writer, progress)


def build(
    config: Any,
    workdir: str | None,
    losses: Mapping[str, Callable],
    regularizers: Mapping[str, Any],
    say: Callable[[str], None],
) -> Built:
    """Makes everything a run needs, cheapest checks first; compiles nothing."""
    objective = losses_module.choose(config.loss, losses, regularizers)
    mesh = sharding.make_mesh(config.mesh)
    shapes = pack.shapes(
        config.batch.row_lengths, config.batch.chunk_tokens, config.batch.tokens_per_slot
    )
    for shape in shapes:
        sharding.rows_divide(mesh, shape.rows, f"chunk of row length {shape.length}")
    kept = None if workdir is None else store.join(workdir, "tokenizer")
    data = datasets.open_data(config, kept, say)
    losses_module.check_labels(objective, set(data.train.meta["fields"]))
    loaders = {
        name: Loader(
            tokens,
            shapes,
            config.batch.examples,
            config.data_seed,
            config.batch.layout,
            rows=lambda shape: sharding.local_rows(mesh, shape.rows),
        )
        for name, tokens in {"train": data.train, **data.evals}.items()
    }
    encoder = Encoder(data.contract, data.tokenizer)
    arch = models.make_arch(config.model, encoder.vocab_size, config.contract.pooling)
    init, apply = models.functions(arch, objective.needs_token_logp)
    steps = lambda text: parse_duration(text).steps(
        config.batch.examples, len(data.train)
    )
    total = steps(config.train.duration)
    params = jax.eval_shape(init, jax.random.key(0))
    optim = dict(config.optim.items())
    optimizer = make_optimizer(
        params,
        n_pattern=arch.pattern,
        total_steps=total,
        warmup_steps=min(steps(optim.pop("warmup")), total),
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
    )
    score = make_score(apply, mesh, shardings.params)
    return Built(
        data, arch, mesh, loaders, new, abstract, shardings, step, score, total
    )


def loop(
    config: Any,
    built: Built,
    state: TrainState,
    start: int,
    checkpoints: CheckpointWriter,
    writer: RunWriter,
    progress: Progress,
    stop: list[str],
) -> tuple[TrainState, int]:
    """Steps `start` ... `total`; the order inside a turn is fixed."""
    steps = lambda text: max(
        1, parse_duration(text).steps(config.batch.examples, len(built.data.train))
    )
    log_every, eval_every, save_every = (
        steps(config.train[f"{name}_every"]) for name in ("log", "eval", "save")
    )
    batches = built.loaders["train"].prefetch(start, built.total, config.batch.prefetch)
    log = _Log(config, writer, progress, log_every)
    step = start
    while True:
        last = step == built.total
        new = step > start  # at `start` the checkpoint has both already
        # A save must find every line up to its step on disk, so that a restart, which
        # cuts the log back to the checkpoint, leaves the same bytes.
        if new and (last or stop or step % eval_every == 0 or step % save_every == 0):
            log.flush()
        # 1. Evaluate, before anything moves on: it sees the state of exactly this step.
        metrics: dict[str, float] = {}
        if new and (last or step % eval_every == 0):
            metrics = _evaluate(config, built, state, step, writer, progress, stop)
        # 2. Save, after the evaluation whose figures decide which checkpoint is best.
        if new and (last or stop or step % save_every == 0):
            writer.flush()
            checkpoints.save(step, state, _meta(built), metrics)
        if last or stop:
            break
        # 3. Batch, after the save: what was saved never depends on a batch not used.
        batch = next(batches)
        # 4. Dispatch; this returns while the devices still compute.
        chunks = [_put(built.mesh, *chunk) for chunk in batch.chunks]
        try:
            state, values = run_step(built.step, state, chunks, batch.weight)
        except KeyboardInterrupt:
            stop.append("interrupt")
            break
        step += 1
        # 5. Log the step before, so that the host never waits for this one.
        log.add(step, values, batch)
    batches.close()
    return state, step


class _Log:
    """Keeps the newest step's numbers on the device and writes those of the one before."""

    def __init__(self, config, writer: RunWriter, progress: Progress, every: int):
        self.config, self.writer, self.progress = config, writer, progress
        self.every, self.pending = every, None
        self.clock, self.pairs, self.tokens = time.monotonic(), 0, 0

    def add(self, step: int, values: Mapping[str, Any], batch: StepBatch) -> None:
        self.flush()
        self.pending = (step, values, batch)

    def flush(self) -> None:
        if self.pending is None:
            return
        (step, values, batch), self.pending = self.pending, None
        values = {k: float(v) for k, v in jax.device_get(values).items()}
        self.pairs += batch.examples
        self.tokens += batch.tokens
        if step % self.every == 0 or step == 1:
            self._write(step, values, batch)
        _refuse(self.config, step, values)

    def _write(self, step: int, values: dict[str, float], batch: StepBatch) -> None:
        self.writer.write_metrics(step, {f"train/{k}": v for k, v in values.items()})
        now = time.monotonic()
        seconds, self.clock = now - self.clock, now
        rate = self.pairs / seconds
        self.writer.write_timing(
            step,
            {
                "seconds": seconds,
                "examples_per_s": rate,
                "tokens_per_s": self.tokens / seconds,
                "padding": batch.padding,
                "chunks": len(batch.chunks),
                "tokens_per_response": batch.tokens / batch.responses,
            },
        )
        self.pairs = self.tokens = 0
        shown = {"loss": values["loss"], "accuracy": values["accuracy"], "pairs/s": rate}
        self.progress.update(step, shown)


def _refuse(config: Any, step: int, values: Mapping[str, float]) -> None:
    """Stops a run whose loss is not finite, by policy; the state is still sound."""
    limit = 1 if config.train.on_nonfinite == "stop" else config.train.max_skips
    if values["skips_in_row"] >= limit:
        raise TrainingError(
            f"step {step}: the loss is {values['loss']}, its gradient norm "
            f"{values['grad_norm']}; {values['skips_in_row']:.0f} steps in a row were "
            f"skipped (config.train.on_nonfinite = {config.train.on_nonfinite!r}, "
            f"max_skips = {config.train.max_skips}): lower the learning rate, or look at "
            f"the rows with `rm-jax inspect RUN --step {step - 1}`"
        )


def score_fn(built: Built, state: TrainState) -> ScoreFn:
    """The model of a state, averaged if the run averages, as a function on chunks."""
    params = state.params if state.ema is None else state.ema

    def score(batch, labels) -> np.ndarray:
        return np.asarray(built.score(params, *_put(built.mesh, batch, labels)))

    return score


def _put(mesh, batch: PackedBatch, labels: Labels) -> tuple[PackedBatch, Labels]:
    """A chunk on the devices: this host's rows of the batch, all of the labels."""
    rows = labels.ranks.shape[0] // batch.slots.shape[1]
    batch = PackedBatch(*(sharding.put_rows(mesh, x, rows) for x in batch))
    return batch, Labels(*(sharding.put_whole(mesh, x) for x in labels))


def _evaluate(config, built, state, step, writer, progress, stop) -> dict[str, float]:
    """Figures of every evaluation set, on its first `eval_examples` examples."""
    score = score_fn(built, state)
    out: dict[str, float] = {}
    for name, spec in built.data.specs.items():
        if name == "train":
            continue
        table = score_table(score, built.loaders[name], config.train.eval_examples)
        values = evaluate(table, seed=config.eval_seed)
        out |= {f"eval/{name}/{k}": v for k, v in values.items()}
        margins = table.scores[:, 0]
        writer.add_histogram(step, f"eval/{name}/scores", margins[np.isfinite(margins)])
        share = {"progress": step / built.total, "too_good": config.train.too_good}
        for text in alarms(table, human=not spec.startswith("world:"), **share):
            writer.alarm(step, name, text)
            progress.say(f"ALARM {name}: {text}")
        shown = {k: values[k] for k in ("accuracy", "nll", "ece") if k in values}
        progress.say(
            f"step {step} {name}: "
            + ", ".join(f"{k} {v:.3f}" for k, v in shown.items())
        )
    if out:
        writer.write_metrics(step, out)
    return out


def _start(config, built, checkpoints, on_event) -> tuple[TrainState, int]:
    """Where a run starts: its own directory, config.train.resume, model.init, scratch."""
    if checkpoints.steps():
        state, _, step = checkpoints.restore(built.shapes, on_event=on_event)
        return state, step
    if config.train.resume:
        other = Checkpoints(store.join(config.train.resume, "checkpoints"))
        state, _, step = other.restore(built.shapes, on_event=on_event)
        return state, step
    state = create(built.new, built.shardings)
    if config.model.init == "scratch":
        return state, 0
    other = Checkpoints(store.join(config.model.init, "checkpoints"))
    params, _, _ = other.restore_part("params", built.shapes.params, on_event=on_event)
    ema = None if state.ema is None else jax.tree.map(np.copy, params)
    return state.replace(params=params, ema=ema), 0


def _meta(built: Built) -> dict[str, Any]:
    """What a checkpoint must carry to be scored with on its own."""
    return {"contract": built.data.contract.to_json(), "arch": built.arch.to_json()}


def _describe(config, workdir: str, built: Built) -> None:
    """Writes what the run is; only now, when all of it is known to be sound."""
    if jax.process_index():
        return
    store.makedirs(workdir)
    save_tokenizer(built.data.tokenizer, store.join(workdir, "tokenizer"))
    store.write_text(
        store.join(workdir, "contract.json"), built.data.contract.to_json()
    )
    store.write_json(store.join(workdir, "arch.json"), built.arch.to_json())
    sets = {"train": built.data.train, **built.data.evals}
    sets = {n: {**s.meta, "cache": s.directory.name} for n, s in sets.items()}
    more = {
        "mesh": dict(built.mesh.shape),
        "specs": built.data.specs,
        "tokenizer_sha": built.data.contract.tokenizer_sha,
        "parameters": sum(x.size for x in jax.tree.leaves(built.shapes.params)),
        "steps": built.total,
    }
    path = store.join(workdir, "run.json")
    store.write_json(path, rundir.provenance(config, sets, more))
    store.write_text(store.join(workdir, "config.json"), rundir.config_text(config))


def finish(config, workdir, built, state, writer, progress) -> dict[str, dict]:
    """Evaluates every set whole, writes predictions, evals.json and report.html."""
    path = store.join(workdir, "evals.json")
    done = store.read_json(path) if store.exists(path) else {}
    if done.get("step") != built.total:
        score = score_fn(built, state)
        encoder = Encoder(built.data.contract, built.data.tokenizer)
        done = {"step": built.total, "sets": {}}
        for name, spec in built.data.specs.items():
            if name != "train":
                done["sets"][name] = evaluate_set(
                    name,
                    spec,
                    score,
                    built.loaders[name],
                    encoder,
                    dict(config.data.world.items()),
                    workdir,
                    config.eval_seed,
                )
        store.write_json(path, to_json(done))
    else:
        progress.say(f"{workdir} is complete: {built.total} steps; nothing to train")
    for line in summary_lines(done["sets"]):
        progress.say(line)
    if config.train.report:
        from rm_jax.report.html import write_report  # matplotlib, only when asked for

        writer.flush()
        progress.say(f"report: {write_report(workdir)}")
    return done["sets"]


def _checkpoints(config, workdir: str) -> CheckpointWriter:
    return CheckpointWriter(
        store.join(workdir, "checkpoints"),
        keep_last=config.train.keep_last,
        keep_best=config.train.keep_best,
        best_metric=config.train.best_metric,
        best_mode=config.train.best_mode,
    )


def _printer(stream: TextIO) -> Callable[[str], None]:
    if jax.process_index():
        return lambda line: None
    return lambda line: print(line, file=stream, flush=True)


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[list[str]]:
    """A list that a SIGTERM makes true; the loop looks at it every turn."""
    stop: list[str] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: stop.append("SIGTERM"))
    except ValueError:  # not the main thread: no handler can be set there
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


class _Module(types.ModuleType):
    """Makes `rm_jax.train(config, workdir)` work: module and function share a name."""

    def __call__(self, *args, **kwargs):
        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Module
