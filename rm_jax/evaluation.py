"""Evaluation of the runs of a program: while they train, and whole at the end."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rm_jax import cluster, schemas, store, together
from rm_jax.build import Built, score_fn
from rm_jax.checkpoint import CheckpointWriter
from rm_jax.data.contract import Encoder
from rm_jax.data.mixture import world_of
from rm_jax.data.world import probe_knobs
from rm_jax.evals import alarms, by_source, evaluate, pairs
from rm_jax.evals.run import evaluate_set, summary_lines
from rm_jax.evals.score import score_table
from rm_jax.evals.table import ScoreTable
from rm_jax.goodput import Ledger, summary
from rm_jax.lines import read_lines
from rm_jax.profiler import Profiler
from rm_jax.progress import Progress
from rm_jax.state import TrainState
from rm_jax.steplog import Outlet, StepLog
from rm_jax.writer import TIMING, to_json


class Stopped(Exception):
    """An evaluation was broken off by a signal; nothing of it was written."""


class Outputs(NamedTuple):
    """Where runs leave what they make, and what tells them to stop.

    `outlets` has one a run: more than one where several train together.
    """

    checkpoints: CheckpointWriter
    outlets: list[Outlet]
    progress: Progress
    stop: cluster.Stop
    ledger: Ledger
    profiler: Profiler

    def poll(self) -> None:
        """Raises Stopped when a signal came: long evaluations call it often."""
        if self.stop.asked():
            raise Stopped


def evaluate_runs(
    config: Any,
    built: Built,
    state: TrainState,
    step: int,
    out: Outputs,
    log: StepLog,
) -> dict[str, float]:
    """Figures of every evaluation set, on its first `eval_examples` examples.

    Returns:
      those of every run, as `together.Place.metric` names them.

    Raises:
      Stopped: a signal came; nothing was written.
    """
    # All are scored before any line is written: Stopped leaves nothing half done.
    tables = {
        i: {
            name: score_table(
                score_fn(built, state, i),
                loader,
                config.train.eval_examples,
                out.poll,
                config.members.reducer,
            )
            for name, loader in built.loaders.items()
        }
        for i, outlet in enumerate(out.outlets)
        if outlet.workdir not in log.stopped
    }
    found: dict[str, float] = {}
    for i, own in tables.items():
        figures = _figures(config, built, own, step, out, out.outlets[i])
        if figures:
            out.outlets[i].writer.write_metrics(step, figures)
        place = together.Place("", i if built.together else None)
        found |= {place.metric(name): value for name, value in figures.items()}
    return found


def _figures(
    config: Any,
    built: Built,
    tables: Mapping[str, ScoreTable],
    step: int,
    out: Outputs,
    outlet: Outlet,
) -> dict[str, float]:
    """Figures of one run's tables; says and writes what is not a figure."""
    figures: dict[str, float] = {}
    which = f"{outlet.workdir} " if built.together else ""
    for name, table in tables.items():
        values = evaluate(table, seed=config.eval_seed)
        figures |= {f"eval/{name}/{k}": v for k, v in values.items()}
        for source, own in by_source(table, seed=config.eval_seed).items():
            figures |= {f"eval/{name}/{source}/{k}": v for k, v in own.items()}
        scores = table.scores[~np.isnan(table.scores)]
        outlet.writer.add_histogram(step, f"eval/{name}/scores", scores)
        margins = pairs(table).delta
        outlet.writer.add_histogram(step, f"eval/{name}/margins", margins)
        for text in alarms(
            table,
            progress=step / built.total,
            human=world_of(built.data.specs[name], {}) is None,
            too_good=config.train.too_good,
        ):
            outlet.writer.alarm(step, name, text)
            out.progress.say(f"ALARM {which}{name}: {text}")
        keys = ("accuracy", "length_baseline", "nll", "step_accuracy")
        shown = [f"{k} {values[k]:.3f}" for k in keys if k in values]
        out.progress.say(f"step {step} {which}{name}: {', '.join(shown)}")
    return figures


def finish(
    config: Any, run: int, built: Built, state: TrainState, out: Outputs
) -> dict[str, dict[str, Any]]:
    """Evaluates every set whole, writes predictions, evals.json and report.html.

    Args:
      config: of the run.
      run: which one of those that train together.
      built: of the program.
      state: of it.
      out: of all runs.

    Raises:
      Stopped: a signal came; the same command evaluates again.
    """
    workdir, writer = out.outlets[run].workdir, out.outlets[run].writer
    path = store.join(workdir, "evals.json")
    done = _evaluated(path, out.progress.say)
    cluster.wait(f"finish {run}")  # all have read it before it is written
    out.ledger.enter("evaluation")
    if done.get("step") != built.total:
        score = score_fn(built, state, run)
        encoder = Encoder(built.data.contract, built.data.tokenizer)
        done = schemas.stamped("evals.json", {"step": built.total, "sets": {}})
        probed = []  # probes are of a world, not of a split
        for name, loader in built.loaders.items():
            world = world_of(built.data.specs[name], config.data.world)
            own = probe_knobs(world.knobs) if world else {}
            done["sets"][name] = evaluate_set(
                name,
                world,
                score,
                loader,
                encoder,
                workdir if cluster.first() else None,
                config.eval_seed,
                too_good=config.train.too_good,
                probes=own not in probed,
                poll=out.poll,
                reducer=config.members.reducer,
            )
            probed.append(own)
        if cluster.first():
            store.write_sealed(path, to_json(done))
        if run == len(out.outlets) - 1:
            account(built.total, out)
    else:
        out.progress.say(
            f"{workdir} is complete: {built.total} steps; nothing to train"
        )
    for line in summary_lines(done["sets"]):
        out.progress.say(line)
    if config.train.report and cluster.first():
        from rm_jax.report.html import write_report  # matplotlib, only when asked for

        writer.flush()
        out.progress.say(f"report: {write_report(workdir)}")
    return done["sets"]


def account(step: int, out: Outputs) -> None:
    """Says what the time of the whole run went to, over all its starts."""
    if not cluster.first():
        return
    last = {"from": step, **out.ledger.take()}
    lines = read_lines(store.join(out.outlets[0].workdir, TIMING))
    found = summary([*lines, {"step": step, **last}])
    for outlet in out.outlets:
        outlet.writer.write_timing(step, last | found.shares())
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
