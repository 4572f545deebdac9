"""THE loop. Read it top to bottom; every part it calls can be read on its own.

metrics = rm_jax.train(rm_jax.config.load("rm_jax:quickstart"), "runs/quickstart")
"""

import contextlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from rm_jax import cluster, compiles, rundir, together
from rm_jax import losses as losses_module
from rm_jax.build import (
    Built,
    begin_session,
    build,
    check_same,
    describe,
    identity,
    put_chunk,
)
from rm_jax.checkpoint import Checkpoints, CheckpointWriter
from rm_jax.config import ConfigError, parse_duration, validate
from rm_jax.data.loader import prefetch
from rm_jax.evaluation import Outputs, Stopped, account, evaluate_runs, finish
from rm_jax.example_losses import ExampleLosses
from rm_jax.goodput import Ledger
from rm_jax.profiler import Profiler
from rm_jax.progress import Progress
from rm_jax.sinks import SINKS, check_installed
from rm_jax.start import Start, check_start, where_to_start
from rm_jax.state import TrainState
from rm_jax.step import run_step
from rm_jax.steplog import Outlet, StepLog, TrainingError
from rm_jax.writer import RunWriter, to_json


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
    found = train_together(
        [config], [workdir], losses=losses, regularizers=regularizers, stream=stream
    )
    return found and found[0]


def train_together(
    configs: Sequence[Any],
    workdirs: Sequence[str],
    *,
    losses: Mapping[str, Callable] = losses_module.LOSSES,
    regularizers: Mapping[str, Any] = losses_module.REGULARIZERS,
    stream: TextIO = sys.stderr,
) -> list[dict[str, dict[str, Any]]] | None:
    """Trains runs that differ only in numbers in one program, each as if alone.

    Args:
      configs: one a run; `together.VARY` and the knobs of the loss may differ.
      workdirs: of each run, in one folder; their checkpoints are one, beside them.
      losses, regularizers, stream: as in `train`.

    Returns:
      the final evaluation of each, or None after a signal; raises as `train`.
    """
    ledger = Ledger()
    configs = [validate(config) for config in configs]
    together.check(configs, workdirs)
    config, runs = configs[0], list(zip(configs, workdirs, strict=True))
    if config.train.report and not importlib.util.find_spec("matplotlib"):
        raise ImportError(
            "config.train.report needs matplotlib: pip install 'rm_jax[report]', or "
            "set config.train.report = False"
        )
    check_installed(config.train)
    continued = [rundir.claim(workdir, own) for own, workdir in runs]
    folder = together.folder(workdirs)
    if not Checkpoints(folder).steps():
        check_start(config)
    compiles.use_cache(config.train.compile_cache)
    first = cluster.first()
    say = lambda line: print(line, file=stream, flush=True) if first else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster.loss_named())  # first: a close can find it, too
        built = build(config, workdirs[0], losses, regularizers, say, configs)
        profiler = Profiler(config.train.profile, workdirs[0], built.total, first, say)
        stop = stack.enter_context(cluster.signals())  # until here Ctrl-C just ends it
        for workdir, old in zip(workdirs, continued, strict=True):
            if old:
                check_same(workdir, built)
        cluster.agree(identity(configs, built))  # before anything is written
        if first:
            for own, workdir in runs:
                describe(own, workdir, built)
            together.join(workdirs)
        with cluster.in_turn("checkpoints"):  # the first clears what a kill left
            checkpoints = stack.enter_context(_checkpoints(config, workdirs))
        events: list[dict[str, Any]] = []
        start = where_to_start(config, built, workdirs, checkpoints, events.append, say)
        if start.step > built.total:
            raise ConfigError(
                f"the run has {start.step} steps already, config.train.duration = "
                f"{config.train.duration!r} is {built.total}: make it longer"
            )
        progress = Progress(built.total, start.step, stream, active=first)
        stack.enter_context(progress)
        outlets = [
            stack.enter_context(_outlet(own, workdir, i, old, built, start, progress))
            for i, ((own, workdir), old) in enumerate(zip(runs, continued, strict=True))
        ]
        stack.enter_context(profiler)
        out = Outputs(checkpoints, outlets, progress, stop, ledger, profiler)
        for event in events:
            progress.say(
                f"WARNING damaged checkpoint of step {event['step']} passed over: "
                f"{event['why']:.300}"
            )
            name = event.pop("event")
            for outlet in outlets:
                outlet.writer.write_event(start.step, name, **event)
        state, step, stopped = loop(config, built, start, out)
        if step < built.total or stop.reason:
            if step > start.step:
                account(step, out)
            where = f"saved step {step}" if step else "nothing to save yet"
            progress.say(f"{stop.reason}: {where}; the same command continues")
            return None
        try:
            done = [
                finish(own, i, built, state, out)
                for i, (own, workdir) in enumerate(runs)
                if workdir not in stopped
            ]
        except Stopped:
            progress.say(f"{stop.reason}: trained; the same command evaluates")
            return None
        cluster.wait("done")  # who leaves first waits five minutes for the others
        if stopped:
            raise TrainingError("; ".join(f"{w}: {why}" for w, why in stopped.items()))
        return done


