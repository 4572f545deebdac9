"""What every exported folder has beside weights: tokenizer, golden.jsonl, contract."""

import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from rm_jax.data.schema import Record, record_from_dict
from rm_jax.data.tokenizers import save_tokenizer
from rm_jax.export import texts
from rm_jax.serve.scorer import Scorer

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}
SHORT = {"bf16": "bfloat16"}
# Tokens that may stand for padding: the first that there is, and that ends no text.
PADS = (
    "<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|endoftext|>",
    "<|reserved_special_token_0|>",  # Llama 3.0 has no other
)  # fmt: skip


class ExportError(ValueError):
    """A model that such a folder cannot hold; says what of it, and what would do."""


def dtype_name(text: str) -> str:
    """A name in DTYPES, of it or of what SHORT says for it.

    Raises:
      ExportError: it is neither.
    """
    name = SHORT.get(text, text)
    if name not in DTYPES:
        raise ExportError(f"dtype {text!r}: known: {', '.join([*DTYPES, *SHORT])}")
    return name


def write_tokenizer(scorer: Scorer, folder: str) -> int:
    """Writes the tokenizer in words that 4.x and 5 know; gives the id that pads."""
    save_tokenizer(scorer.tokenizer, folder)
    path = os.path.join(folder, "tokenizer_config.json")
    config = json.loads(pathlib.Path(path).read_text("utf-8"))
    pad, template = _pad(scorer), _template(scorer)
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": template,
        "pad_token": pad,
        "padding_side": "right",
    }
    for key in ("auto_map", "backend", "is_local", "tokenizer_file", "name_or_path"):
        config.pop(key, None)
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):  # 4.x wants a mapping there, and has this word
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    write_json(path, config)
    special = os.path.join(folder, "special_tokens_map.json")
    if os.path.exists(special):
        os.remove(special)
    with open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8") as f:
        f.write(template)
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


BOS = "{{ bos_token }}"
EOS = "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"


def _template(scorer: Scorer) -> str:
    """The contract's template; it prints the BOS and EOS that the contract adds to it.

    Raises:
      ExportError: no such template gives the contract's tokens.
    """
    chats = [
        [{"role": "user", "content": p}, {"role": "assistant", "content": r}]
        for p, r in texts.CONVERSATIONS
    ]
    want = [row.ids for row in _encoded(scorer)]
    for before, after in (("", ""), (BOS, ""), ("", EOS), (BOS, EOS)):
        text = before + scorer.contract.template + after
        got = scorer.tokenizer.apply_chat_template(
            chats, chat_template=text, tokenize=True, return_dict=False
        )
        if got == want:
            return text
    raise ExportError(
        "the chat template, rendered and tokenised as a whole, does not give the "
        "tokens that the contract scores, which are made of prompt and response apart, "
        "so other programs would score others: use a template that closes the prompt "
        "with a special token"
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


def golden(scorer: Scorer, member: int, folder: str) -> list[dict[str, Any]]:
    """Texts, their token ids by the folder's own tokenizer, and their scores."""
    from transformers import PreTrainedTokenizerFast

    own = PreTrainedTokenizerFast.from_pretrained(folder)
    table = scorer.score_members(_records())[member][:, 0]
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


def write_others(
    scorer: Scorer, rows: Sequence[Mapping], card: str, folder: str
) -> None:
    """contract.json, golden.jsonl, verify.py and README.md.

    Args:
      scorer: the run.
      rows: of `golden`.
      card: text of README.md.
      folder: that is there.
    """
    contract = json.loads(scorer.contract.to_json())
    write_json(os.path.join(folder, "contract.json"), contract)
    with open(os.path.join(folder, "golden.jsonl"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    here = pathlib.Path(__file__).parent
    shutil.copyfile(here / "verify.py.txt", os.path.join(folder, "verify.py"))
    pathlib.Path(folder, "README.md").write_text(card, "utf-8")


def write_json(path: str, value: Any) -> None:
    """A file of JSON for people, too."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    pathlib.Path(path).write_text(text, "utf-8")
