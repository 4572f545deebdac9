"""The folder of a checkpoint: written in the background, read whole or not at all."""

import concurrent.futures
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rm_jax import backend, cluster, store
from rm_jax.manifest import DamagedCheckpoint, named, nested

SAVING = ".saving"  # ends the name of a local folder that is not on the disk yet


def start(
    path: str, arrays: Mapping[str, Any], manifest: Mapping[str, Any]
) -> Callable[[], None]:
    """Starts a save and returns what waits for it; returns once arrays may be donated.

    A local folder is given its name when all of it is on the disk: Orbax does not sync
    its small files, and a loss of power would leave them empty.

    Args:
      path: absolute, or a URL; must not exist.
      arrays: nested dicts of jax arrays.
      manifest: a JSON object.
    """
    if store.is_url(path):
        return backend.start_save(path, arrays, manifest)
    finish = backend.start_save(path + SAVING, arrays, manifest)

    def commit() -> None:
        finish()
        if cluster.first():
            store.sync(path + SAVING)
            store.move(path + SAVING, path)

    pool = concurrent.futures.ThreadPoolExecutor(1)  # not when the next save waits
    saving = pool.submit(commit)
    pool.shutdown(wait=False)
    return saving.result


def read(path: str, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The arrays of a folder, in the order of `wanted`.

    Args:
      path: of the folder.
      wanted: path in the state -> a jax.ShapeDtypeStruct; without a sharding the array
        goes to the first device.

    Raises:
      DamagedCheckpoint: it cannot be read, or an array is not there.
    """
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    place = lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=x.sharding or first
    )
    try:
        loaded = backend.load(path, nested({k: place(x) for k, x in wanted.items()}))
    except (jax.errors.JaxRuntimeError, MemoryError, PermissionError):
        raise  # the machine's fault, not the checkpoint's
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise DamagedCheckpoint(f"{path} cannot be read: {why:.500}") from error
    arrays, _ = named(loaded)
    for name, x in wanted.items():
        # An array that Orbax's metadata does not know is passed over without a word.
        got = arrays.get(name)
        if not isinstance(got, jax.Array) or (got.shape, got.dtype) != (
            x.shape,
            x.dtype,
        ):
            raise DamagedCheckpoint(f"{path}: {name} was not read")
    return {name: arrays[name] for name in wanted}
