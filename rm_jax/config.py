"""Configs: load, override, validate, freeze. A config is data; a run's is JSON.

>>> config = load("rm_jax:quickstart")
>>> override(config, "batch.examples", "64")
>>> validate(config).batch.examples
64
"""

import ast
import contextlib
import difflib
import importlib.util
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from rm_jax import agreement, jsontext, limits, schemas, seal, store
from rm_jax.limits import ConfigError, Duration, parse_duration
from rm_jax.shares import check_train

__all__ = [
    "ConfigError",
    "Duration",
    "flatten",
    "load",
    "locate",
    "override",
    "parse_duration",
    "validate",
]

# Sections whose keys depend on a choice made in them; checked where they are read.
MIXTURE = "data.train"  # text, or such a section
RUNS = "model.init"  # text, or several
_COLUMN = re.compile(r"data\.columns\.(.*)")
OPEN = (
    "data.eval", "data.columns", "data.world", "loss", "data.audit", "model.head",
    MIXTURE,
)  # fmt: skip
ALWAYS = ("model.head.name", "model.head.init")  # whatever is chosen


def locate(address: str) -> str:
    """The file of "path.py", "path.json", a run directory or "rm_jax:name"."""
    package, colon, name = address.partition(":")
    if package == "rm_jax" and colon:
        here = pathlib.Path(__file__).parent
        folders = (here / "_configs", here.parent / "configs")  # installed, in the tree
        files = {p.stem: p for folder in folders for p in folder.glob("*.py")}
        if name not in files:
            known = sorted(files.keys() - {"__init__"})
            raise ConfigError(f"no config {address!r}; known: {known}")
        return str(files[name])
    path = address if store.is_url(address) else str(pathlib.Path(address))
    if store.is_dir(path):
        path = store.join(path, "config.json")
    if not store.exists(path):
        raise ConfigError(
            f"no config file {address!r}: give FILE.py[:ARG], a config.json, a run "
            "directory or rm_jax:NAME[:ARG]"
        )
    return path


def load(address: str) -> ConfigDict:
    """Loads a config: a Python file with `get_config`, or a run's config.json.

    Args:
      address: "path/x.py", "path/x.py:arg", "rm_jax:name", "rm_jax:name:arg", a run
        directory or its config.json. A .py file is code and is executed; JSON is data.

    Raises:
      ConfigError: naming the file, whatever went wrong in it.
    """
    head, arg = address, ""
    if not store.is_url(address) and not store.exists(address):
        fixed = "rm_jax:" if address.startswith("rm_jax:") else ""
        name, _, arg = address[len(fixed) :].partition(":")
        head = fixed + name
    path = locate(head)
    if path.endswith(".py"):
        if store.is_url(path):
            raise ConfigError(f"{path}: a .py config is code: copy it here and read it")
        return _from_python(path, arg)
    if not path.endswith(".json"):
        raise ConfigError(f"{path}: want a .py or .json file")
    if arg:
        raise ConfigError(f"{address!r}: a JSON config takes no argument")
    return _from_json(path)


def module_of(path: str) -> types.ModuleType:
    """Runs a Python file; its folder is not searched for what it imports.

    Raises:
      ConfigError: naming the file and the line, whatever went wrong in it.
    """
    name = f"_config_{pathlib.Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    with named(path):
        spec.loader.exec_module(module)
    return module


def _from_python(path: str, arg: str) -> ConfigDict:
    module = module_of(path)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no function get_config(arg)")
    with named(path):
        config = module.get_config(arg)
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config gave {config!r:.80}, want a ConfigDict")
    return config.as_configdict() if isinstance(config, FrozenConfigDict) else config


def _from_json(path: str) -> ConfigDict:
    """The base config with a JSON file's values: types as in base (tuples, floats).

    A knob that the file lacks, as one of an earlier rm_jax may, has today's default; a
    line on stderr says so.
    """
    text, config = store.read_text(path), load("rm_jax:base")
    with named(path):
        values = jsontext.read(text)
        if not isinstance(values, dict):
            raise ConfigError(f"want a JSON object, got {type(values).__name__}")
        version = values.get(schemas.KEY, 1)  # first: a newer file has unknown keys
        if why := schemas.problem("config.json", version):
            raise ConfigError(why)
        values = seal.opened(values)
        values = flatten(values)
        for name in OPEN:  # what the file leaves out of such a section is not in it
            if any(_below(key, name) for key in values):
                _assign(config, name, ConfigDict(), _plain)
        if lacking := _lacking(config, values):
            print(f"{path} lacks knobs; taken: {', '.join(lacking)}", file=sys.stderr)
        for key, value in values.items():
            _assign(config, key, value, _plain)
    return config


def _lacking(config: ConfigDict, values: Mapping[str, Any]) -> list[str]:
    """What of the base config a file's values leave as it is, "key = value"."""
    given = {name for name in OPEN for key in values if _below(key, name)}
    return [
        f"config.{key} = {value!r}"
        for key, value in flatten(config.to_dict()).items()
        if key not in values and not any(_below(key, name) for name in given)
    ]


