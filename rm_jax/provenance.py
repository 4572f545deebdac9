"""run.json: what made a run, so that it can be made again, or told from another."""

import datetime
import hashlib
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

from rm_jax import schemas, store

HERE = pathlib.Path(__file__).parent
# Whatever the user's git config says: a patch that `git apply` takes.
DIFF = ("diff", "--binary", "--no-ext-diff", "--no-textconv", "--no-color",
        "--src-prefix=a/", "--dst-prefix=b/")  # fmt: skip
# Those not installed are left out.
PACKAGES = (
    "rm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore",
    "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "numpy", "scipy", "ml_dtypes",
    "ml-collections", "pyarrow", "transformers", "tokenizers", "jinja2", "datasets",
    "huggingface_hub", "tensorflow-datasets", "array_record", "fsspec", "gcsfs",
)  # fmt: skip
# Settings of jax that change the bits of a run.
JAX = (
    "jax_default_matmul_precision", "jax_default_prng_impl", "jax_disable_jit",
    "jax_enable_x64", "jax_threefry_partitionable",
)  # fmt: skip
UNKNOWN = "unknown: "  # report/diff.py knows what begins so
GIT_WITHIN = 10  # seconds
ENVIRONMENT = ("XLA_FLAGS", "JAX_PLATFORMS", "LIBTPU_INIT_ARGS", "OMP_NUM_THREADS")


class GitError(RuntimeError):
    """git did not say what it was asked."""


def run_record(
    config: Any, text: str, sessions: list[dict[str, Any]], more: Mapping[str, Any]
) -> dict[str, Any]:
    """run.json: what a run is made of, and the sessions that made it.

    Args:
      config: of the run.
      text: config.json.
      sessions: of `add_session`, so far.
      more: data, contract, tokenizer, plug-ins, sizes.
    """
    seeds = {k: v for k, v in config.to_dict().items() if k.endswith("_seed")}
    body = {
        "schema_versions": schemas.line_versions(),
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "seeds": seeds,
        "sessions": sessions,
        **more,
    }
    return schemas.stamped("run.json", body)


def sets_record(sets: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json says of the token sets.

    Args:
      sets: name -> TokenSet.
    """
    keys = ("source", "audit", "counts", "examples", "tokens")
    return {
        name: {
            **{k: data.meta[k] for k in keys},
            "fingerprints": fingerprints(data),
            "cache": data.directory.name,
        }
        for name, data in sets.items()
    }


def fingerprints(data: Any) -> dict[str, str]:
    """Source -> fingerprint, of a TokenSet; the only source of no mixture is ""."""
    source = data.meta["source"]
    if not data.sources:
        return {"": source["fingerprint"]}
    return {name: source[name]["fingerprint"] for name in data.sources}


def add_session(path: str, step: int, more: Mapping[str, Any]) -> None:
    """Adds to a run.json that a process starts at `step`.

    A session with the same code, packages, devices and command as the one before it is
    that one, started once more.

    Args:
      path: of run.json.
      step: steps that are done.
      more: what else may change between sessions: the mesh.
    """
    info = schemas.checked("run.json", store.read_json(path), path)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    start = {"step": step, "time": now}
    new, sessions = {**this_process(), **more}, info["sessions"]
    if sessions and {k: v for k, v in sessions[-1].items() if k != "starts"} == new:
        sessions[-1]["starts"].append(start)
    else:
        sessions.append({"starts": [start], **new})
    store.write_sealed(path, info)


def this_process() -> dict[str, Any]:
    """What runs here: command, code, versions of packages, devices, settings."""
    devices = jax.devices()
    return {
        "argv": sys.argv,
        "folder": os.getcwd(),
        "code": code(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "runtime": " ".join(devices[0].client.platform_version.split()),
            "count": len(devices),
            "processes": jax.process_count(),
            "cpus": os.cpu_count(),
        },
        "jax": {name: getattr(jax.config, name) for name in JAX},
        "environment": {k: os.environ[k] for k in ENVIRONMENT if k in os.environ},
    }


def versions() -> dict[str, str]:
    """Version of each of PACKAGES that is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code() -> dict[str, str]:
    """The code of rm_jax: sha256 of it, and where it is a git checkout its commit.

    `dirty_diff` is what `git apply` makes of the commit the code that ran; new files
    are in it, too. A checkout that merely contains the installed package is not it.
    Both are UNKNOWN and why, where git cannot say.
    """
    found = {"sha256": package_sha256(), "commit": "", "dirty_diff": ""}
    if not any(os.path.lexists(folder / ".git") for folder in HERE.parents):
        return found
    try:
        return found | _checkout()
    except GitError as error:
        unknown = f"{UNKNOWN}{error}"
        return found | {"commit": unknown, "dirty_diff": unknown}


def _checkout() -> dict[str, str]:
    """Commit and dirty_diff of the checkout that rm_jax is part of; {} of no part."""
    if not git("ls-files", "--", pathlib.Path(__file__).name):
        return {}
    top = git("rev-parse", "--show-toplevel").rstrip("\n")
    at_top = lambda *words: git(*words, folder=top)
    ours = os.path.relpath(HERE, top), "configs", "experiments"
    new = at_top("ls-files", "--others", "--exclude-standard", "-z", "--", *ours)
    added = [
        at_top(*DIFF, "--no-index", "--", os.devnull, name)
        for name in new.split("\0")
        if name
    ]
    diff = "".join([at_top(*DIFF, "HEAD"), *added])
    return {"commit": git("rev-parse", "HEAD").strip(), "dirty_diff": diff}


def package_sha256() -> str:
    """Of the names and contents of rm_jax's modules, the same in a tree and a wheel."""
    digest = hashlib.sha256()
    for path in sorted(HERE.rglob("*.py")):
        name = path.relative_to(HERE).as_posix()
        if not name.startswith(("_configs/", "_experiments/")):  # only in a wheel
            digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def git(*words: str, folder: str | os.PathLike | None = None) -> str:
    """Output of a git command here or in a folder.

    Raises:
      GitError: no git, no answer in GIT_WITHIN, or a failure.
    """
    name = f"git {words[0]}"
    try:
        done = subprocess.run(
            ["git", "-C", folder or HERE, *words],
            capture_output=True,
            timeout=GIT_WITHIN,
        )
    except subprocess.TimeoutExpired:
        raise GitError(f"{name}: no answer in {GIT_WITHIN} s") from None
    except OSError as error:
        raise GitError(f"{name}: {error.strerror}") from None
    differs = words[0] == "diff" and done.returncode == 1
    if done.returncode and not differs:
        why = " ".join(done.stderr.decode(errors="replace").split())
        raise GitError(f"{name}: exit code {done.returncode}: {why:.200}")
    return done.stdout.decode(errors="replace")
