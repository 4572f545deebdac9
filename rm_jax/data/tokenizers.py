"""Tokenizers: three built-in kinds and any fast tokenizer of transformers.

>>> tokenizer = build_tokenizer("byte")
>>> tokenizer.decode(tokenizer.encode("héllo", add_special_tokens=False))
'héllo'
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rm_jax import store

if TYPE_CHECKING:  # importing transformers takes seconds; `rm-jax --help` must not
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SPECIALS = (
    "<|pad|>",
    "<|bos|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<|end|>",
    "<unk>",
)
ROLES = SPECIALS[2:6]
# A role is one token, so a turn costs two tokens beside its content.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
KNOWN = (
    '"byte", "word", "bpe:N", "init" (that of config.model.init), the folder of a '
    'transformers tokenizer, or a hub id "owner/name" or "owner/name@revision"'
)
WORD = r"\w+|[^\w\s]"
BYTES = 256
MOST = 2**24  # tokens of a BPE; far more and the Rust library ends the process
FILES = ("tokenizer.json", "tokenizer_config.json")


class TokenizerError(ValueError):
    """A tokenizer that cannot be built or loaded: names it, why, and what would do."""


def build_tokenizer(
    spec: str,
    *,
    texts: Iterable[str] | None = None,
    words: Sequence[str] | None = None,
) -> "PreTrainedTokenizerFast":
    """Builds or loads the tokenizer that `spec` names.

    Args:
      spec: "byte" (256 bytes), "word" (one token a word of `words`), "bpe:N" (N tokens
        in all, trained on `texts`), a folder, or a hub id with an optional @revision,
        which is resolved to a commit (`tokenizer_commit`).
      texts: what "bpe:N" is trained on; not read otherwise.
      words: vocabulary of "word"; not read otherwise.

    Raises:
      TokenizerError: unknown spec, missing input, or a tokenizer that does not load.
    """
    if spec == "byte":
        return byte_tokenizer()
    if spec == "word":
        if words is None:
            raise TokenizerError(
                'tokenizer "word" needs a list of words, which only the world has: use '
                '"byte" or "bpe:N" for this source'
            )
        return word_tokenizer(words)
    if spec.startswith("bpe:"):
        if not re.fullmatch("[0-9]{1,30}", spec[4:]):
            raise TokenizerError(
                f'tokenizer {spec!r:.80}: want "bpe:N", e.g. "bpe:8192"'
            )
        if texts is None:
            raise TokenizerError(f"tokenizer {spec!r} needs texts to be trained on")
        return train_bpe(texts, int(spec[4:]))
    return _pretrained(spec)


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    """One token a byte of UTF-8; needs no file and knows every text."""
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    return _wrap(
        models.BPE(vocab=vocab, merges=[]),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
    )


def word_tokenizer(words: Sequence[str]) -> "PreTrainedTokenizerFast":
    """One token a word or sign of `words`, in their order; the rest is <unk>.

    Raises:
      TokenizerError: an entry of `words` that the pre-tokeniser would split.
    """
    from tokenizers import Regex, models, pre_tokenizers

    unique = list(dict.fromkeys(words))
    for word in unique:
        if not re.fullmatch(WORD, word):
            raise TokenizerError(
                f'tokenizer "word": {word!r} is not one word or sign ({WORD}), so no '
                "text would ever give it"
            )
    vocab = {token: i for i, token in enumerate([*SPECIALS, *unique])}
    return _wrap(
        models.WordLevel(vocab=vocab, unk_token="<unk>"),
        pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True),
        None,
    )


def train_bpe(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Trains a byte-level BPE of exactly `vocab_size` tokens, special ones included.

    The same texts in the same order give the same tokenizer. Reference: Sennrich,
    Haddow and Birch 2016 (arXiv:1508.07909).

    Raises:
      TokenizerError: `vocab_size` is below the bytes and special tokens or above MOST,
        or the texts hold too few distinct pairs for it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    least = BYTES + len(SPECIALS)
    if not least <= vocab_size <= MOST:
        raise TokenizerError(
            f"bpe: vocabulary of {vocab_size}: want at least {least}, which is "
            f"{BYTES} bytes and {len(SPECIALS)} special tokens, and at most {MOST}"
        )
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = split
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(split.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() != vocab_size:
        raise TokenizerError(
            f"bpe: the texts give only {backend.get_vocab_size()} tokens of "
            f"{vocab_size}: ask for fewer, or give more text"
        )
    return _wrap(backend.model, split, decoders.ByteLevel())


def _wrap(model, pre_tokenizer, decoder) -> "PreTrainedTokenizerFast":
    """A built-in tokenizer: its model, the special tokens and the template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        backend.decoder = decoder
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        unk_token="<unk>",
        additional_special_tokens=list(ROLES),
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _pretrained(spec: str) -> "PreTrainedTokenizerFast":
    """A tokenizer from a folder or the hub; its code is never run."""
    if store.is_url(spec):
        with store.local(spec) as copy:
            return _pretrained(copy)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    name, revision = spec, None
    if not os.path.isdir(spec):
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", spec):
            raise TokenizerError(f"tokenizer {spec!r}: no such folder; known: {KNOWN}")
        name, _, revision = spec.partition("@")
    try:
        commit = "" if revision is None else _commit(name, revision)
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=commit or "main",
            use_fast=True,
            trust_remote_code=False,
            local_files_only=os.path.isdir(name),
        )
    except Exception as error:  # the Rust library raises nothing more precise
        why = _damage(spec) or f"{type(error).__name__}: {error}"
        raise TokenizerError(
            f"tokenizer {spec!r} does not load ({' '.join(why.split()):.300}); "
            f"offline, give a local folder; known: {KNOWN}"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TokenizerError(
            f"tokenizer {spec!r} is a {type(tokenizer).__name__}, not a fast one: "
            "convert it to tokenizer.json"
        )
    tokenizer.hub_commit = commit
    return tokenizer


def _commit(name: str, revision: str) -> str:
    """The commit of a branch, tag or commit of the hub; offline as the cache has it."""
    import huggingface_hub

    return huggingface_hub.resolve_revision(name, revision=revision or None).resolved


def _damage(folder: str) -> str:
    """What is wrong with the files of a tokenizer's folder, as far as it is plain."""
    for name in FILES if os.path.isdir(folder) else ():
        path = store.join(folder, name)
        if name != "tokenizer.json" and not store.exists(path):
            continue  # the rest can be left out
        try:
            value = store.read_json(path)
        except (OSError, ValueError, RecursionError) as error:
            return str(error)
        if not isinstance(value, dict):
            return f"{path}: want an object, got {value!r:.80}"
    return ""


def save_tokenizer(
    tokenizer: "PreTrainedTokenizerFast", folder: str | os.PathLike[str]
) -> None:
    """Writes the tokenizer and its template to a local folder, made when missing.

    Raises:
      OSError: it cannot be written; the message names the folder and says why.
    """
    # transformers logs that the path is a file, and returns.
    store.makedirs(os.fspath(folder))
    try:
        tokenizer.save_pretrained(os.fspath(folder))
    except Exception as error:  # the Rust library raises nothing more precise
        raise OSError(f"{folder}: cannot write the tokenizer: {error}") from error


def load_tokenizer(folder: str | os.PathLike[str]) -> "PreTrainedTokenizerFast":
    """Reads what `save_tokenizer` wrote; never asks the network.

    Raises:
      TokenizerError: no such folder, or no fast tokenizer in it.
    """
    if not store.is_dir(os.fspath(folder)):
        raise TokenizerError(f"no tokenizer folder {os.fspath(folder)!r}")
    return _pretrained(os.fspath(folder))


def tokenizer_commit(tokenizer: "PreTrainedTokenizerFast") -> str:
    """The hub commit, 40 hex digits, that it was loaded at; else empty."""
    return getattr(tokenizer, "hub_commit", "")


def plain_backend(tokenizer: "PreTrainedTokenizerFast") -> "Tokenizer":
    """A private copy of the Rust tokenizer that neither truncates nor pads.

    A tokenizer.json may carry a truncation length, which would cut silently, and
    transformers switches the shared one's state between calls.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def tokenizer_sha(tokenizer: "PreTrainedTokenizerFast") -> str:
    """sha256 of what decides the tokens: tokenizer.json, special tokens, template."""
    content = {
        "backend": plain_backend(tokenizer).to_str(),
        "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
