"""SPECs: the text that names where preference records come from.

SPEC is `format:path-or-hub-id[@revision][#split]`:

  hh:helpful-base.test.jsonl.gz          a local file (.jsonl, .json, .gz, .parquet)
  hf:Anthropic/hh-rlhf@<sha>#test        a hub id; the format is told by the columns
  columns:data/pairs.parquet#valid       a column map; valid is carved by prompt hash
  my_package.formats:parse:rows.jsonl    a function row -> list of Records
  tfds:prepared/                         a directory written by `prepare`
  world:#test                            the synthetic world
  world:responses=64,test=48#test        with knobs of its own
  preset:helpsteer2#valid                a public data set by name (presets.py)

A hub id with a config is `org/name:config`, one with a folder `org/name:folder/`.
"""

import re
from typing import NamedTuple

from rm_jax import store
from rm_jax.data.formats import FORMATS
from rm_jax.data.presets import find_preset

_KNOWN = (*FORMATS, "columns", "preset", "tfds", "world")
_FUNCTION = re.compile(r"([A-Za-z_][\w.]*:[A-Za-z_]\w*):(.+)", re.DOTALL)


class Spec(NamedTuple):
    """A SPEC taken apart; empty where not given."""

    format: str
    path: str
    revision: str = ""
    split: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        split = f"#{self.split}" if self.split else ""
        return f"{self.format}:{self.path}{revision}{split}"


def parse_spec(spec: str) -> Spec:
    """Takes a SPEC apart.

    A local path that exists as it stands is a path, whatever `@` and `#` it holds.

    Raises:
      ValueError: no format, no path, or nothing after `@` or `#`.
    """
    head, colon, rest = spec.partition(":")
    function = _FUNCTION.fullmatch(spec)
    if head not in _KNOWN and function:
        head, rest = function.groups()
    path, split, revision, gap = rest, "", "", ""
    there = lambda: head != "preset" and not store.is_url(path) and store.exists(path)
    if not there() and "#" in path:
        path, _, split = path.rpartition("#")
        gap = "" if split else "#"
    if not there() and "@" in path:
        path, _, revision = path.partition("@")
        gap = gap if revision else "@"
    if not colon or not head or (not path and head != "world"):
        raise ValueError(
            f"SPEC {spec!r}: want format:path-or-hub-id[@revision][#split]; formats: "
            f"{sorted(_KNOWN)} or package.module:function"
        )
    if gap:
        what = {"#": "split", "@": "revision"}[gap]
        raise ValueError(f"SPEC {spec!r}: no {what} after {gap}: name one, or leave it")
    return Spec(head, path, revision, split)


def world_knobs(spec: Spec) -> dict[str, int | float]:
    """The knobs that a SPEC of a world names: {"noise": 0} of "world:noise=0#test".

    Raises:
      ValueError: no knob=number, or a knob twice.
    """
    knobs: dict[str, int | float] = {}
    for part in spec.path.split(",") if spec.path else ():
        name, equals, text = part.partition("=")
        try:
            value = int(text) if re.fullmatch(r"-?\d+", text) else float(text)
        except ValueError:
            equals = ""
        if not equals or name in knobs:
            raise ValueError(
                f"SPEC {str(spec)!r}: {part!r}: want each knob of the world once, with "
                "a number: world:responses=8,noise=0.1#test"
            )
        knobs[name] = value
    return knobs


def resolve(spec: Spec) -> Spec:
    """The Spec that a preset stands for: hub id, format, revision; others unchanged.

    The split goes by the preset's name for it: "train", "valid" or "test" for what the
    hub calls "train_prefs".

    Raises:
      ValueError: unknown preset.
    """
    if spec.format != "preset":
        return spec
    preset = find_preset(spec.path)
    names = {native: name for name, native in preset.splits.items()}
    split = names.get(spec.split, spec.split)
    return Spec(preset.format, preset.path, spec.revision or preset.revision, split)
