"""Every import of jax or orbax that is experimental or changes between versions."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache
from orbax.checkpoint import v1 as ocp

MANIFEST_FILE = "manifest/data.json"
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder not yet renamed
FINISHED = "commit_success.txt"  # on object storage, which renames nothing, comes last


def initialize(dead_after: int, join_within: int, *address: Any) -> None:
    """jax.distributed.initialize; without an address jax detects the cluster.

    Args:
      dead_after: seconds without a heartbeat after which a process counts as dead.
      join_within: seconds in which all processes must have called this.
      address: coordinator, number of processes, number of this one.
    """
    jax.distributed.initialize(
        *address,
        initialization_timeout=join_within,
        heartbeat_timeout_seconds=dead_after,
    )


def barrier(name: str) -> None:
    """Returns when every process has called it with this name."""
    multihost_utils.sync_global_devices(name)


def gather(value: Any) -> np.ndarray:
    """The value of every process, on every process: [processes, ...]."""
    return multihost_utils.process_allgather(np.asarray(value))


def preempted(poll: int) -> bool:
    """Whether the processes agreed to stop at this poll; all ask for 0, 1, 2, ..."""
    return multihost_utils.reached_preemption_sync_point(poll)


def start_save(
    path: str, arrays: Mapping[str, Any], manifest: Mapping[str, Any]
) -> Callable[[], None]:
    """Starts writing nested arrays and a JSON object to a new folder.

    Returns when the arrays have left the devices, so they may be donated. A local
    folder has `path` as its name only once it is whole, until then UNFINISHED is added
    to it; on object storage it is whole once it has FINISHED in it.

    Args:
      path: absolute, or a URL; must not exist.
      arrays: nested dicts of jax arrays.
      manifest: a JSON object, to be found at MANIFEST_FILE below `path`.

    Returns:
      A function that waits for the end of the save and raises what went wrong.
    """
    with _context():
        saving = ocp.save_checkpointables_async(
            path, {"state": dict(arrays), "manifest": dict(manifest)}
        )
    return saving.result


def load(path: str, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the arrays named in `abstract` out of a folder of `start_save`.

    Args:
      path: absolute.
      abstract: nested dicts of jax.ShapeDtypeStruct with a sharding; arrays of the
        folder that it does not name are not read.
    """
    with _context():
        return ocp.load_checkpointables(path, {"state": dict(abstract)})["state"]


def _context() -> ocp.Context:
    # Without this registration a dict is saved as a tree of arrays.
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="manifest")
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.pytree.loading.partial_load = True
    return context


def set_compile_cache(folder: str) -> None:
    """Where jax keeps compiled programs from now on; "" is nowhere.

    jax looks once, at the first compilation, whether there is a folder: it is told to
    look again. Every program is kept, however quickly it was compiled.
    """
    jax.config.update("jax_compilation_cache_dir", folder or None)
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", 0.0 if folder else 1.0
    )
    compilation_cache.reset_cache()