@contextlib.contextmanager
def named(path: str) -> Iterator[None]:
    """Whatever goes wrong inside is a ConfigError that names the file, and the line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        calls = traceback.extract_tb(error.__traceback__)
        names = path, store.absolute(path)
        lines = [call.lineno for call in calls if call.filename in names]
        where = f"{path}:{lines[-1]}" if lines else path
        raise ConfigError(f"{where}: {_why(error)}") from error


def _why(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"exit({error.code!r}) is called: want get_config(arg) to return"
    if isinstance(error, RecursionError):
        return f"RecursionError: {error}: it is nested too deep, or calls itself"
    if isinstance(error, ValueError | AttributeError) and str(error):
        return str(error)  # says what is wrong, e.g. with a key that is not there
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"a.b": value}; an empty mapping stays a value."""
    out = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            out.update(flatten(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def override(config: ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key; text is read as the type the key has now.

    Raises:
      ConfigError: unknown key (with the nearest known one) or wrong type.
    """
    _assign(config, key, value, _literal)


def _assign(
    config: ConfigDict, key: str, value: Any, read: Callable[[str, Any], Any]
) -> None:
    *parents, last = key.split(".")
    node = config
    for depth, name in enumerate(parents):
        if name not in node and _is_open(".".join(parents[:depth])):
            node[name] = ConfigDict()
        if name not in node or not isinstance(node[name], ConfigDict):
            raise _unknown(key, config)
        node = node[name]
    is_open = _is_open(".".join(parents))
    if last not in node and not is_open:
        raise _unknown(key, config)
    now = node.get(last)
    if key in (MIXTURE, RUNS):
        node[last] = read(key, value)
        return
    if is_open and (now is None or isinstance(now, int | float)):
        with node.unlocked(), node.ignore_type():
            node[last] = read(key, value)
        return
    node[last] = _as_type(key, value, now, read)


def _is_open(path: str) -> bool:
    return any(_below(path, name) for name in OPEN)


def _below(key: str, name: str) -> bool:
    """Whether a key is a section, or in it."""
    return key == name or key.startswith(f"{name}.")


def _unknown(key: str, config: ConfigDict) -> ConfigError:
    known = list(flatten(config.to_dict()))
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    return ConfigError(
        f"unknown key config.{key:.80}; did you mean {near or known[:5]}?"
    )


def _literal(key: str, value: Any) -> Any:
    """What text says: JSON of a mapping, another Python literal, else the text itself.

    Raises:
      ConfigError: it begins as a mapping and is not JSON; says where it breaks.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = jsontext.read_object(f"config.{key}", value)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    elif isinstance(value, str):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return value
    return _plain(key, value)


def _plain(key: str, value: Any) -> Any:
    """Mappings as ConfigDict, lists as tuples, all the way down."""
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str) or "." in name:
                raise ConfigError(
                    f"config.{key} has a name {name!r:.80}: want text without a dot"
                )
        return ConfigDict({k: _plain(f"{key}.{k}", v) for k, v in value.items()})
    if isinstance(value, list | tuple):
        return tuple(_plain(key, v) for v in value)
    return value


def _as_type(
    key: str, value: Any, now: Any, read: Callable[[str, Any], Any] = _plain
) -> Any:
    """`value` as the type of `now`: an int may stand for a float."""
    if isinstance(now, str):
        if not isinstance(value, str):
            raise ConfigError(f"config.{key} = {value!r}: want text like {now!r}")
        return value
    new = read(key, value)
    if isinstance(now, ConfigDict) and not isinstance(new, Mapping | ConfigDict):
        raise ConfigError(
            f"config.{key} = {value!r:.200}: this is a section of {sorted(now)}; set "
            f"one of them, e.g. config.{key}.NAME"
        )
    if isinstance(now, float) and isinstance(new, int) and not isinstance(new, bool):
        new = float(new)
    if type(new) is not type(now) and not isinstance(now, ConfigDict):
        raise ConfigError(
            f"config.{key} = {value!r:.200}: want {type(now).__name__} like {now!r}, "
            f"got {type(new).__name__}"
        )
    return new


def validate(config: ConfigDict) -> FrozenConfigDict:
    """Checks every value that can be checked without data or devices.

    Raises:
      ConfigError: the first key that is missing, unknown, of the wrong type or out of
        range, with its value, the limit and what would do.
    """
    if isinstance(config.data.train, dict):  # as a .py config may well write it
        mixture = _plain(MIXTURE, config.data.train)
        config = config.copy_and_resolve_references()
        config.data.train = mixture
    base = flatten(load("rm_jax:base").to_dict())
    values = flatten(config.to_dict())
    for key in values:
        parent = key.rpartition(".")[0]
        if key not in base and not _is_open(parent) and key not in OPEN:
            raise _unknown(key, load("rm_jax:base"))
    for key, want in base.items():
        if key not in values:
            if key in OPEN or _is_open(key.rpartition(".")[0]) and key not in ALWAYS:
                continue
            raise ConfigError(f"config.{key} is missing; its default is {want!r}")
        if not isinstance(want, dict) and key not in OPEN and key != RUNS:
            _as_type(key, values[key], want)
    for key, column in values.items():
        field = _COLUMN.fullmatch(key)
        if field and ("." in field[1] or not isinstance(column, str)):
            raise ConfigError(
                f"config.{key} = {column!r:.80}: want text in quotes, the name of a "
                "column"
            )
    limits.check(values)
    agreement.check(values)
    check_train(config.to_dict()["data"]["train"])
    return FrozenConfigDict(config)
