"""Code from outside that a run uses: found by name, copied into the run directory.

A plug-in is a `package.module:function` of a config (`loss.name`, a key of
`loss.regularizers`, `model.arch`, the format of a SPEC), or a loss or regulariser that
a Python program handed to `train`. Its source file goes to RUN/plugins/, its sha256 to
run.json. The copies are for people to read: nothing is ever imported from there.
"""

import hashlib
import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any, NamedTuple

from rm_jax import store
from rm_jax.config import ConfigError
from rm_jax.data.mixture import specs_of
from rm_jax.data.sources import parse_spec
from rm_jax.losses import LOSSES, REGULARIZERS

FOLDER = "plugins"


class Plugin(NamedTuple):
    """Code of a run that is not rm_jax's.

    Attributes:
      kind: "loss", "regularizer", "arch" or "format".
      file: of the copy, relative to the run directory; "" where there is no source.
      source: content of the file.
      package: a package of which this is one file, the only one copied; else "".
      distribution: "name version" of what installed it; "" where nothing did.
      handed_over: whether a Python program gave it to `train`; then `source` is that
        of its functions alone, without what they close over.
    """

    kind: str
    file: str
    source: bytes
    package: str = ""
    distribution: str = ""
    handed_over: bool = False

    def to_json(self) -> dict[str, Any]:
        """The entry in run.json: everything but the source, which has its sha256."""
        values = self._asdict()
        sha = hashlib.sha256(values.pop("source")).hexdigest()
        return values | {"sha256": sha if self.file else ""}


def find(
    config: Any,
    losses: Mapping[str, Callable] = LOSSES,
    regularizers: Mapping[str, Any] = REGULARIZERS,
    run: str = "",
) -> dict[str, Plugin]:
    """ "KIND NAME" -> plug-in: all that the config names and rm_jax does not have.

    Args:
      config: of the run.
      losses, regularizers: as handed to `train`.
      run: a run directory whose copy an error may point to.

    Raises:
      ConfigError: a module that cannot be imported or has no file.
    """
    tables = {"loss": (losses, LOSSES), "regularizer": (regularizers, REGULARIZERS)}
    found = {}
    for kind, name in _names(config):
        table, own = tables.get(kind, ({}, {}))
        if name in table and table[name] is not own.get(name):
            found[f"{kind} {name}"] = _handed_over(kind, name, table[name])
        elif name not in table and ":" in name and not name.startswith("rm_jax."):
            found[f"{kind} {name}"] = _imported(kind, name, run)
    return found


def copy(workdir: str, found: Mapping[str, Plugin]) -> None:
    """Writes the source files into the run directory."""
    for plugin in found.values():
        if plugin.file:
            path = store.join(workdir, plugin.file)
            store.makedirs(path.rpartition("/")[0])
            store.write_bytes(path, plugin.source)


def check_same(
    workdir: str | None, info: Mapping[str, Any], found: Mapping[str, Plugin]
) -> None:
    """Refuses to continue a run with other code than it began with.

    Args:
      workdir: the run directory.
      info: its run.json; {} where there is none yet.
      found: the plug-ins as they are now.

    Raises:
      ConfigError: naming the plug-in, its copy and the way out.
    """
    for name, plugin in found.items() if info else ():
        old, new = info["plugins"].get(name, {}), plugin.to_json()
        if old.get("sha256") != new["sha256"]:
            kept = store.join(workdir, old["file"]) if old.get("file") else "not kept"
            raise ConfigError(
                f"{name}: its code has changed since {workdir} began "
                f"(sha256 {old.get('sha256', '')[:12]} -> {new['sha256'][:12]}): bring "
                f"the old code back (its copy: {kept}), or choose another --workdir"
            )


def _names(config: Any) -> Iterator[tuple[str, str]]:
    """Kind and name of everything that may be a plug-in."""
    yield "loss", config.loss.name
    regularizers = dict(config.loss).get("regularizers", {})
    yield from (("regularizer", name) for name in regularizers)
    yield "arch", config.model.arch
    for specs in specs_of(config.data).values():
        yield from (("format", parse_spec(spec).format) for spec in specs.values())


def _imported(kind: str, name: str, run: str) -> Plugin:
    module, _, attribute = name.partition(":")
    try:
        getattr(imported := importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # importing runs a module
        raise ConfigError(
            f"{kind} {name}: cannot be imported: {type(error).__name__}: {error}; is "
            f"its folder installed or on PYTHONPATH?{_kept(run, f'{kind} {name}')}"
        ) from error
    try:
        file = inspect.getsourcefile(imported) or ""
    except TypeError:  # a module without a file
        file = ""
    if not os.path.isfile(file):
        raise ConfigError(
            f"{kind} {name}: {module} has no source file to keep a copy of: write it "
            "into one, e.g. my_losses.py"
        )
    parts = module.split(".")
    inside = os.path.basename(file) == "__init__.py"
    copied = "/".join([*parts, "__init__"] if inside else parts)
    return Plugin(
        kind=kind,
        file=f"{FOLDER}/{copied}.py",
        source=store.read_bytes(file),
        package=parts[0] if inside or len(parts) > 1 else "",
        distribution=_distribution(parts[0]),
    )


def _kept(run: str, name: str) -> str:
    """Where a run keeps a copy of a plug-in, as the end of an error."""
    path = store.join(run, "run.json")
    if not run or not store.exists(path):
        return ""
    entry = store.read_json(path).get("plugins", {}).get(name)
    if not entry:
        return ""
    folder = store.join(run, FOLDER)
    part = f", one file of the package {entry['package']}" if entry["package"] else ""
    return (
        f" The run keeps a copy, {store.join(run, entry['file'])}{part}: read it, then "
        f"put {folder} on PYTHONPATH"
    )


def _distribution(package: str) -> str:
    names = metadata.packages_distributions().get(package, ())
    return ", ".join(f"{name} {metadata.version(name)}" for name in sorted(set(names)))


def _handed_over(kind: str, name: str, value: Any) -> Plugin:
    parts = [part for part in value if part] if isinstance(value, tuple) else [value]
    try:
        source = "\n\n".join(inspect.getsource(part) for part in parts).encode()
    except (OSError, TypeError):  # made by exec, or no function of Python
        return Plugin(kind, "", b"", handed_over=True)
    file = re.sub(r"[^\w.-]", "_", f"{kind}_{name}.py")
    return Plugin(kind, f"{FOLDER}/handed_over/{file}", source, handed_over=True)
