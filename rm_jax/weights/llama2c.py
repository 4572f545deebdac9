"""llama2.c's model.bin (its version 0) and tok*.bin, as run.c reads them.

Format: https://github.com/karpathy/llama2.c, run.c: memory_map_weights, build_tokenizer
"""

import functools
import math
import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rm_jax import store
from rm_jax.weights.tensors import (
    Source,
    Tensor,
    WeightsError,
    finite,
    from_pairs,
    read_span,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HEADER = struct.Struct("<7i")
NEWER = 0x616B3432  # "ak42", where versions 1 and 2 begin
BOS, EOS = 1, 2


class Sizes(NamedTuple):
    """The header, in its order; a negative vocab_size is an untied output matrix."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int


def open_bin(path: str, tokens: str | None, where: str) -> Source:
    """The model in a local file, with the tokenizer in the file `tokens`.

    Raises:
      WeightsError: a header that is not one, or a file of another length than it says.
    """
    sizes = _sizes(path)
    with store.open_file(path) as file:
        length = file.seek(0, 2)
    # Before there is anything for each of the layers, of which a header can have 2^31.
    one, two = (_bytes(sizes._replace(n_layers=n)) for n in (1, 2))
    want = one + (sizes.n_layers - 1) * (two - one)
    if length != want:
        raise WeightsError(
            f"{path}: {length} bytes, its header ({', '.join(_said(sizes))}) wants "
            f"{want}: not a whole model.bin of llama2.c"
        )
    tensors, offset = {}, HEADER.size
    for name, shape, turned in _layout(sizes):
        if name:
            tensors[name] = _tensor(path, name, shape, offset, turned)
        offset += 4 * math.prod(shape)
    config = {
        "model_type": "llama",
        "hidden_size": sizes.dim,
        "num_hidden_layers": sizes.n_layers,
        "num_attention_heads": sizes.n_heads,
        "num_key_value_heads": sizes.n_kv_heads,
        "head_dim": sizes.dim // sizes.n_heads,
        "intermediate_size": sizes.hidden_dim,
        "max_position_embeddings": sizes.seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "vocab_size": abs(sizes.vocab_size),
        "tie_word_embeddings": sizes.vocab_size > 0,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": None,
    }
    read = functools.partial(_tokenizer, tokens, abs(sizes.vocab_size), sizes.seq_len)
    return Source(where, config, tensors, read if tokens else None, (path,))


def tokenizer_beside(path: str) -> str | None:
    """The tok*.bin in the model's folder, or None.

    Raises:
      WeightsError: there are several.
    """
    folder = path.rpartition("/")[0] or "."
    found = [
        name
        for name in store.listdir(folder)
        if name.startswith("tok") and name.endswith(".bin")
    ]
    if len(found) > 1:
        raise WeightsError(
            f"{path}: {' and '.join(found)} beside it: leave the tokenizer of the model"
        )
    return store.join(folder, found[0]) if found else None


def _sizes(path: str) -> Sizes:
    with store.open_file(path) as file:
        data = file.read(HEADER.size)
    if len(data) < HEADER.size:
        raise WeightsError(f"{path}: {len(data)} bytes, no header of {HEADER.size}")
    sizes = Sizes(*HEADER.unpack(data))
    if sizes.dim == NEWER:
        raise WeightsError(
            f"{path}: a newer format of llama2.c: export it with --version 0"
        )
    heads = sizes.n_heads
    if not (
        all(n > 0 for n in sizes._replace(vocab_size=abs(sizes.vocab_size)))
        and sizes.dim % (2 * heads) == 0
        and heads % sizes.n_kv_heads == 0
    ):
        raise WeightsError(
            f"{path}: no header of llama2.c: {', '.join(_said(sizes))}: want positive "
            "numbers, dim a multiple of 2 n_heads, n_heads one of n_kv_heads"
        )
    return sizes


def _said(sizes: Sizes) -> list[str]:
    return [f"{name} {value}" for name, value in sizes._asdict().items()]


def _bytes(sizes: Sizes) -> int:
    return HEADER.size + 4 * sum(math.prod(shape) for _, shape, _ in _layout(sizes))


def _layout(sizes: Sizes) -> list[tuple[str, tuple[int, ...], int]]:
    """Names, shapes and heads to turn of the arrays, in the file's order.

    What is not a weight has no name.
    """
    d, ffn, layers, heads, kv, vocab, seq = sizes
    vocab, head = abs(vocab), d // heads
    top = lambda name, shape: [(f"{name}.weight", shape, 0)]
    all_layers = lambda name, shape, turned=0: [
        (f"model.layers.{i}.{name}.weight", shape, turned) for i in range(layers)
    ]
    return [
        *top("model.embed_tokens", (vocab, d)),
        *all_layers("input_layernorm", (d,)),
        *all_layers("self_attn.q_proj", (d, d), heads),
        *all_layers("self_attn.k_proj", (kv * head, d), kv),
        *all_layers("self_attn.v_proj", (kv * head, d)),
        *all_layers("self_attn.o_proj", (d, d)),
        *all_layers("post_attention_layernorm", (d,)),
        *all_layers("mlp.gate_proj", (ffn, d)),
        *all_layers("mlp.down_proj", (d, ffn)),
        *all_layers("mlp.up_proj", (ffn, d)),
        *top("model.norm", (d,)),
        ("", (2, seq, head // 2), 0),  # cosines and sines, of older versions
        *(top("lm_head", (vocab, d)) if sizes.vocab_size < 0 else []),
    ]


def _tensor(
    path: str, name: str, shape: tuple[int, ...], offset: int, turned: int
) -> Tensor:
    def read() -> np.ndarray:
        data = read_span(path, offset, 4 * math.prod(shape))
        array = np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)
        return finite(from_pairs(array, turned) if turned else array, name, path)

    return Tensor(shape, "F32", read)


def _tokenizer(path: str, vocab_size: int, length: int) -> "PreTrainedTokenizerFast":
    """The sentencepiece BPE: <s> and a space before the text, bytes for the unknown.

    run.c joins the two neighbours whose joined token scores highest until none is in
    the vocabulary; that is BPE with the joins in the order of their scores.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokens, scores = _pieces(path, vocab_size)
    tokens[:3] = ["<unk>", "<s>", "</s>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != vocab_size:
        raise WeightsError(f"{path}: a token is there twice")
    ranked = sorted(range(3 + 256, vocab_size), key=lambda i: -scores[i])
    merges = [
        (tokens[i][:cut], tokens[i][cut:])
        for i in ranked
        for cut in range(1, len(tokens[i]))
        if tokens[i][:cut] in vocab and tokens[i][cut:] in vocab
    ]
    backend = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Prepend(" ")
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = TemplateProcessing(
        single=["<s>", "$A"], special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )


def _pieces(path: str, vocab_size: int) -> tuple[list[str], list[float]]:
    """Tokens and their scores."""
    data = store.read_bytes(path)
    tokens, scores, at = [], [], 4  # the first int32 is the longest token's length
    try:
        for _ in range(vocab_size):
            score, size = struct.unpack_from("<fi", data, at)
            if size < 0 or not math.isfinite(score):
                raise WeightsError(
                    f"{path}: no tokenizer of llama2.c: token {len(tokens)} has "
                    f"{size} bytes and score {score}"
                )
            scores.append(score)
            tokens.append(data[at + 8 : at + 8 + size].decode("utf-8"))
            at += 8 + size
    except (struct.error, UnicodeDecodeError) as error:
        raise WeightsError(
            f"{path}: no tokenizer of llama2.c: token {len(tokens)}: {error}"
        ) from None
    if at != len(data):
        raise WeightsError(
            f"{path}: {len(data)} bytes, its {vocab_size} tokens end at {at}: the "
            "tokenizer of another model?"
        )
    return tokens, scores
