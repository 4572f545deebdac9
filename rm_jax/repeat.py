"""Repeating a run: the hub commits that it read, and files that are others now.

>>> config = config_module.load("runs/a")  # doctest: +SKIP
>>> for line in pin(config, "runs/a", "runs/b"):  # doctest: +SKIP
...     print(line)
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rm_jax import rundir, store
from rm_jax.data import datasets
from rm_jax.data.hub import HUB_PATH
from rm_jax.data.mixture import parts_of
from rm_jax.data.specs import parse_spec, resolve

_COMMIT = re.compile("[0-9a-f]{40}")


def pin(config: Any, address: str, workdir: str) -> list[str]:
    """Names in a run's config the hub commits that the run read, and says so.

    A SPEC and a tokenizer of the hub get `@commit` of run.json, whatever branch or tag
    was named: a repeat reads the same rows though the hub has moved. A file is compared
    with the sha256 that run.json has of it.

    Args:
      config: of `config.load(address)`; changed in place.
      address: a run directory or its config.json; nothing happens for any other.
      workdir: of the new run; where it is the same run, nothing happens.

    Returns:
      A line for each change, each commit that is not known, each file that differs.
    """
    run = _run_of(address)
    if not run or store.absolute(run) == store.absolute(workdir):
        return []
    info = rundir.run_json(run)
    if not info:
        return []
    lines: list[str] = []
    for name, part in parts_of(config.data).items():
        read = _read(info, "train", name)
        lines += _differs(part.spec, read, config.data, part.columns)
        spec = _pinned(part.spec, read, lines)
        if name:
            config.data.train[name].spec = spec
        else:
            config.data.train = spec
    for name, spec in dict(config.data.eval.items()).items():
        if not spec.startswith("#"):  # else a split of the above
            read = _read(info, name, "")
            lines += _differs(spec, read, config.data, config.data.columns)
            config.data.eval[name] = _pinned(spec, read, lines)
    commit = info.get("tokenizer_commit", "")
    name, _, revision = config.contract.tokenizer.partition("@")
    if _COMMIT.fullmatch(commit) and revision != commit:
        config.contract.tokenizer = f"{name}@{commit}"
        lines.append(f"tokenizer {name}: commit {commit}, as {run} read it")
    return list(dict.fromkeys(lines))


def _run_of(address: str) -> str:
    """The run directory that an address names, "" of another config."""
    if store.is_dir(address):
        return address
    folder, _, name = address.rpartition("/")
    there = name == "config.json" and store.exists(address)
    return (folder or ".") if there else ""


def _read(info: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    """What run.json says of a source of a set; the only one of no mixture is ""."""
    found = info["data"].get(name, {}).get("source", {})
    return found.get(source, {}) if source else found


def _pinned(spec: str, read: Mapping[str, Any], lines: list[str]) -> str:
    """The SPEC at the commit that was read; appends what there is to say."""
    parsed, commit = parse_spec(spec), read.get("revision", "")
    if not commit or parsed.revision == commit:
        return spec
    if not _COMMIT.fullmatch(commit):
        lines.append(
            f"WARNING {spec}: the commit that the run read is {commit}: this reads "
            "what the hub has now; name a commit, @SHA, to be sure"
        )
        return spec
    lines.append(f"{spec}: commit {commit}, as the run read it")
    return str(parsed._replace(revision=commit))


def _differs(
    spec: str, read: Mapping[str, Any], data: Any, columns: Mapping[str, str]
) -> Iterator[str]:
    """A line where a local source has another content than the run read."""
    plain = resolve(parse_spec(spec))
    hub = HUB_PATH.fullmatch(plain.path) and not store.exists(plain.path)
    if not read.get("sha256") or read.get("revision") or hub:
        return
    try:
        now = datasets.open_source(spec, data, columns=columns).info["sha256"]
    except (OSError, ValueError, ImportError):
        return  # training will say what is wrong
    if now != read["sha256"]:
        yield (
            f"WARNING {spec}: its content is not what the run read: sha256 "
            f"{now[:12]}, it was {read['sha256'][:12]}"
        )
