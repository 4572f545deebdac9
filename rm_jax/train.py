"""THE loop. Read it top to bottom; every part it calls can be read on its own.

metrics = rm_jax.train(rm_jax.config.load("rm_jax:quickstart"), "runs/quickstart")
"""

import contextlib
import importlib.util
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

from rm_jax import cluster, rundir, store
from rm_jax import losses as losses_module
from rm_jax.build import (
    Built,
    build,
    check_model,
    check_same,
    describe,
    put_chunk,
    score_fn,
)
from rm_jax.checkpoint import Checkpoints, CheckpointWriter
from rm_jax.cluster import Stop
from rm_jax.config import ConfigError, parse_duration, validate
from rm_jax.data.contract import Encoder
from rm_jax.data.mixture import world_split
from rm_jax.evals import alarms, by_source, evaluate, pairs
from rm_jax.evals.run import evaluate_set, summary_lines
from rm_jax.evals.score import score_table
from rm_jax.progress import Progress
from rm_jax.state import TrainState, create
from rm_jax.step import run_step
from rm_jax.steplog import StepLog
from rm_jax.writer import RunWriter, to_json


class Stopped(Exception):
    """An evaluation was broken off by a signal; nothing of it was written."""


class Start(NamedTuple):
    """Where a run starts.

    Attributes:
      state: after `step` steps.
      step: steps done.
      evaluated: whether this step's evaluation is in the log already.
      window: numbers of steps that no line of the log has yet.
    """

    state: TrainState
    step: int
    evaluated: bool
    window: dict[str, list[float]]


class Outputs(NamedTuple):
    """Where a run leaves what it makes, and what tells it to stop."""

    checkpoints: CheckpointWriter
    writer: RunWriter
    progress: Progress
    stop: Stop

    def poll(self) -> None:
        """Raises Stopped when a signal came: long evaluations call it often."""
        if self.stop.asked():
            raise Stopped


