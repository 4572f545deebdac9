"""Every import of jax or orbax that is experimental or changes between versions."""

from collections.abc import Callable, Mapping
from typing import Any

from orbax.checkpoint import v1 as ocp

MANIFEST_FILE = "manifest/data.json"
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder not yet renamed
FINISHED = "commit_success.txt"  # on object storage, which renames nothing, comes last


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
