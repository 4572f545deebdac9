"""TFDS directories of records: written by `prepare`, read without TensorFlow.

Each example is one record as JSON text and its id, in array_record files.
"""

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rm_jax import store
from rm_jax.data.files import Rows
from rm_jax.data.hub import folder_digest
from rm_jax.data.schema import Record, record_to_dict
from rm_jax.data.splits import Table

_VERSION = "1.0.0"


def tfds_table(path: str) -> Table:
    """The rows of a TFDS directory that `write_tfds` made.

    Args:
      path: the version's folder, or one above it that holds no other.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: no TFDS directory below, several, a damaged one, or one of something
        else.
      ImportError: `tensorflow_datasets` is not installed.
    """
    folder = _version_folder(path)
    tfds, copy = _tfds(), None
    read = folder
    if store.is_url(folder):  # array_record reads local files only
        copy = tempfile.TemporaryDirectory(prefix="rm_jax.tfds.")
        read = store.join(copy.name, *folder.rstrip("/").split("/")[-2:])
        store.makedirs(store.join(copy.name, folder.rstrip("/").split("/")[-2]))
        store.fetch(folder, read)
    with _damage(folder):
        builder = tfds.builder_from_directory(read)
    if set(builder.info.features) != {"id", "record"}:
        raise ValueError(
            f"{folder}: holds {sorted(builder.info.features)}, not records; write it "
            "with rm-jax data prepare"
        )
    readers = {
        split: functools.partial(_rows, builder, split, copy)
        for split in builder.info.splits
    }
    return Table(builder.name, folder, folder_digest(folder), "", readers)


def write_tfds(
    splits: Mapping[str, Callable[[], Iterator[Record]]], out_dir: str, name: str
) -> str:
    """Writes records into `out_dir/name/1.0.0` and says where.

    Args:
      splits: name -> its records, written in their order.
      out_dir: folder of TFDS data sets, made when missing.
      name: of the data set: lower-case letters, digits and _.

    Raises:
      FileExistsError: the data set is there already; nothing is overwritten.
      ValueError: a name TFDS cannot take.
      ImportError: `tensorflow_datasets` is not installed.
    """
    if not (name.isidentifier() and name == name.lower()):
        raise ValueError(f"name {name!r}: want lower-case letters, digits and _")
    folder = store.join(out_dir, name)
    if store.exists(folder):
        raise FileExistsError(f"{folder}: exists; give another name or folder")
    tfds = _tfds()
    with store.new_folder(folder) as scratch:
        builder = _builder(tfds, splits, scratch, name)
        builder.download_and_prepare()
        for part in os.listdir(store.join(scratch, name)):
            os.rename(store.join(scratch, name, part), store.join(scratch, part))
        os.rmdir(store.join(scratch, name))
    return store.join(folder, _VERSION)


def _builder(tfds: Any, splits: Mapping, out_dir: str, name: str) -> Any:
    class Records(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Preference records as JSON text."""

        VERSION = _VERSION
        # No checksums of downloads to look up beside the code: that look-up imports
        # importlib_resources, which tensorflow_datasets 4.9.10 does not install.
        code_path = None

        def _info(self):
            text = tfds.features.Text()
            return tfds.core.DatasetInfo(
                builder=self,
                description="Preference records of rm_jax, one JSON object each.",
                features=tfds.features.FeaturesDict({"id": text, "record": text}),
                disable_shuffling=True,  # the order of the source, so the same twice
            )

        def _split_generators(self, dl_manager):
            return {split: _examples(make()) for split, make in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError("every split has its own generator")

    Records.name = name
    return Records(data_dir=out_dir, file_format="array_record")


def _examples(records: Iterator[Record]) -> Iterator[tuple[int, dict[str, str]]]:
    for i, record in enumerate(records):
        text = json.dumps(record_to_dict(record), ensure_ascii=False)
        yield i, {"id": record.id, "record": text}


def _rows(builder: Any, split: str, copy: Any) -> Rows:
    """Rows of a split; `copy` is the folder they lie in, deleted with its last user."""
    with _damage(str(builder.data_path)):
        source = builder.as_data_source(split)
        for i in range(len(source)):
            yield i + 1, json.loads(source[i]["record"])


@contextlib.contextmanager
def _damage(folder: str) -> Iterator[None]:
    """Re-raises whatever a damaged file raises with the folder's name."""
    try:
        yield
    except (ImportError, PermissionError):
        raise
    except Exception as error:
        raise ValueError(
            f"{folder}: damaged: {type(error).__name__}: {error!s:.300}: write it "
            "again with rm-jax data prepare"
        ) from error


def _version_folder(path: str) -> str:
    if not store.is_dir(path):
        raise FileNotFoundError(f"{path}: no such folder")
    names = [n for n in store.walk(path) if n.endswith("features.json")]
    if len(names) != 1:
        raise ValueError(
            f"{path}: want one TFDS data set, found {len(names)} {names[:5]}; give the "
            "folder that holds its dataset_info.json"
        )
    return os.path.dirname(store.join(path, names[0]))


def _tfds() -> Any:
    try:
        import array_record  # noqa: F401  tfds imports it only when it reads
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            "TFDS directories need tensorflow_datasets and array_record: pip install "
            "'rm_jax[data]'"
        ) from error
    return tensorflow_datasets
