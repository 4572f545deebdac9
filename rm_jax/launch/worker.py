"""One worker of a sweep, `rm-jax worker`: trains a group of units, or continues it.

A group has one lock, held while it trains. So two sweeps of one root, or a second start
while the workers of a killed one still save, never train a unit twice.
"""

import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rm_jax import config, store
from rm_jax.launch import locks, plan, units

Group = tuple[str, ...]  # names of units that train together
WRONG = 78  # EX_CONFIG: another start would end as this one did


def work(root: str, names: Sequence[str], stream: TextIO) -> int:
    """Trains the units that are not finished; an exit code.

    Args:
      root: of a sweep.
      names: a whole group of ROOT/sweep.json, in its order: those that share a
        checkpoint can only be continued together.
      stream: where progress goes.

    Returns:
      0; 75 where a signal stopped it: the same command continues; WRONG where a config
      or its data cannot be trained on, which it has said.

    Raises:
      ValueError: they are no group, or a unit that they need is not finished; and
        whatever else training raises.
    """
    known = plan.read(root)
    if list(names) not in known["groups"]:
        groups = "; ".join(",".join(group) for group in known["groups"])
        raise ValueError(f"--units {','.join(names)} is no group of {root}: {groups}")
    _check_needs(root, names, known)
    path = store.join(root, plan.LOCKS, names[0])
    say = lambda line: print(line, file=stream, flush=True)
    wait = lambda: say("another process trains these units: waiting for its end")
    with locks.held(path, wait):
        if all(units.finished(root, name) for name in names):
            say("finished already")
            return 0
        for name in names:
            if os.path.exists(file := units.failure_file(root, name)):
                store.remove(file)
        try:
            return _train(root, names, stream)
        except ValueError as error:
            say(f"rm-jax: {' '.join(str(error).split())}")
            return WRONG


def _check_needs(root: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    for unit in known["units"]:
        if unit["name"] not in names:
            continue
        for wanted in (name for of in unit.get("after", {}).values() for name in of):
            if not units.finished(root, wanted):
                first = next(group for group in known["groups"] if wanted in group)
                raise ValueError(
                    f"{unit['name']} is after {wanted}, which is not finished: first "
                    f"{command(root, tuple(first))}"
                )


def _train(root: str, names: Sequence[str], stream: TextIO) -> int:
    from rm_jax.train import train_together

    configs = [config.load(units.config_file(root, name)) for name in names]
    workdirs = [units.folder(root, name) for name in names]
    done = train_together(configs, workdirs, stream=stream)
    return 75 if done is None else 0  # EX_TEMPFAIL


def words(root: str, group: Group) -> list[str]:
    """What follows `rm-jax` to start the worker of a group."""
    return ["worker", "--root", root, "--units", ",".join(group)]


def command(root: str, group: Group) -> str:
    """What a worker of a group is started by, for a shell."""
    return shlex.join(["rm-jax", *words(root, group)])


def log_file(root: str, group: Group) -> str:
    """What the workers of a group said, in all their starts."""
    return store.join(root, plan.LOGS, f"{group[0]}.log")


def tail(root: str, group: Group, lines: int = 12) -> list[str]:
    """The last lines of a group's log."""
    text = pathlib.Path(log_file(root, group)).read_text("utf-8", "replace")
    return [line for line in text.splitlines() if line.strip()][-lines:]
