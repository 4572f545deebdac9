"""A model folder of Hugging Face: config.json and safetensors, never a pickle."""

import functools
import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from rm_jax import store
from rm_jax.weights.tensors import Source, Tensor, WeightsError, finite, read_span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ONE = "model.safetensors"
INDEX = "model.safetensors.index.json"
OTHERS = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")
FLOATS = ("F32", "F16", "BF16")


def open_folder(folder: str, where: str) -> Source:
    """The model in a local folder.

    Raises:
      WeightsError: no config.json or no safetensors, code of the model's own, a shard
        outside the folder, or a file that is damaged or does not fit the index.
    """
    names = store.listdir(folder)
    if "adapter_config.json" in names:
        raise WeightsError(
            f"{folder}: a PEFT adapter (adapter_config.json), not a model: merge it "
            "into its base (merge_and_unload) and save that"
        )
    config = _object(folder, "config.json")
    extra = "tokenizer_config.json"
    for name, values in (
        ("config.json", config),
        (extra, _object(folder, extra) if extra in names else {}),
    ):
        if "auto_map" in values:
            raise WeightsError(
                f"{folder}/{name}: auto_map: the model brings code of its own, which "
                "is never run: take one whose architecture transformers has"
            )
    if INDEX in names:
        tensors, files = _sharded(folder)
    elif ONE in names:
        path = _inside(folder, ONE)
        tensors = {name: _tensor(path, name, *at) for name, at in _header(path).items()}
        files = (path,)
    else:
        raise WeightsError(_nothing(folder, names))
    tokenizer = functools.partial(_tokenizer, folder)
    has = "tokenizer.json" in names or extra in names
    return Source(where, config, tensors, tokenizer if has else None, files)


def _object(folder: str, name: str) -> dict[str, Any]:
    path = store.join(folder, name)
    try:
        values = store.read_json(path)
    except RecursionError as error:
        raise WeightsError(f"{path}: not JSON: too deep") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{error}: want a model folder of Hugging Face") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: want an object, got {values!r:.80}")
    return values


def _nothing(folder: str, names: Iterable[str]) -> str:
    others = sorted(n for n in names if n.endswith(OTHERS))
    if not others:
        return f"{folder}: neither {ONE} nor {INDEX} in it"
    return (
        f"{folder}: no safetensors, only {', '.join(others[:3])}: such files can run "
        "code and are never unpickled: convert the model where it is trusted, with "
        "save_pretrained of transformers, and give that folder"
    )


def _sharded(folder: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors of the shards; what they hold and what the index says must be one.

    Beside them the shards' paths.
    """
    path = store.join(folder, INDEX)
    shards = _object(folder, INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(
        isinstance(file, str) for file in shards.values()
    ):
        raise WeightsError(f"{path}: want weight_map, from tensors to file names")
    found, owner, files = {}, {}, []
    for file in sorted(set(shards.values())):
        shard = _inside(folder, file)
        files.append(shard)
        for name, at in _header(shard).items():
            if name in owner:
                raise WeightsError(
                    f"{folder}: tensor {name} twice: in {owner[name]} and in {file}"
                )
            owner[name] = file
            found[name] = _tensor(shard, name, *at)
    for name in sorted(set(shards) | set(found)):
        if owner.get(name) != shards.get(name):
            there, said = owner.get(name, "no shard"), shards.get(name, "no shard")
            raise WeightsError(f"{path}: tensor {name} is in {there}, not in {said}")
    return found, tuple(files)


def _inside(folder: str, file: str) -> str:
    """Path of a file of the folder.

    A link may lead inside the folder, or, in the hub's cache, to its blobs.

    Raises:
      WeightsError: a path, not a name; no such file; or a link that leads outside.
    """
    path = store.join(folder, file)
    if os.path.basename(file) != file or file in ("", ".", "..") or "\\" in file:
        raise WeightsError(f"{folder}: shard {file!r}: want the name of a file in it")
    if not os.path.isfile(path):
        why = "which is no file" if os.path.lexists(path) else "which is not there"
        raise WeightsError(f"{folder}: want {file:.80}, {why}")
    home, real = os.path.realpath(folder), os.path.realpath(path)
    above = os.path.dirname(home)
    allowed = [home]
    if os.path.basename(above) == "snapshots":
        allowed.append(os.path.join(os.path.dirname(above), "blobs"))
    if not any(real.startswith(root + os.sep) for root in allowed):
        raise WeightsError(f"{path}: a link that leads outside the folder, to {real}")
    return path


def _header(path: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every tensor of a safetensors file, its header checked."""
    try:
        with safe_open(path, "numpy") as file:
            names = list(file.keys())
            slices = {name: file.get_slice(name) for name in names}
            found = {
                name: (tuple(s.get_shape()), s.get_dtype())
                for name, s in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a whole safetensors file ({error}): fetch it again"
        ) from error
    # Of a name that the header has twice, safetensors silently takes one.
    size = int.from_bytes(read_span(path, 0, 8), "little")
    for name, times in _counts(read_span(path, 8, size)).items():
        if times > 1:
            raise WeightsError(f"{path}: tensor {name} twice in the header")
    return found


def _counts(header: bytes) -> Mapping[str, int]:
    """How often each key of the outer object is there."""
    last = {}

    def count(pairs):
        nonlocal last  # the outer object is the last to end
        last = {}
        for key, _ in pairs:
            last[key] = last.get(key, 0) + 1

    json.loads(header, object_pairs_hook=count)
    return last


def _tensor(path: str, name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    def read() -> np.ndarray:
        if dtype not in FLOATS:
            raise WeightsError(
                f"{path}: tensor {name} is {dtype}: want one of {', '.join(FLOATS)}: "
                "convert it where it came from"
            )
        try:
            with safe_open(path, "numpy") as file:
                array = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: tensor {name}: {error}") from error
        return finite(array, name, path)

    return Tensor(shape, dtype, read)


def _tokenizer(folder: str) -> "PreTrainedTokenizerFast":
    """The folder's tokenizer; nothing of the network, no code of its own."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, use_fast=True, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # the Rust library raises nothing more precise
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise WeightsError(f"{folder}: no tokenizer to be had: {why:.300}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise WeightsError(
            f"{folder}: the tokenizer is a {type(tokenizer).__name__}, not a fast one: "
            "convert it to tokenizer.json"
        )
    return tokenizer
