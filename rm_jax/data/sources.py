"""Sources: SPEC text to a stream of Records that can be read again and again.

What a SPEC may be is in specs.py.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rm_jax import store
from rm_jax.data.files import Rows, is_data_file, read_rows
from rm_jax.data.formats import MAPPED, VERSION, Format, find_format
from rm_jax.data.hub import HUB_PATH, hub_table, is_saved_dataset, saved_table
from rm_jax.data.presets import find_preset
from rm_jax.data.rows import Place
from rm_jax.data.schema import Record, RowError, shown
from rm_jax.data.specs import Spec, parse_spec, resolve, world_knobs
from rm_jax.data.splits import Plan, Table, part_of, plan
from rm_jax.data.tfds import tfds_table, write_tfds


@dataclasses.dataclass(frozen=True)
class Source:
    """Records that can be iterated again, in the same order.

    Attributes:
      name: short name, with its split.
      fingerprint: sha256 of content and of every choice that changes the records.
      info: spec, path, revision, split, sha256 of the content (of a hub data set its
        id and revision), fingerprint; and of the last whole iteration `rows` read,
        `bad_rows` dropped, the first `errors`, and `records` given.
      records: starts an iteration.
    """

    name: str
    fingerprint: str
    info: dict[str, Any]
    records: Callable[[], Iterator[Record]]


class _Options(NamedTuple):
    on_bad_row: str
    valid_fraction: float
    test_fraction: float
    limit: int | None


def open_source(
    spec: str,
    *,
    columns: Mapping[str, str] | None = None,
    world: Mapping[str, Any] | None = None,
    on_bad_row: str = "raise",
    valid_fraction: float = 0.05,
    test_fraction: float = 0.05,
    limit: int | None = None,
) -> Source:
    """Opens what a SPEC names. Rows are read, and counted, when it is iterated.

    `#valid` and `#test` that the source does not have are carved from its `train` by a
    hash of the prompt, and `#train` leaves them out: no prompt is on two sides. Without
    `#split` it is every row.

    Args:
      spec: `format:path-or-hub-id[@revision][#split]`, see specs.py.
      columns: field -> column, for formats `columns` and `hf` (`column_parser`).
      world: knobs of `world:`, where the SPEC names no others.
      on_bad_row: `raise`, or `drop`: left out and counted in `info`.
      valid_fraction: share of prompts carved for `valid`.
      test_fraction: share of prompts carved for `test`.
      limit: first N records of the split; None or 0 is all.

    Raises:
      FileNotFoundError: no such file or folder.
      ValueError: unknown format or split, offline, a damaged file, a bad option.
        Iterating raises RowError for a malformed row, ValueError for no rows at all.
    """
    options = _Options(on_bad_row, valid_fraction, test_fraction, limit or None)
    _check(options)
    parsed = parse_spec(spec)
    if columns and parsed.format not in MAPPED:
        raise ValueError(
            f"SPEC {spec!r} takes no columns, got {columns!r:.200}: the formats that "
            f"do are {MAPPED}"
        )
    if parsed.format == "world":
        return _world_source(parsed, world or {}, options)
    plain = resolve(parsed)
    stored = plain.format == "tfds"
    if stored and plain.revision:
        raise ValueError(f"SPEC {spec!r}: a TFDS directory has no revision")
    how = find_format("jsonl" if stored else plain.format, columns)
    table = tfds_table(plain.path) if stored else _table(plain)
    if parsed.format == "preset":
        preset = find_preset(parsed.path)
        if preset.column:
            table = _by_column(table, preset.column, tuple(preset.splits.values()))
        table = _renamed(table, preset.splits)
    chosen = plan(table, plain.split)
    info = {
        "spec": str(parsed),
        "path": table.path,
        "revision": table.revision,
        "split": plain.split,
    }
    parts = chosen.keep and (chosen.keep, valid_fraction, test_fraction)
    fingerprint = _sha(
        table.digest, plain.format, VERSION, how.code, dict(columns or {}),
        chosen.native, parts, on_bad_row, options.limit,
    )  # fmt: skip
    info |= {"sha256": table.digest, "fingerprint": fingerprint}
    name = f"{table.name}#{plain.split}" if plain.split else table.name

    def records() -> Iterator[Record]:
        counts = {"rows": 0, "bad_rows": 0, "errors": [], "records": 0}
        found = _parse(table, chosen.native, how, on_bad_row, counts)
        return _counted(_keep(found, chosen, options), options, counts, info)

    return Source(name, fingerprint, info, records)


def prepare(
    spec: str,
    out_dir: str,
    name: str = "preferences",
    splits: Sequence[str] = ("train", "valid", "test"),
    **options: Any,
) -> str:
    """Writes splits of a source into a TFDS directory, `tfds:` reads it back.

    Args:
      spec: the source, without `#split`.
      out_dir: folder of TFDS data sets; this one goes to `out_dir/name/1.0.0`.
      name: lower-case letters, digits and _.
      splits: of the source, each becomes a TFDS split.
      options: of `open_source`.

    Returns:
      The folder written.

    Raises:
      FileExistsError: it is there already.
      ValueError: as `open_source`, or the spec names a split.
    """
    if parse_spec(spec).split:
        raise ValueError(f"SPEC {spec!r}: leave out #split and name it in splits")
    sources = {split: open_source(f"{spec}#{split}", **options) for split in splits}
    return write_tfds({s: src.records for s, src in sources.items()}, out_dir, name)


def _check(options: _Options) -> None:
    if options.on_bad_row not in ("raise", "drop"):
        raise ValueError(f"on_bad_row {options.on_bad_row!r} is not 'raise' or 'drop'")
    valid, test = options.valid_fraction, options.test_fraction
    if not (valid >= 0 and test >= 0 and valid + test < 1):
        raise ValueError(
            f"valid_fraction {valid} and test_fraction {test}: want both at least 0 "
            "and their sum below 1"
        )
    if options.limit is not None and options.limit < 0:
        raise ValueError(f"limit {options.limit}: want at least 0; 0 is all")


def _table(spec: Spec) -> Table:
    path = spec.path
    if not store.exists(path) and HUB_PATH.fullmatch(path) and not is_data_file(path):
        return hub_table(path, spec.revision)
    if not store.exists(path):
        raise FileNotFoundError(f"{path}: no such file or folder")
    if spec.revision:
        raise ValueError(f"{path}: a local path has no revision {spec.revision!r}")
    if not store.is_dir(path):
        return _file_table(path)
    if not is_saved_dataset(path):
        raise ValueError(
            f"{path}: a folder that save_to_disk of `datasets` did not write; name a "
            "file in it, or tfds: for a TFDS directory"
        )
    return saved_table(path)


def _renamed(table: Table, splits: Mapping[str, str]) -> Table:
    """The table with its splits under the names that a preset gives them."""
    for native in splits.values():
        if native not in table.splits:
            raise ValueError(
                f"{table.path}: no split {native!r}; it has {sorted(table.splits)}: "
                "this revision is not the one the preset knows"
            )
    names = {native: name for name, native in splits.items()}
    found = {names.get(n, n): reader for n, reader in table.splits.items()}
    return table._replace(splits=found)


def _by_column(table: Table, column: str, names: Sequence[str]) -> Table:
    """The table's rows taken apart by what is in a column of theirs."""

    def reader(name: str) -> Rows:
        for number, row in itertools.chain(*(read() for read in table.splits.values())):
            found = row.get(column) if isinstance(row, Mapping) else None
            if found not in names:  # malformed, whichever split is read
                why = f"{shown(found)} is not one of {list(names)}"
                row = RowError(f"{table.path}:{number}", column, why)
            elif found != name:
                continue
            yield number, row

    splits = {name: functools.partial(reader, name) for name in names}
    return table._replace(digest=f"{table.digest} by {column}", splits=splits)


