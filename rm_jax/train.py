"""THE loop. Read it top to bottom; every part it calls can be read on its own.

metrics = rm_jax.train(rm_jax.config.load("rm_jax:quickstart"), "runs/quickstart")
"""

import contextlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TextIO

import numpy as np

from rm_jax import cluster, compiles, rundir, schemas, store
from rm_jax import losses as losses_module
from rm_jax.build import (
    Built,
    begin_session,
    build,
    check_same,
    describe,
    identity,
    put_chunk,
    score_fn,
)
from rm_jax.checkpoint import Checkpoints, CheckpointWriter
from rm_jax.config import ConfigError, parse_duration, validate
from rm_jax.data.contract import Encoder
from rm_jax.data.mixture import world_split
from rm_jax.evals import alarms, by_source, evaluate, pairs
from rm_jax.evals.run import evaluate_set, summary_lines
from rm_jax.evals.score import score_table
from rm_jax.example_losses import ExampleLosses
from rm_jax.goodput import Ledger, summary
from rm_jax.lines import read_lines
from rm_jax.profiler import Profiler
from rm_jax.progress import Progress
from rm_jax.sinks import SINKS, check_installed
from rm_jax.start import Start, check_start, folder_of, where_to_start
from rm_jax.state import TrainState
from rm_jax.step import run_step
from rm_jax.steplog import StepLog
from rm_jax.writer import TIMING, RunWriter, to_json


class Stopped(Exception):
    """An evaluation was broken off by a signal; nothing of it was written."""


