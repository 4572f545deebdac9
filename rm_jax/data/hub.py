"""Hugging Face data sets: from the hub, or a folder written by `save_to_disk`."""

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

from rm_jax import store
from rm_jax.data.files import Rows
from rm_jax.data.splits import Table


def hub_table(id: str, revision: str) -> Table:
    """A data set of the hub, downloaded once into the cache of `datasets`.

    Args:
      id: `org/name`.
      revision: branch, tag or sha; empty is the newest. It is resolved to a sha.

    Raises:
      ValueError: offline and not in the cache, no such data set, or it cannot be
        loaded.
      ImportError: `datasets` is not installed.
    """
    datasets = _datasets()
    named = f"{id}@{revision}" if revision else id
    try:
        builder = datasets.load_dataset_builder(id, revision=revision or None)
        builder.download_and_prepare()
        splits = builder.as_dataset()
    except datasets.exceptions.DatasetNotFoundError as error:
        raise ValueError(
            f"{named}: no local path, and the Hugging Face hub has no such data set or "
            "revision, or wants a login"
        ) from error
    except ConnectionError as error:
        raise ValueError(
            f"{named}: offline: no local path of that name, not in the cache of "
            "`datasets`, and the Hugging Face hub cannot be reached; download the data "
            "where there is a network and give a local path"
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{named}: cannot be loaded from the hub: {error}") from error
    sha = str(builder.hash)
    return Table(id, f"{id}@{sha}", f"{id}@{sha}", sha, _readers(splits))


def is_saved_dataset(path: str) -> bool:
    """Whether `datasets` wrote the folder, one data set or several splits."""
    names = ("dataset_dict.json", "dataset_info.json")
    return any(store.exists(store.join(path, n)) for n in names) and any(
        name.endswith("state.json") for name in store.walk(path)
    )


def saved_table(path: str) -> Table:
    """A folder written by `save_to_disk`; one without splits is `train`.

    Raises:
      ValueError: a file of it is damaged.
      ImportError: `datasets` is not installed.
    """
    datasets = _datasets()
    try:
        loaded = datasets.load_from_disk(path)
    except (ImportError, PermissionError):
        raise
    except Exception as error:  # whatever a damaged file raises there, with its folder
        raise ValueError(
            f"{path}: a folder of save_to_disk that cannot be loaded: "
            f"{type(error).__name__}: {error!s:.300}: write it again"
        ) from error
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    name = path.rstrip("/").rpartition("/")[2]
    return Table(name, path, folder_digest(path), "", _readers(splits))


def folder_digest(path: str) -> str:
    """Sha256 over the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for name in store.walk(path):
        digest.update(f"{name}\0{store.sha256_file(store.join(path, name))}\0".encode())
    return digest.hexdigest()


def _readers(splits: Mapping[str, Any]) -> dict[str, Any]:
    return {name: functools.partial(_rows, rows) for name, rows in splits.items()}


def _rows(dataset: Any) -> Rows:
    yield from enumerate(dataset, start=1)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Hugging Face data sets need `datasets`: pip install 'rm_jax[data]'"
        ) from error
    return datasets
