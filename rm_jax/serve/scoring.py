"""`rm-jax score`: rewards of the records of a file, into another file."""

import json
import sys
from collections.abc import Iterator
from typing import Any

from rm_jax import store
from rm_jax.data.files import read_rows
from rm_jax.data.rows import Place
from rm_jax.data.sources import open_source
from rm_jax.serve.scorer import load

BLOCK = 1024  # records scored together


def score_file(
    run: str,
    path: str,
    output: str,
    step: int | str | None = None,
    reducer: str | None = None,
) -> None:
    """Writes a line {id, scores} for each record; with members also their scores.

    Args:
      run: the run directory.
      path: of lines {prompt, responses}, perhaps with an id.
      output: a new file; `scores` has one number a response, `members` one list of them
        a member.
      step: of the checkpoint, or "best"; default the last sound one.
      reducer: of members, see `Scorer`.

    Raises:
      FileNotFoundError: no run directory, or no such step.
      ValueError: what is wrong with the records, the checkpoint or the reducer.
    """
    source = open_source(f"jsonl:{path}")
    _check_ids(path, source.name)
    model = load(run, step, reducer)
    print(f"model: {model}", file=sys.stderr)
    with store.new_file(output) as f:
        for block in _blocks(source.records(), BLOCK):
            table = model.score_table(block)
            for row, record in enumerate(block):
                k = len(record.responses)
                line = {"id": record.id, "scores": table.scores[row, :k].tolist()}
                if table.members is not None:
                    line["members"] = table.members[:, row, :k].tolist()
                f.write((json.dumps(line) + "\n").encode())


def _check_ids(path: str, name: str) -> None:
    """Refuses two rows of one id, because scores are told apart by it."""
    numbers: dict[str, int] = {}
    for number, row in read_rows(path):
        given = row.get("id") if isinstance(row, dict) else None
        key = Place(name, number).id if given is None else str(given)
        first = numbers.setdefault(key, number)
        if first != number:
            raise ValueError(
                f"{path}:{first} and {path}:{number} have the same id {key!r:.200}: "
                "give every row its own, or none of them one"
            )


def _blocks(records: Iterator[Any], size: int) -> Iterator[list[Any]]:
    block: list[Any] = []
    for record in records:
        block.append(record)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
