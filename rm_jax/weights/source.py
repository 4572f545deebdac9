"""Opens weights by a spec.

source = open_source("hf:models/SmolLM2-135M")
source.config["hidden_size"], source.tensors["model.norm.weight"].read()
"""

import atexit
import contextlib
import functools
import os
import re

from rm_jax import store
from rm_jax.limits import FOREIGN
from rm_jax.weights import folder, gguf, llama2c
from rm_jax.weights.tensors import Source, WeightsError

KINDS = (
    '"hf:FOLDER" (config.json and safetensors), "hf:OWNER/NAME" or '
    '"hf:OWNER/NAME@REVISION" of the Hugging Face hub, "gguf:FILE", "llama2c:FILE" '
    "(llama2.c's .bin, tok*.bin beside it)"
)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# What is downloaded: nothing that is pickled, and no subfolders.
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt")
# One start opens a model several times: for its tokenizer, arch, parameters, sha256.
# So what is copied from a URL, and which commit a name of the hub is, is settled once
# for the process, and all of these are of the same files.
# Copies of what lies at URLs; they last as long as the process.
_copies = contextlib.ExitStack()
atexit.register(_copies.close)


def open_source(spec: str) -> Source:
    """The model that `spec` names (KINDS); FOLDER and FILE may be URLs.

    Reads the metadata of the files only; code that comes with a model is never run.

    Raises:
      WeightsError: an unknown spec, no such files, or files that cannot be taken.
      ImportError: `gguf` is not installed.
    """
    kind, _, path = spec.partition(":")
    if not spec.startswith(FOREIGN) or not path:
        raise WeightsError(f"weights {spec!r:.200}: known: {KINDS}")
    if kind == "hf" and not store.exists(path) and HUB_ID.fullmatch(path):
        return _from_hub(path)
    if not store.exists(path):
        raise WeightsError(f"weights {spec!r:.200}: no such path; known: {KINDS}")
    if store.is_dir(path) != (kind == "hf"):
        want = "a folder" if kind == "hf" else "a file"
        raise WeightsError(f"weights {spec!r:.200}: want {want}; known: {KINDS}")
    if kind == "llama2c":  # before the copy: the tokenizer lies beside it
        tokens = llama2c.tokenizer_beside(path)
        return llama2c.open_bin(_local(path), tokens and _local(tokens), spec)
    if kind == "hf":
        return folder.open_folder(_local(path), spec)
    local = _local(path)
    stat = os.stat(local)
    return _opened_gguf(local, spec, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _opened_gguf(path: str, spec: str, size: int, changed: int) -> Source:
    """Of a file of this size and date, whose metadata take seconds to read."""
    return gguf.open_gguf(path, spec)


@functools.cache
def _local(path: str) -> str:
    return _copies.enter_context(store.local(path))


def _from_hub(id: str) -> Source:
    """A model of the hub, of the commit that its name first was in this process."""
    path = _snapshot(id)
    name, commit = id.partition("@")[0], os.path.basename(path)
    return folder.open_folder(path, f"hf:{name}@{commit}")


@functools.cache
def _snapshot(id: str) -> str:
    """Folder of a model of the hub, in the cache of huggingface_hub."""
    import huggingface_hub

    name, _, revision = id.partition("@")
    try:
        return huggingface_hub.snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=list(PATTERNS),
            ignore_patterns=["*/*"],
        )
    except Exception as error:  # of several libraries: HTTP, files, the hub's own
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise WeightsError(
            f"weights 'hf:{id}': no such folder, and not to be had from the hub "
            f"({why:.300}); offline, give a local folder"
        ) from error