def loop(
    config: Any, built: Built, start: Start, out: Outputs
) -> tuple[TrainState, int, dict[str, str]]:
    """Steps `start.step` ... `built.total`; the order inside a turn is fixed.

    Returns:
      the state, its step, and of runs that train together those that stopped, and why.
    """
    epoch = built.training.epoch
    every = {
        name: max(1, parse_duration(text).steps(config.batch.examples, epoch))
        for name, text in config.train.items()
        if name.endswith("_every")
    }
    log = StepLog(
        config,
        out.outlets,
        out.progress,
        out.ledger,
        built.flops,
        every=every["log_every"],
        start=start.step,
        total=built.total,
        windows=start.windows,
        stopped=start.stopped,
    )
    state, step, evaluated, saved = start.state, start.step, start.evaluated, True
    ahead = config.batch.prefetch
    batches = prefetch(built.training.batch_at, step, built.total, ahead)
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
                    metrics = evaluate_runs(config, built, state, step, out, log)
                    evaluated = True
                except Stopped:
                    stopping = True
            # 2. Save, after the evaluation whose figures decide which step is best.
            due_save = due_save or (stopping and not saved)
            better = metrics and not saved and out.checkpoints.improves(metrics)
            if due_save or better:
                out.ledger.enter("saving")
                log.flush()  # again: Stopped may be what asks for it
                for outlet in out.outlets:
                    outlet.losses.write(step)
                    outlet.writer.flush()
                meta = _meta(built, evaluated or not due_eval, log)
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
        out.progress.say(log.layout(built.step.compiled(), built.training.unit))
    return state, step, log.stopped


def _meta(built: Built, evaluated: bool, log: StepLog) -> dict[str, Any]:
    """What a checkpoint carries to be scored with on its own, and the unwritten log."""
    shared = None if built.together else built.members
    workdirs = [outlet.workdir for outlet in log.outlets]
    return {
        "contract": built.data.contract.to_json(),
        "arch": built.arch.to_json(),
        "members": shared and {"count": shared.count, "share": shared.share},
        "evaluated": evaluated,
        "logs": to_json(list(log.windows)),
        "metrics_bytes": [outlet.writer.size for outlet in log.outlets],
        "stopped": {str(workdirs.index(w)): why for w, why in log.stopped.items()},
    }


@contextlib.contextmanager
def _outlet(
    config: Any,
    workdir: str,
    run: int,
    continued: bool,
    built: Built,
    start: Start,
    progress: Progress,
) -> Iterator[Outlet]:
    """Opens what one run writes to, cut back to where it starts."""
    first = cluster.first()
    if first:
        begin_session(workdir, built, start.step)
    writer = RunWriter(
        workdir,
        step=start.step if continued else -1,
        evaluated=start.evaluated,
        size=start.logged[run],
        active=first,
        sinks={name: config.train[name] for name in SINKS},
        config=config.to_dict(),
        say=progress.say,
    )
    with writer:
        each = first and config.train.example_losses
        example_losses = ExampleLosses(workdir, built.data.train, start.step, each)
        if continued:
            progress.say(f"continuing {workdir} at step {start.step} of {built.total}")
            writer.write_event(start.step, "resumed")
        yield Outlet(workdir, writer, example_losses)


def _checkpoints(config: Any, workdirs: Sequence[str]) -> CheckpointWriter:
    several = len(workdirs) > 1
    places = [together.Place("", i if several else None) for i in range(len(workdirs))]
    return CheckpointWriter(
        together.folder(workdirs),
        keep_last=config.train.keep_last,
        keep_best=config.train.keep_best,
        best_metrics=[place.metric(config.train.best_metric) for place in places],
        best_mode=config.train.best_mode,
    )


class _Module(types.ModuleType):
    """Makes `rm_jax.train(config, workdir)` work: module and function share a name."""

    def __call__(self, *args, **kwargs):
        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Module
