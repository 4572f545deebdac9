"""`rm-jax export`: a run as a folder that AutoModelForSequenceClassification loads.

Members become a folder each, and reducer.json says how their scores become one. What
such a folder cannot hold is refused by name.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from rm_jax import members, pretrained, store
from rm_jax.export import adapter, card, files
from rm_jax.export.files import ExportError
from rm_jax.manifest import named
from rm_jax.models import hf, hf_names, hf_out, lora
from rm_jax.models.arch import ArchConfig
from rm_jax.serve.scorer import Scorer

SHARD = 4 * 2**30  # bytes of a file


def export(
    run: str,
    to: str,
    dtype: str = "float32",
    step: int | str | None = None,
    shard: int = SHARD,
    as_adapter: bool = False,
) -> list[str]:
    """Writes a run as folders of Hugging Face; returns them.

    Args:
      run: a run directory.
      to: a new folder; with members of folders member_0, member_1, ... and
        reducer.json.
      dtype: of the weights, a name in files.DTYPES; scores in golden.jsonl are of
        float32.
      step: of the checkpoint, as `Scorer` takes it.
      shard: most bytes of a safetensors file of a whole model.
      as_adapter: the adapters and the head as PEFT saves them, not a whole model.

    Raises:
      ExportError: pooling, a head or a tokenizer that such a folder cannot hold; a run
        that is no adapter on top of a model of transformers.
      NotExportable: a trunk that transformers does not have.
      FileExistsError: `to` is there.
    """
    dtype = files.dtype_name(dtype)
    scorer = Scorer(run, step, dtype="float32")
    _check(scorer)
    if os.path.lexists(to):
        raise FileExistsError(f"{to} is there: choose a new folder")
    if as_adapter:
        bases = adapter.bases(scorer)
    else:
        config = hf_out.to_config(scorer.arch, scorer.contract.max_length)
    names = [""]
    if scorer.members is not None:
        names = [f"member_{i}" for i in range(scorer.members.count)]
    with store.new_folder(to) as scratch:
        for i, name in enumerate(names):
            folder, params = os.path.join(scratch, name), scorer.params
            if scorer.members is not None:
                os.makedirs(folder)
                params = members.take(params, scorer.members.share, i)
            pad = files.write_tokenizer(scorer, folder)
            rows = files.golden(scorer, i, folder)
            if as_adapter:
                text = adapter.write(scorer, bases[i], params, folder, dtype)
            else:
                text = _write(scorer, params, config, pad, folder, dtype, shard)
            files.write_others(scorer, rows, text, folder)
        if scorer.members is not None:
            found = {"reducer": scorer.reducer, "members": names}
            files.write_json(os.path.join(scratch, "reducer.json"), found)
    return [os.path.join(to, name) if name else to for name in names]


def _check(scorer: Scorer) -> None:
    arch = scorer.arch
    if arch.pooling != "last":
        raise ExportError(
            f"config.contract.pooling = {arch.pooling!r}: classifiers of transformers "
            "score the last token: train with pooling 'last', or serve with rm_jax"
        )
    if arch.head != "linear":
        raise ExportError(
            f"config.model.head.name = {arch.head!r}: a classifier's score is one "
            "product without a bias, 'linear': serve this head with rm_jax"
        )


def _write(
    scorer: Scorer,
    params: Any,
    config: Mapping[str, Any],
    pad: int,
    folder: str,
    dtype: str,
    shard: int,
) -> str:
    """A whole model into a folder that is there; gives the model card."""
    arch = scorer.arch
    params, arch = lora.merge(params, arch) if arch.lora_rank else (params, arch)
    config = _config(scorer, config, dtype, pad)
    files.write_json(os.path.join(folder, "config.json"), config)
    _weights(config, arch, params, folder, files.DTYPES[dtype], shard)
    return card.card(scorer, config["model_type"], dtype)


def _config(
    scorer: Scorer, trunk: Mapping[str, Any], dtype: str, pad: int
) -> dict[str, Any]:
    tokenizer, n = scorer.tokenizer, scorer.contract.normalisation
    return dict(trunk) | {
        "architectures": [hf.family(trunk).classifier],
        "num_labels": 1,
        # One entry, or transformers takes two labels.
        "id2label": {"0": "REWARD"},
        "label2id": {"REWARD": 0},
        "problem_type": "regression",  # vLLM gives the raw score only with it
        "pad_token_id": pad,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "dtype": dtype,
        "torch_dtype": dtype,
        "mean": float(n.mean),  # OpenRLHF's normalize_reward reads these two
        "std": float(n.std),
    }


def _weights(
    config: Mapping[str, Any],
    arch: ArchConfig,
    params: Any,
    folder: str,
    dtype: np.dtype,
    shard: int,
) -> None:
    """model.safetensors, or shards and their index; a shard at a time in memory."""
    flat = named(params)[0]
    where = pretrained.places(flat, arch)
    prefix = hf.family(config).prefix

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for rule in hf.rules(config, arch, tuple(where)):
            parts = [pretrained.part(flat, where[name]) for name in rule.ours]
            turned = hf_names.TURNS[rule.turn].to_theirs(arch, *parts)
            for name, x in zip(rule.theirs, turned, strict=True):
                yield prefix + name, np.ascontiguousarray(np.asarray(x).astype(dtype))
        yield "score.weight", np.asarray(flat["head"]).astype(dtype)[None]

    written: list[tuple[str, list[str]]] = []
    size = total = 0
    held: dict[str, np.ndarray] = {}

    def flush() -> None:
        name = f"part-{len(written)}.safetensors"
        save_file(held, os.path.join(folder, name), {"format": "pt"})
        written.append((name, list(held)))
        held.clear()

    for name, x in tensors():
        if held and size + x.nbytes > shard:
            flush()
            size = 0
        held[name] = x
        size, total = size + x.nbytes, total + x.nbytes
    flush()
    for name, _ in written:  # save_file leaves them to their owner alone
        os.chmod(os.path.join(folder, name), 0o644)
    if len(written) == 1:
        one = os.path.join(folder, "model.safetensors")
        os.replace(os.path.join(folder, written[0][0]), one)
        return
    index = {}
    for i, (old, names) in enumerate(written):
        new = f"model-{i + 1:05d}-of-{len(written):05d}.safetensors"
        os.replace(os.path.join(folder, old), os.path.join(folder, new))
        index |= dict.fromkeys(names, new)
    files.write_json(
        os.path.join(folder, "model.safetensors.index.json"),
        {"metadata": {"total_size": total}, "weight_map": index},
    )
