"""The parts of a command line, each checked before any work."""

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn

from rm_jax import jsontext, objects, store
from rm_jax.limits import MOST

OVERRIDE = "--config."


class UsageError(ValueError):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError, one line, where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Raises the message, and says where to read more."""
        raise UsageError(f"{message}; {self.prog} --help says more")


def parser(verb: str, text: str) -> Parser:
    """Of `rm-jax VERB`; a flag must be written out."""
    return Parser(prog=f"rm-jax {verb}", description=text, allow_abbrev=False)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """--checkpoint and --step: a trained model."""
    parser.add_argument(
        "--checkpoint", type=path, required=True, help="a run directory"
    )
    add_step(parser)


def add_step(parser: argparse.ArgumentParser) -> None:
    """--step: of a checkpoint."""
    parser.add_argument(
        "--step", type=_step, help="of the checkpoint, or best; default the last"
    )


def add_data(
    parser: argparse.ArgumentParser, otherwise: str = "", required: bool = True
) -> None:
    """--data and --columns: a data source, and what is taken without one."""
    spec = "SPEC: format:path-or-hub-id[@revision][#split]"
    parser.add_argument(
        "--data",
        type=_spec,
        required=required,
        default="",
        help=f"{spec}; {otherwise}" if otherwise else spec,
    )
    parser.add_argument(
        "--columns", default="", help='field -> column, e.g. {"prompt": "question"}'
    )


def add_config(parser: Parser) -> None:
    """--config FILE; `take_knobs` has taken its knobs out before."""
    parser.add_argument(
        "--config",
        type=path,
        required=True,
        help="FILE.py[:ARG], rm_jax:NAME or a config.json",
    )
    parser.epilog = "--config.KEY=VALUE changes one knob of configs/base.py."


def add_root(parser: argparse.ArgumentParser) -> None:
    """--root: of a sweep."""
    parser.add_argument("--root", type=path, required=True, help="of a sweep")


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """Flags of a sweep, but its --root."""
    add = parser.add_argument
    add(
        "--experiment",
        type=path,
        required=True,
        help="FILE.py[:ARG] or rm_jax:NAME[:ARG]",
    )
    add("--backend", default="local", help="where workers run; default local")
    add("--workers", type=count, default=0, help="at a time; default as many as fit")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--vectorised",
        action="store_true",
        help="units that differ in numbers train in one program; the default",
    )
    how.add_argument("--separate", action="store_true", help="each unit in its own")
    add("--dry-run", action="store_true", help="only say what would be done")


def add_suite(parser: argparse.ArgumentParser) -> None:
    """--data and --name, or --suite; --columns and --limit: benchmarks."""
    one = parser.add_mutually_exclusive_group(required=True)
    spec = "SPEC: format:path-or-hub-id[@revision][#split]"
    one.add_argument("--data", type=_spec, help=spec)
    one.add_argument(
        "--suite", type=path, help='FILE.json of several, {"NAME": "SPEC"}'
    )
    parser.add_argument("--name", default="", help="that figures of --data will have")
    parser.add_argument(
        "--columns", default="", help='field -> column, e.g. {"prompt": "question"}'
    )
    parser.add_argument(
        "--limit", type=count, default=0, help="first N records; 0 is all"
    )


def add_report(parser: argparse.ArgumentParser) -> None:
    """What a report of a sweep shows."""
    add = parser.add_argument
    add("--show", default="", metavar="SET/METRIC", help="default test/accuracy")
    add("--select", default="", metavar="SET/METRIC", help="choose by it: valid/nll")
    add("--over", default="", metavar="KEYS", help="chosen; default all, step for when")
    first = "default the first value of the sweep's first key, other keys as in the row"
    add("--baseline", default="", metavar="KEY=VALUE,...", help=first)
    add("--format", choices=("text", "markdown", "latex"), default="text")


def suite(args: argparse.Namespace) -> dict[str, str]:
    """Name -> SPEC of the flags of `add_suite`.

    Raises:
      UsageError: --data without a name, or a file that is no such object.
    """
    if args.data:
        if not args.name:
            raise UsageError(
                "--data: give the figures a --name, e.g. --name rewardbench"
            )
        return {args.name: args.data}
    if args.name or args.columns:
        raise UsageError(
            "--suite has names of its own: --name, --columns go with --data"
        )
    try:
        found = jsontext.read_object(
            f"--suite {args.suite}", store.read_text(args.suite)
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not found or not all(isinstance(spec, str) for spec in found.values()):
        raise UsageError(f'--suite {args.suite}: want {{"NAME": "SPEC", ...}}')
    return {name: _spec(spec) for name, spec in found.items()}


def names(text: str) -> list[str]:
    """The parts of a list with commas, each once."""
    return list(dict.fromkeys(filter(None, text.split(","))))


def pairs(text: str) -> dict[str, str] | None:
    """A map out of "a=1,b=2"; None of no text.

    Raises:
      UsageError: a part without "=".
    """
    parts = [part.partition("=") for part in names(text)]
    if wrong := [key for key, equals, _ in parts if not equals or not key]:
        raise UsageError(f"--baseline {text}: {wrong[0]!r}: want KEY=VALUE")
    return {key: value for key, _, value in parts} or None


def path(text: str) -> str:
    """A path; `~` is the home folder, where no shell has put it."""
    if not text:
        raise argparse.ArgumentTypeError("'': want a path")
    try:
        objects.check_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return os.path.expanduser(text)


def _spec(text: str) -> str:
    form, colon, path = text.partition(":")
    return f"{form}{colon}{os.path.expanduser(path)}"


def count(text: str) -> int:
    """A whole number from 0 to MOST."""
    if not text.isdecimal() or len(text) > 10 or int(text) > MOST:
        why = f"{text[:20]!r}: want a whole number, 0 or more, at most {MOST}"
        raise argparse.ArgumentTypeError(why)
    return int(text)


def _step(text: str) -> int | str:
    try:
        return text if text == "best" else count(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or best") from None


def take_knobs(
    arguments: Sequence[str],
) -> tuple[list[str], list[tuple[str, str]]]:
    """The other arguments, and (key, value) of every --config.KEY."""
    others, knobs = [], []
    words = iter(arguments)
    for word in words:
        if not word.startswith(OVERRIDE):
            others.append(word)
            continue
        key, equals, value = word.removeprefix(OVERRIDE).partition("=")
        if not equals:
            value = next(words, "--")
        if not key or (not equals and value.startswith("--")):
            raise UsageError(f"{word}: no value: want {OVERRIDE}{key or 'KEY'}=VALUE")
        knobs.append((key, value))
    return others, knobs


def columns(args: argparse.Namespace) -> dict[str, str] | None:
    """The map of --columns; None where it was not given."""
    if not args.columns:
        return None
    try:
        return jsontext.read_object("--columns", args.columns)
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_new(flag: str, path: str, folder: bool = True) -> None:
    """Refuses an output that is there, or that could not be written after the work.

    Args:
      flag: that names it.
      path: of the output.
      folder: it is a folder: it may be there, empty, and those above it are made.
    """
    if store.is_url(path):
        if store.exists(path):
            raise UsageError(f"{flag} {path} is there already: choose another name")
        return
    whole = os.path.abspath(path)
    empty = folder and os.path.isdir(whole) and not os.listdir(whole)
    if os.path.lexists(whole) and not empty:
        raise UsageError(
            f"{flag} {path or whole} is there already: choose another name"
        )
    above = whole if empty else os.path.dirname(whole)
    while folder and not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above) or not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(
            f"{flag} {path}: {above} is no folder that can be written to: make it, or "
            "choose another"
        )