class Outputs(NamedTuple):
    """Where a run leaves what it makes, and what tells it to stop."""

    checkpoints: CheckpointWriter
    writer: RunWriter
    progress: Progress
    stop: cluster.Stop
    ledger: Ledger
    losses: ExampleLosses
    profiler: Profiler

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
    ledger = Ledger()
    config = validate(config)
    if config.train.report and not importlib.util.find_spec("matplotlib"):
        raise ImportError(
            "config.train.report needs matplotlib: pip install 'rm_jax[report]', or "
            "set config.train.report = False"
        )
    check_installed(config.train)
    continued = rundir.claim(workdir, config)
    if not Checkpoints(folder_of(workdir)).steps():
        check_start(config)
    compiles.use_cache(config.train.compile_cache)
    first = cluster.first()
    say = lambda line: print(line, file=stream, flush=True) if first else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster.loss_named())  # first: a close can find it, too
        built = build(config, workdir, losses, regularizers, say)
        profiler = Profiler(config.train.profile, workdir, built.total, first, say)
        stop = stack.enter_context(cluster.signals())  # until here Ctrl-C just ends it
        if continued:
            check_same(workdir, built)
        cluster.agree(identity(config, built))  # before anything is written
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
        if first:
            begin_session(workdir, built, start.step)
        progress = Progress(built.total, start.step, stream, active=first)
        stack.enter_context(progress)
        writer = RunWriter(
            workdir,
            step=start.step if continued else -1,
            evaluated=start.evaluated,
            size=start.logged,
            active=first,
            sinks={name: config.train[name] for name in SINKS},
            config=config.to_dict(),
            say=progress.say,
        )
        stack.enter_context(writer)
        each = first and config.train.example_losses
        example_losses = ExampleLosses(workdir, built.data.train, start.step, each)
        stack.enter_context(profiler)
        out = Outputs(
            checkpoints, writer, progress, stop, ledger, example_losses, profiler
        )
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
            if step > start.step:
                _account(workdir, step, out)
            where = f"saved step {step}" if step else "nothing to save yet"
            progress.say(f"{stop.reason}: {where}; the same command continues")
            return None
        try:
            return finish(config, workdir, built, state, out)
        except Stopped:
            progress.say(f"{stop.reason}: trained; the same command evaluates")
            return None


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
    log = StepLog(
        config,
        out.writer,
        out.progress,
        out.ledger,
        out.losses,
        built.flops,
        every=every["log_every"],
        start=start.step,
        total=built.total,
        window=start.window,
    )
    state, step, evaluated, saved = start.state, start.step, start.evaluated, True
    batches = built.loaders["train"].prefetch(step, built.total, config.batch.prefetch)
    with contextlib.closing(batches):  # ends its thread, whatever happens here
        while True:
            out.profiler.turn(step, state)
            last, stopping = step == built.total, out.stop.asked()
            due_eval = not evaluated and (last or step % every["eval_every"] == 0)
            due_save = last or stopping or step % every["save_every"] == 0
            due_save = due_save and not saved
            # A save must find every line up to its step on disk, so that a restart,
            # which cuts the log back to the checkpoint, leaves the same bytes.
            if due_eval or due_save:
                log.flush()
            # 1. Evaluate, before anything moves on: it sees the state of this step.
            metrics: dict[str, float] = {}
            if due_eval and not stopping:
                out.ledger.enter("evaluation")
                try:
                    metrics = _evaluate(config, built, state, step, out)
                    evaluated = True
                except Stopped:
                    stopping = True
            # 2. Save, after the evaluation whose figures decide which step is best.
            due_save = due_save or (stopping and not saved)
            better = metrics and not saved and out.checkpoints.improves(metrics)
            if due_save or better:
                out.ledger.enter("saving")
                log.flush()  # again: Stopped may be what asks for it
                out.losses.write(step)
                out.writer.flush()
                evaluated_now = evaluated or not due_eval
                meta = _meta(built, evaluated_now, log.window, out.writer.size)
                out.checkpoints.save(step, state, meta, metrics)
            if last or stopping:
                break
            # 3. Batch, after the save: what was saved depends on no batch not used.
            out.ledger.enter("waiting")
            batch = next(batches)
            # 4. Dispatch; this returns while the devices still compute.
            out.ledger.enter("steps")
            chunks = [put_chunk(built.mesh, *chunk) for chunk in batch.chunks]
            state, values = run_step(built.step, state, chunks, batch.weight)
            step, evaluated, saved = step + 1, False, False
            # 5. Log the step before, so that the host never waits for this one.
            log.add(step, values, batch)
    log.close(step)
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
    built: Built, evaluated: bool, window: Mapping[str, list[float]], size: int
) -> dict[str, Any]:
    """What a checkpoint carries to be scored with on its own, and the unwritten log."""
    return {
        "contract": built.data.contract.to_json(),
        "arch": built.arch.to_json(),
        "evaluated": evaluated,
        "log": to_json(window),
        "metrics_bytes": size,
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
    out.ledger.enter("evaluation")
    if done.get("step") != built.total:
        score = score_fn(built, state)
        encoder = Encoder(built.data.contract, built.data.tokenizer)
        done = schemas.stamped("evals.json", {"step": built.total, "sets": {}})
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
        _account(workdir, built.total, out)
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
    cluster.wait("done")  # who leaves first waits five minutes for the others, no more
    return done["sets"]


def _account(workdir: str, step: int, out: Outputs) -> None:
    """Says what the time of the whole run went to, over all its starts."""
    if not cluster.first():
        return
    last = {"from": step, **out.ledger.take()}
    lines = read_lines(store.join(workdir, TIMING))
    found = summary([*lines, {"step": step, **last}])
    out.writer.write_timing(step, last | found.shares())
    out.progress.say(found.line())


def _evaluated(path: str, say: Callable[[str], None]) -> dict[str, Any]:
    """What evals.json holds; {} where there is none, or it is damaged."""
    try:
        there = store.exists(path)
        return (
            schemas.checked("evals.json", store.read_json(path), path) if there else {}
        )
    except schemas.SchemaError:
        raise
    except ValueError as error:
        say(f"WARNING {error}; evaluating again")
        return {}


def _checkpoints(config: Any, workdir: str) -> CheckpointWriter:
    return CheckpointWriter(
        folder_of(workdir),
        keep_last=config.train.keep_last,
        keep_best=config.train.keep_best,
        best_metric=config.train.best_metric,
        best_mode=config.train.best_mode,
    )


class _Module(types.ModuleType):
    """Makes `rm_jax.train(config, workdir)` work: module and function share a name."""

    def __call__(self, *args, **kwargs):
        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Module