def train(
    config: Any,
    workdir: str,
    *,
    losses: Mapping[str, Callable] = losses_module.LOSSES,
    regularizers: Mapping[str, Any] = losses_module.REGULARIZERS,
    stream: TextIO = sys.stderr,
) -> dict[str, dict[str, Any]] | None:
    """Trains the model of a config, or continues it; returns its final evaluation.

    SIGTERM, or Ctrl-C in a notebook, saves a checkpoint and returns None.

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
    if config.train.report and not importlib.util.find_spec("matplotlib"):
        raise ImportError(
            "config.train.report needs matplotlib: pip install 'rm_jax[report]', or "
            "set config.train.report = False"
        )
    continued = rundir.claim(workdir, config)
    if not Checkpoints(_checkpoint_dir(workdir)).steps():
        _check_start(config)
    first = cluster.first()
    say = lambda line: print(line, file=stream, flush=True) if first else None
    with contextlib.ExitStack() as stack:
        built = build(config, workdir, losses, regularizers, say)
        stop = stack.enter_context(_signals())  # until here Ctrl-C just ends it
        if continued:
            check_same(workdir, built)
        cluster.wait("checked")  # nothing is written before all have looked
        if first:
            describe(config, workdir, built)
        with cluster.in_turn("checkpoints"):  # the first clears what a kill left
            checkpoints = stack.enter_context(_checkpoints(config, workdir))
        events: list[dict[str, Any]] = []
        start = where_to_start(config, built, checkpoints, events.append)
        if start.step > built.total:
            raise ConfigError(
                f"the run has {start.step} steps already, config.train.duration = "
                f"{config.train.duration!r} is {built.total}: make it longer"
            )
        writer = RunWriter(
            workdir,
            step=start.step if continued else -1,
            evaluated=start.evaluated,
            tensorboard=config.train.tensorboard,
            active=first,
        )
        stack.enter_context(writer)
        progress = Progress(built.total, start.step, stream, active=first)
        out = Outputs(checkpoints, writer, stack.enter_context(progress), stop)
        if continued:
            progress.say(f"continuing {workdir} at step {start.step} of {built.total}")
            writer.write_event(start.step, "resumed")
        for event in events:
            progress.say(
                f"WARNING damaged checkpoint of step {event['step']} passed over: "
                f"{event['why']:.300}"
            )
            writer.write_event(start.step, event.pop("event"), **event)
        state, step = loop(config, built, start, out)
        if step < built.total or stop.reason:
            where = f"saved step {step}" if step else "nothing to save yet"
            progress.say(f"{stop.reason}: {where}; the same command continues")
            return None
        try:
            return finish(config, workdir, built, state, out)
        except Stopped:
            progress.say(f"{stop.reason}: trained; the same command evaluates")
            return None


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
    resume = config.train.resume and Checkpoints(_checkpoint_dir(config.train.resume))
    for place in (checkpoints, resume):
        if place and (place is resume or place.steps()):
            state, meta, step = place.restore(built.shapes, on_event=on_event)
            check_model(place.directory, meta, built)
            window = {k: [float(total), n] for k, (total, n) in meta["log"].items()}
            return Start(state, step, meta["evaluated"], window)
    state = create(built.new, built.shardings)
    if config.model.init != "scratch":
        other = Checkpoints(_checkpoint_dir(config.model.init))
        shapes = built.shapes.params
        params, meta, _ = other.restore_part("params", shapes, on_event=on_event)
        check_model(other.directory, meta, built)
        ema = None if state.ema is None else jax.tree.map(jax.numpy.copy, params)
        state = state.replace(params=params, ema=ema)
    return Start(state, 0, True, {})


def _check_start(config: Any) -> None:
    """Refuses a start that is not there, before anything is tokenised.

    Raises:
      ConfigError: naming the knob.
    """
    key, run = "train.resume", config.train.resume
    if not run:
        key, run = "model.init", config.model.init
    if run != "scratch" and not Checkpoints(_checkpoint_dir(run)).steps():
        raise ConfigError(
            f"config.{key} = {run!r}: {_checkpoint_dir(run)} has no checkpoint: "
            "give the --workdir of a run that saved one"
        )


def loop(
    config: Any, built: Built, start: Start, out: Outputs
) -> tuple[TrainState, int]:
    """Steps `start.step` ... `built.total`; the order inside a turn is fixed."""
    epoch = built.loaders["train"].order.epoch
    every = {
        name: max(1, parse_duration(text).steps(config.batch.examples, epoch))
        for name, text in config.train.items()
        if name.endswith("_every")
    }
    batches = built.loaders["train"].prefetch(
        start.step, built.total, config.batch.prefetch
    )
    log = StepLog(
        config,
        out.writer,
        out.progress,
        every["log_every"],
        start.window,
        built.total,
    )
    state, step, evaluated, saved = start.state, start.step, start.evaluated, True
    while True:
        last, stopping = step == built.total, out.stop.asked()
        due_eval = not evaluated and (last or step % every["eval_every"] == 0)
        due_save = not saved and (last or stopping or step % every["save_every"] == 0)
        # A save must find every line up to its step on disk, so that a restart, which
        # cuts the log back to the checkpoint, leaves the same bytes.
        if due_eval or due_save:
            log.flush()
        # 1. Evaluate, before anything moves on: it sees the state of exactly this step.
        metrics: dict[str, float] = {}
        paused = time.monotonic()
        if due_eval and not stopping:
            try:
                metrics = _evaluate(config, built, state, step, out)
                evaluated = True
            except Stopped:
                stopping = True
        # 2. Save, after the evaluation whose figures decide which checkpoint is best.
        due_save = due_save or (stopping and not saved)
        if due_save or (not saved and metrics and out.checkpoints.improves(metrics)):
            log.flush()  # again: Stopped may be what asks for it
            out.writer.flush()
            meta = _meta(built, evaluated or not due_eval, log.window)
            out.checkpoints.save(step, state, meta, metrics)
        if last or stopping:
            break
        log.clock += time.monotonic() - paused  # rates are those of steps
        # 3. Batch, after the save: what was saved never depends on a batch not used.
        batch = next(batches)
        # 4. Dispatch; this returns while the devices still compute.
        chunks = [put_chunk(built.mesh, *chunk) for chunk in batch.chunks]
        state, values = run_step(built.step, state, chunks, batch.weight)
        step, evaluated, saved = step + 1, False, False
        # 5. Log the step before, so that the host never waits for this one.
        log.add(step, values, batch)
    batches.close()
    if step > start.step:
        out.progress.say(log.layout(built.step.compiled()))
    return state, step


def _evaluate(
    config: Any, built: Built, state: TrainState, step: int, out: Outputs
) -> dict[str, float]:
    """Figures of every evaluation set, on its first `eval_examples` examples.

    Raises:
      Stopped: a signal came; nothing was written.
    """
    score = score_fn(built, state)
    tables = {
        name: score_table(score, loader, config.train.eval_examples, out.poll)
        for name, loader in built.loaders.items()
        if name != "train"
    }
    figures: dict[str, float] = {}
    for name, table in tables.items():
        values = evaluate(table, seed=config.eval_seed)
        figures |= {f"eval/{name}/{k}": v for k, v in values.items()}
        for source, own in by_source(table, seed=config.eval_seed).items():
            figures |= {f"eval/{name}/{source}/{k}": v for k, v in own.items()}
        scores = table.scores[~np.isnan(table.scores)]
        out.writer.add_histogram(step, f"eval/{name}/scores", scores)
        margins = pairs(table).delta
        out.writer.add_histogram(step, f"eval/{name}/margins", margins)
        for text in alarms(
            table,
            progress=step / built.total,
            human=world_split(built.data.specs[name]) is None,
            too_good=config.train.too_good,
        ):
            out.writer.alarm(step, name, text)
            out.progress.say(f"ALARM {name}: {text}")
        keys = ("accuracy", "length_baseline", "nll")
        shown = [f"{k} {values[k]:.3f}" for k in keys if k in values]
        out.progress.say(f"step {step} {name}: {', '.join(shown)}")
    if figures:
        out.writer.write_metrics(step, figures)
    return figures


def _meta(
    built: Built, evaluated: bool, window: Mapping[str, list[float]]
) -> dict[str, Any]:
    """What a checkpoint carries to be scored with on its own, and the unwritten log."""
    return {
        "contract": built.data.contract.to_json(),
        "arch": built.arch.to_json(),
        "evaluated": evaluated,
        "log": to_json(window),
    }


def finish(
    config: Any, workdir: str, built: Built, state: TrainState, out: Outputs
) -> dict[str, dict[str, Any]]:
    """Evaluates every set whole, writes predictions, evals.json and report.html.

    Raises:
      Stopped: a signal came; the same command evaluates again.
    """
    path = store.join(workdir, "evals.json")
    done = _evaluated(path, out.progress.say)
    cluster.wait("finish")  # all have read it before it is written
    if done.get("step") != built.total:
        score = score_fn(built, state)
        encoder = Encoder(built.data.contract, built.data.tokenizer)
        done = {"step": built.total, "sets": {}}
        for name, specs in built.data.specs.items():
            if name != "train":
                done["sets"][name] = evaluate_set(
                    name,
                    world_split(specs),
                    score,
                    built.loaders[name],
                    encoder,
                    dict(config.data.world.items()),
                    workdir if cluster.first() else None,
                    config.eval_seed,
                    too_good=config.train.too_good,
                    probes=not done["sets"],  # they are of the model, not of the set
                    poll=out.poll,
                )
        if cluster.first():
            store.write_sealed(path, to_json(done))
    else:
        out.progress.say(
            f"{workdir} is complete: {built.total} steps; nothing to train"
        )
    for line in summary_lines(done["sets"]):
        out.progress.say(line)
    if config.train.report and cluster.first():
        from rm_jax.report.html import write_report  # matplotlib, only when asked for

        out.writer.flush()
        out.progress.say(f"report: {write_report(workdir)}")
    return done["sets"]


def _evaluated(path: str, say: Callable[[str], None]) -> dict[str, Any]:
    """What evals.json holds; {} where there is none, or it is damaged."""
    try:
        return store.read_json(path) if store.exists(path) else {}
    except ValueError as error:
        say(f"WARNING {error}; evaluating again")
        return {}


def _checkpoint_dir(run: str) -> str:
    return store.join(run, "checkpoints")


def _checkpoints(config: Any, workdir: str) -> CheckpointWriter:
    return CheckpointWriter(
        _checkpoint_dir(workdir),
        keep_last=config.train.keep_last,
        keep_best=config.train.keep_best,
        best_metric=config.train.best_metric,
        best_mode=config.train.best_mode,
    )


@contextlib.contextmanager
def _signals() -> Iterator[Stop]:
    """What SIGTERM or Ctrl-C ask for; the loop looks at it every turn.

    A second Ctrl-C raises KeyboardInterrupt as usual.
    """
    stop = Stop()
    alone = jax.process_count() == 1  # else jax catches SIGTERM for all of them
    if not alone or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: Any) -> None:
        if stop.reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.reason = signal.Signals(number).name

    try:
        for number in before:
            signal.signal(number, handle)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Module(types.ModuleType):
    """Makes `rm_jax.train(config, workdir)` work: module and function share a name."""

    def __call__(self, *args, **kwargs):
        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Module
