"""Hugging Face data sets: from the hub, or a folder written by `save_to_disk`."""

import functools
import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

from rm_jax import store
from rm_jax.data.files import Rows
from rm_jax.data.splits import Table

# org/name, org/name:config or org/name:folder/
HUB_PATH = re.compile(
    r"(?P<id>[\w.-]+/[\w.-]+)(:((?P<folder>[\w./-]+)/|(?P<config>[\w.-]+)))?"
)
_COMMIT = re.compile("[0-9a-f]{40}")
# The branch where the hub keeps a copy of each data set, a folder for each config.
PARQUET = "refs/convert/parquet"


def hub_table(path: str, revision: str) -> Table:
    """A data set of the hub, downloaded once into the cache of `datasets`.

    The table's revision is the commit that its rows are of, 40 hex digits, whatever
    branch or tag was named. Rows in a cache that an old `datasets` made have no known
    commit: "unknown (...)" then, never another digest.

    Args:
      path: `org/name`, `org/name:config` or `org/name:folder/`.
      revision: branch, tag or commit; empty is the newest, offline the newest cached.

    Raises:
      ValueError: offline and not in the cache, or another revision there; no such data
        set; or it cannot be loaded.
      ImportError: `datasets` is not installed.
    """
    datasets = _datasets()
    parts = HUB_PATH.fullmatch(path)
    named = f"{path}@{revision}" if revision else path
    try:
        builder = datasets.load_dataset_builder(
            parts["id"],
            name=parts["config"],
            data_dir=parts["folder"],
            revision=revision or None,
        )
        commit = _commit(builder, parts["id"], revision)
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
    except (
        OSError,
        ValueError,
        RuntimeError,  # a loading script
        datasets.exceptions.DatasetsError,
    ) as error:
        raise ValueError(
            f"{named}: cannot be loaded from the hub: {error}{_hint(error)}"
        ) from error
    at = f"{path}@{commit}"
    return Table(parts["id"], at, at, commit, _readers(splits))


def _hint(error: Exception) -> str:
    if "scripts are no longer supported" not in str(error):
        return ""
    return f"; the hub may keep it as parquet files: org/name:CONFIG/@{PARQUET}"


def _commit(builder: Any, id: str, revision: str) -> str:
    """The commit that the builder's rows are of.

    `datasets` names the cache folder of prepared rows by their commit, and gives what
    it finds there, whatever the revision, when the hub cannot be reached.
    """
    folder = os.path.basename(builder.cache_dir)
    commit = folder if _COMMIT.fullmatch(folder) else f"unknown (cache folder {folder})"
    if revision and builder.name == "cache":
        wanted = _cached_commit(id, revision)
        if wanted != commit:
            raise ValueError(
                f"offline, and the cache of `datasets` holds {commit}, the revision "
                f"wanted is {wanted}: name what it holds or no revision, or download "
                "the other where there is a network"
            )
    return commit


def _cached_commit(id: str, revision: str) -> str:
    """What the revision was when the hub was last asked."""
    import huggingface_hub

    try:
        return huggingface_hub.resolve_revision(
            id, repo_type="dataset", revision=revision, local_files_only=True
        ).resolved
    except huggingface_hub.errors.RevisionResolutionError:
        return "not known here"


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
