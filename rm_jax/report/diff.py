"""What differs between two runs: config, data, code, versions, devices, metrics.

>>> found = diff("runs/a", "runs/b")  # doctest: +SKIP
>>> found.same, list(found.sections["config"])  # doctest: +SKIP
(False, ['optim.learning_rate'])
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rm_jax.config import flatten
from rm_jax.report import runs, tables

# What of a session says on what it ran.
MACHINE = ("platform", "devices", "mesh", "jax", "environment")
# Of a set: where it lay and how it is told, not what it is.
UNCOMPARED = ("cache", "path", "spec", "lines", "errors")
MOST = 200  # characters of a value in a line


class Lines(NamedTuple):
    """How two metrics.jsonl compare, line by line.

    Attributes:
      counts: lines in each.
      step: of the first line that differs, None where none does.
      values: metric -> (a, b), of those that differ in that line; None is absent.
    """

    counts: tuple[int, int]
    step: int | None
    values: dict[str, tuple[Any, Any]]


class Diff(NamedTuple):
    """What differs between run `a` and run `b`.

    Attributes:
      a, b: the run directories.
      sections: name -> dotted key -> (value in a, value in b); None is absent.
      lines: of metrics.jsonl.
      figures: set -> figure -> (cell of a, cell of b), the final ones of both.
    """

    a: str
    b: str
    sections: dict[str, dict[str, tuple[Any, Any]]]
    lines: Lines
    figures: dict[str, dict[str, tuple[tables.Cell, tables.Cell]]]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not any(self.sections.values()) and self.lines.step is None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"same": self.same, **self._asdict(), "lines": self.lines._asdict()}


def diff(run_a: str, run_b: str) -> Diff:
    """Compares two run directories, local or gs://, or two of evaluations.

    Not compared: commands, folders, times and timing, weights, single predictions.

    Raises:
      ValueError: one holds no run, or a file that cannot be read.
    """
    both = runs.load_run(run_a), runs.load_run(run_b)
    a, b = (_sections(run) for run in both)
    sections = {name: _changes(a[name], b[name]) for name in a}
    lines = compare_lines(both[0].metrics, both[1].metrics)
    return Diff(run_a, run_b, sections, lines, _figures(*both))


def compare_lines(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]
) -> Lines:
    """Finds the first line of metrics that differs.

    Where one run is only longer, it is the first line that the other does not have.
    """
    counts = len(a), len(b)
    for n in range(max(counts)):
        one, two = (lines[n] if n < len(lines) else {} for lines in (a, b))
        if found := _changes(one, two):
            step = min(line["step"] for line in (one, two) if line)
            return Lines(counts, step, {k: v for k, v in found.items() if k != "step"})
    return Lines(counts, None, {})


def text_lines(found: Diff) -> Iterator[str]:
    """What `rm-jax diff` prints; of the evaluations only the figures of the report."""
    yield f"a: {found.a}"
    yield f"b: {found.b}"
    for name, changes in found.sections.items():
        yield f"{name}: {f'{len(changes)} differ' if changes else 'the same'}"
        for key, (old, new) in changes.items() if name != "evals" else ():
            yield f"  {key}: {_shown(old)} -> {_shown(new)}"
    yield from _metric_lines(found.lines)
    for name, figures in found.figures.items():
        yield f"final figures of {name}, a and b:"
        for key, cells in figures.items():
            one, two = (" ".join(part for part in cell if part) for cell in cells)
            mark = "" if cells[0] == cells[1] else "  *"
            yield f"  {key:<24} {one:<24} {two}{mark}".rstrip()
    names = [name for name, changes in found.sections.items() if changes]
    names += ["metrics.jsonl"] if found.lines.step is not None else []
    yield f"they differ in {', '.join(names)}" if names else "the runs are the same"


def _sections(run: runs.Run) -> dict[str, dict[str, Any]]:
    """Everything that is compared, as section -> dotted key -> value."""
    info, sessions = run.info, run.info.get("sessions", ())
    data = flatten({**info.get("data", {}), "specs": info.get("specs", {})})
    told = lambda key: key.startswith("specs.") or ".fingerprints." in key
    plugins = {k: p["sha256"] for k, p in info.get("plugins", {}).items()}
    return {
        "config": flatten(run.config),
        "data": {
            key: value
            for key, value in data.items()
            if told(key) or key.rpartition(".")[2] not in UNCOMPARED
        },
        "contract": flatten(run.contract),
        "arch": flatten(run.arch),
        "code": _over_time(sessions, ("code",)) | plugins,
        "versions": _over_time(sessions, ("python", "versions")),
        "devices": _over_time(sessions, MACHINE),
        "evals": flatten(run.evals),
    }


def _over_time(
    sessions: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> dict[str, Any]:
    """Dotted key -> its value in every session; where it changed, by starting step."""
    flat = [flatten({k: s[k] for k in keys if k in s}) for s in sessions]
    out = {}
    for key in dict.fromkeys(key for values in flat for key in values):
        values: dict[str, Any] = {}
        for session, own in zip(sessions, flat, strict=True):
            value = own.get(key)
            if key == "code.dirty_diff" and value and not _unknown(value):
                value = f"sha256 {hashlib.sha256(value.encode()).hexdigest()[:16]}"
            if not values or list(values.values())[-1] != value:
                values[f"from step {session['starts'][0]['step']}"] = value
        out[key] = next(iter(values.values())) if len(values) == 1 else values
    return out


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = dict.fromkeys([*a, *b])
    return {k: (a.get(k), b.get(k)) for k in keys if not _equal(a.get(k), b.get(k))}


def _equal(a: Any, b: Any) -> bool:
    """Equality in which NaN equals NaN, and what is not known equals nothing."""
    if _unknown(a) or _unknown(b):
        return False
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b or (a != a and b != b)


def _unknown(value: Any) -> bool:
    """Whether it is what provenance.code writes where git failed, of any session."""
    if isinstance(value, Mapping):
        return any(map(_unknown, value.values()))
    return isinstance(value, str) and value.startswith("unknown: git ")


def _figures(
    a: runs.Run, b: runs.Run
) -> dict[str, dict[str, tuple[tables.Cell, tables.Cell]]]:
    both = [tables.final_evals(run)[0] for run in (a, b)]
    out = {}
    for name in dict.fromkeys([*both[0], *both[1]]):
        values = [evals.get(name, {}) for evals in both]
        keys = [k for k in tables.COLUMNS if any(k in v for v in values)]
        out[name] = {k: tuple(tables.cell(v, k) for v in values) for k in keys}
    return out


def _metric_lines(lines: Lines) -> Iterator[str]:
    a, b = lines.counts
    counts = f"{a} lines" if a == b else f"{a} and {b} lines"
    if lines.step is None:
        yield f"metrics.jsonl: the same, {counts}"
        return
    yield f"metrics.jsonl: {counts}, the first that differs is of step {lines.step}"
    for key, (old, new) in lines.values.items():
        by = ""
        if all(isinstance(v, int | float) for v in (old, new)):
            by = f" ({new - old:+.3g})"
        yield f"  {key}: {_shown(old)} -> {_shown(new)}{by}"


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= MOST else f"{text[: MOST // 2]} … {text[-MOST // 2 :]}"