def _file_table(path: str) -> Table:
    name = re.sub(r"\.(jsonl|json|parquet)(\.gz)?$", "", path.rpartition("/")[2])
    readers = {"train": lambda: read_rows(path)}
    return Table(name, path, store.sha256_file(path), "", readers)


def _parse(
    table: Table, split: str, how: Format, on_bad_row: str, counts: dict[str, Any]
) -> Iterator[Record]:
    def parsed() -> Iterator[Record]:
        for number, row in table.splits[split]():
            counts["rows"] += 1
            try:
                yield from _row(row, how, Place(table.name, number, table.path))
            except RowError as error:
                if on_bad_row == "raise":
                    raise
                counts["bad_rows"] += 1
                counts["errors"] = [*counts["errors"], str(error)][:3]

    return how.merge(parsed()) if how.merge else parsed()


def _row(row: Any, how: Format, place: Place) -> list[Record]:
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, Mapping):
        raise RowError(str(place), "row", f"want an object, got {shown(row)}")
    return how.parse(row, place)


def _keep(
    records: Iterable[Record], chosen: Plan, options: _Options
) -> Iterator[Record]:
    fractions = options.valid_fraction, options.test_fraction
    for record in records:
        if chosen.keep is None or part_of(record.prompt, *fractions) in chosen.keep:
            yield record


def _counted(
    records: Iterable[Record], options: _Options, counts: dict, info: dict
) -> Iterator[Record]:
    for record in itertools.islice(records, options.limit):
        counts["records"] += 1
        yield record
    info.update(counts)
    if not counts["records"]:
        split = f"split {info['split']!r} of " if info["split"] else ""
        raise ValueError(
            f"{split}{info['path']} has no records: {counts['rows']} rows read, "
            f"{counts['bad_rows']} dropped as malformed, valid_fraction "
            f"{options.valid_fraction}, test_fraction {options.test_fraction}"
            + "".join(f"; the first: {error}" for error in counts["errors"][:1])
        )


def _world_source(spec: Spec, knobs: Mapping[str, Any], options: _Options) -> Source:
    from rm_jax.data.world import make_world  # numpy work that other sources spare

    if spec.revision:
        raise ValueError(f"SPEC {str(spec)!r}: a world has no revision: world:#test")
    knobs = {**knobs, **world_knobs(spec)}
    try:
        world = make_world(knobs)
        world.records(spec.split or None)  # refuses an unknown split
    except ValueError as error:
        raise ValueError(f"SPEC {str(spec)!r}: {error}") from None
    info = {"spec": str(spec), "path": "world", "revision": "", "split": spec.split}

    def records() -> Iterator[Record]:
        counts = {"rows": 0, "bad_rows": 0, "errors": [], "records": 0}
        return _counted(world.records(spec.split or None), options, counts, info)

    head = f"world:{spec.path}" if spec.path else "world"
    name = f"{head}#{spec.split}" if spec.split else head
    content = world.fingerprint()
    fingerprint = _sha("world", content, spec.split, options.limit)
    info |= {"sha256": content, "fingerprint": fingerprint}
    return Source(name, fingerprint, info, records)


def _sha(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
