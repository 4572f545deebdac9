"""`rm-jax export`: a run as a folder that AutoModelForSequenceClassification loads.

Members become a folder each, and reducer.json says how their scores become one. What
such a folder cannot hold is refused by name.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from rm_jax import members, pretrained, store
from rm_jax.data.schema import Record, record_from_dict
from rm_jax.data.tokenizers import save_tokenizer
from rm_jax.export import card, texts
from rm_jax.manifest import named
from rm_jax.models import hf, hf_names, hf_out, lora
from rm_jax.models.arch import ArchConfig
from rm_jax.serve.scorer import Scorer

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}
SHARD = 4 * 2**30  # bytes of a file
# Tokens that may stand for padding: the first that there is, and that ends no text.
PADS = (
    "<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|endoftext|>",
    "<|reserved_special_token_0|>",  # Llama 3.0 has no other
)  # fmt: skip


class ExportError(ValueError):
    """A model that such a folder cannot hold; says what of it, and what would do."""


def export(
    run: str,
    to: str,
    dtype: str = "float32",
    step: int | str | None = None,
    shard: int = SHARD,
) -> list[str]:
    """Writes a run as folders of Hugging Face; returns them.

    Args:
      run: a run directory.
      to: a new folder; with members of folders member_0, member_1, ... and
        reducer.json.
      dtype: of the weights, a name in DTYPES; scores in golden.jsonl are of float32.
      step: of the checkpoint, as `Scorer` takes it.
      shard: most bytes of a safetensors file.

    Raises:
      ExportError: pooling, a head or a tokenizer that such a folder cannot hold.
      NotExportable: a trunk that transformers does not have.
      FileExistsError: `to` is there.
    """
    scorer = Scorer(run, step)
    _check(scorer)
    config = hf_out.to_config(scorer.arch, scorer.contract.max_length)
    if os.path.lexists(to):
        raise FileExistsError(f"{to} is there: choose a new folder")
    several = [None] if scorer.members is None else range(scorer.members.count)
    folders: list[str] = []
    with store.new_folder(to) as scratch:
        for member in several:
            folder = os.fspath(scratch)
            if member is not None:
                folder = os.path.join(folder, f"member_{member}")
                os.makedirs(folder)
            _write(scorer, member, config, folder, dtype, shard)
            folders.append(
                to if member is None else os.path.join(to, f"member_{member}")
            )
        if scorer.members is not None:
            _write_json(
                os.path.join(scratch, "reducer.json"),
                {
                    "reducer": scorer.reducer,
                    "members": [f"member_{i}" for i in several],
                },
            )
    return folders


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
    member: int | None,
    config: Mapping[str, Any],
    folder: str,
    dtype: str,
    shard: int,
) -> None:
    """One model into a folder that is there."""
    params, arch = scorer.params, scorer.arch
    if member is not None:
        params = members.take(params, scorer.members.share, member)
    params, arch = lora.merge(params, arch) if arch.lora_rank else (params, arch)
    pad = _tokenizer(scorer, folder)
    rows = _golden(scorer, member, folder)
    config = _config(scorer, config, dtype, pad)
    _write_json(os.path.join(folder, "config.json"), config)
    _weights(config, arch, params, folder, DTYPES[dtype], shard)
    contract = json.loads(scorer.contract.to_json())
    _write_json(os.path.join(folder, "contract.json"), contract)
    with open(os.path.join(folder, "golden.jsonl"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    here = pathlib.Path(__file__).parent
    shutil.copyfile(here / "verify.py.txt", os.path.join(folder, "verify.py"))
    with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as f:
        f.write(card.card(scorer, config, dtype))


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


def _tokenizer(scorer: Scorer, folder: str) -> int:
    """Writes the tokenizer in words that 4.x and 5 know; gives the id that pads."""
    save_tokenizer(scorer.tokenizer, folder)
    path = os.path.join(folder, "tokenizer_config.json")
    config = json.loads(pathlib.Path(path).read_text("utf-8"))
    pad = _pad(scorer)
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": scorer.contract.template,
        "pad_token": pad,
        "padding_side": "right",
    }
    for key in ("auto_map", "backend", "is_local", "tokenizer_file", "name_or_path"):
        config.pop(key, None)
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):  # 4.x wants a mapping there, and has this word
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    _write_json(path, config)
    special = os.path.join(folder, "special_tokens_map.json")
    if os.path.exists(special):
        os.remove(special)
    with open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8") as f:
        f.write(scorer.contract.template)
    return scorer.tokenizer.convert_tokens_to_ids(pad)


def _pad(scorer: Scorer) -> str:
    """A token that pads, and that no scored text ends with.

    transformers scores the last token that is not this one.
    """
    tokenizer = scorer.tokenizer
    ends = {tokenizer.eos_token, tokenizer.bos_token}
    ends |= {tokenizer.convert_ids_to_tokens(row.ids[-1]) for row in _encoded(scorer)}
    have = tokenizer.get_vocab()
    for token in (tokenizer.pad_token, *PADS, tokenizer.unk_token):
        if token is not None and token in have and token not in ends:
            return token
    raise ExportError(
        f"the tokenizer has no token that could pad and is not its end "
        f"({tokenizer.eos_token!r}); transformers would score another token: add one "
        "to the tokenizer before training"
    )


class _Row:
    """Token ids of a conversation and its templated text."""

    def __init__(self, ids: Sequence[int], text: str):
        self.ids, self.text = [int(i) for i in ids], text


def _records() -> list[Record]:
    return [
        record_from_dict({"prompt": p, "responses": [r]}, f"golden:{i}")
        for i, (p, r) in enumerate(texts.CONVERSATIONS)
    ]


def _encoded(scorer: Scorer) -> Iterator[_Row]:
    encoder = scorer.encoder()
    for record in _records():
        found = encoder.encode(record)
        if found is None or found.prompt_keep[0] < len(found.prompt):
            raise ExportError(
                f"config.contract.max_length = {scorer.contract.max_length} is too "
                f"short for the texts of golden.jsonl: {record.prompt[0].content!r}"
            )
        ids = [*found.prompt, *found.responses[0]]
        yield _Row(ids, scorer.tokenizer.decode(ids))


def _golden(scorer: Scorer, member: int | None, folder: str) -> list[dict[str, Any]]:
    """Texts, their token ids by the folder's own tokenizer, and their scores."""
    from transformers import PreTrainedTokenizerFast

    own = PreTrainedTokenizerFast.from_pretrained(folder)
    table = scorer.score_members(_records())[member or 0][:, 0]
    n = scorer.contract.normalisation
    rows = []
    for row, reward in zip(_encoded(scorer), table, strict=True):
        ids = own(row.text, add_special_tokens=False)["input_ids"]
        if ids != row.ids:
            raise ExportError(
                f"the exported tokenizer gives {ids} for {row.text!r}, the contract "
                f"{row.ids}: its files do not hold all that makes its tokens"
            )
        score = float(reward) * n.std + n.mean  # the raw score, as a classifier has it
        rows.append({"text": row.text, "input_ids": ids, "score": score})
    return rows


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
            parts = [_part(flat, where[name]) for name in rule.ours]
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
    _write_json(
        os.path.join(folder, "model.safetensors.index.json"),
        {"metadata": {"total_size": total}, "weight_map": index},
    )


def _part(flat: Mapping[str, jax.Array], place: pretrained.Place) -> jax.Array:
    x = flat[place.path]
    return x if place.index is None else x[place.index]


def _write_json(path: str, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    pathlib.Path(path).write_text(text, "utf-8")
