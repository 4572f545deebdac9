"""The version of the layout of every file that a run leaves, and the check of it.

JSON files carry theirs as `schema_version`, parquet files in their metadata. The lines
of a .jsonl file do not: run.json lists theirs as `schema_versions`.

A number rises when a file could no longer be read by the code before it, or would mean
something else to it. Readers go on reading every older number.

>>> problem("evals.json", 2)
'schema_version is 2, this rm_jax reads evals.json up to 1: install a newer rm_jax'
"""

from collections.abc import Mapping
from typing import Any

VERSIONS = {
    "config.json": 1,  # the list of knobs
    "contract.json": 1,
    "arch.json": 2,
    "run.json": 1,
    "member.json": 1,
    "evals.json": 1,
    "checkpoint": 1,  # the manifest and the names of the arrays
    "predictions": 1,  # columns of predictions/*.parquet
    "sinks.json": 1,
    "example_losses": 1,  # columns of example_losses/*.parquet
    "sweep.json": 1,  # of the root of a sweep, as are the next three
    "verdicts.json": 1,
    "failed.json": 1,
    "table": 1,  # columns of table.parquet
    "metrics.jsonl": 1,
    "timing.jsonl": 1,
    "events.jsonl": 1,
}
KEY = "schema_version"
LINES = ("metrics.jsonl", "timing.jsonl", "events.jsonl")


class SchemaError(ValueError):
    """A file of a version that this code does not read."""


def stamped(kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the version of its kind."""
    return {KEY: VERSIONS[kind], **value}


def problem(kind: str, found: Any) -> str:
    """Why a file of this kind and version cannot be read; "" where it can."""
    known = VERSIONS[kind]
    if type(found) is int and 1 <= found <= known:
        return ""
    way = "rm_jax did not write it, or an unreleased one did: make it again"
    if type(found) is int and found > known:
        way = "install a newer rm_jax"
    return f"{KEY} is {found!r:.80}, this rm_jax reads {kind} up to {known}: {way}"


def checked(kind: str, value: Any, where: str) -> dict[str, Any]:
    """The JSON object of a file, whose version this code reads.

    Args:
      kind: of VERSIONS.
      value: the content of the file.
      where: the file, for the message.

    Raises:
      SchemaError: no object, or of another version; names the file, the version found,
        the version known and what to do.
    """
    if not isinstance(value, dict):
        name = type(value).__name__
        raise SchemaError(f"{where}: want a JSON object, got {name}")
    if why := problem(kind, value.get(KEY)):
        raise SchemaError(f"{where}: {why}")
    return value


def line_versions() -> dict[str, int]:
    """What run.json says of the .jsonl files beside it."""
    return {name: VERSIONS[name] for name in LINES}


def check_lines(info: Mapping[str, Any], where: str) -> None:
    """Checks the .jsonl files that a run.json speaks for.

    Args:
      info: content of run.json; {} where there is none yet.
      where: the run directory, for the message.

    Raises:
      SchemaError: lines of another version.
    """
    for name, found in info.get("schema_versions", {}).items():
        if name in LINES and (why := problem(name, found)):
            raise SchemaError(f"{where}/{name}: {why}")
