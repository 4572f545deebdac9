"""GGUF files of llama.cpp: metadata, dequantised tensors and the tokenizer.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

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

ARCHITECTURES = ("llama", "qwen2", "qwen3")
# Words of config.json -> keys of the metadata, after the architecture's name.
WORDS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")
CONTROL, USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type
PRE_TOKENIZERS = ("smollm",)


def open_gguf(path: str, where: str) -> Source:
    """The model in a local GGUF file.

    Raises:
      WeightsError: a damaged file, an architecture that is not one of ARCHITECTURES,
        a tensor with no name in Hugging Face, or metadata that the words of a
        config.json cannot say.
      ImportError: `gguf` is not installed.
    """
    gguf = _gguf()
    try:
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # whatever reading at a wrong place raises
        why = f"{type(error).__name__}: {error}"
        raise WeightsError(
            f"{path}: not a whole GGUF file ({why:.200}): fetch it again"
        ) from error
    if reader.byte_order != "I" or values.get("split.count", 1) not in (0, 1):
        raise WeightsError(
            f"{path}: big-endian, or one of several parts: convert it with gguf's "
            "gguf-convert-endian, or merge it with llama.cpp's gguf-split"
        )
    arch = values.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise WeightsError(
            f"{path}: architecture {arch!r}: known: {', '.join(ARCHITECTURES)}"
        )
    spans = {
        t.name: (
            tuple(int(n) for n in reversed(t.shape)),
            t.tensor_type,
            int(t.data_offset),
            int(t.n_bytes),
        )
        for t in reader.tensors
    }
    config = _config(path, arch, values, spans)
    tensors = {}
    for name, span in spans.items():
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
        part = _parts(path, name)[1]
        turned = config[heads[part]] if arch == "llama" and part in heads else 0
        if turned and span[0][0] != turned * config["head_dim"]:
            raise WeightsError(
                f"{path}: tensor {name} is {span[0]}: want {turned} heads of "
                f"{config['head_dim']} rows"
            )
        tensors[hf_name(path, name)] = _tensor(path, name, *span, turned)
    tokenizer = functools.partial(_tokenizer, path, values)
    has = "tokenizer.ggml.tokens" in values
    return Source(where, config, tensors, tokenizer if has else None, (path,))


def hf_name(path: str, name: str) -> str:
    """The Hugging Face name of a tensor: blk.3.attn_q.weight, model.layers.3....

    Raises:
      WeightsError: it has none; the message names `path`.
    """
    layer, part, kind = _parts(path, name)
    if layer is None:
        return f"{TOP[part]}.{kind}"
    return f"model.layers.{layer}.{BLOCK[part]}.{kind}"


def _parts(path: str, name: str) -> tuple[str | None, str, str]:
    match = NAME.fullmatch(name)
    if match and match["part"] in (BLOCK if match["layer"] else TOP):
        return match["layer"], match["part"], match["kind"]
    if name == "rope_freqs.weight":
        raise WeightsError(
            f"{path}: tensor {name}: factors of the rotary frequencies (Llama 3.1 and "
            "later), which cannot be said as rope_scaling: use the model's safetensors"
        )
    raise WeightsError(
        f"{path}: tensor {name} has no name in Hugging Face that is known here: use "
        "the model's safetensors"
    )


def _config(
    path: str, arch: str, values: Mapping[str, Any], spans: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json of the metadata."""

    def need(key: str, kind: type = int, default: Any = None) -> Any:
        value = values.get(f"{arch}.{key}", default)
        if not isinstance(value, kind) or value <= 0:
            raise WeightsError(
                f"{path}: {arch}.{key} is {value!r:.80}: want a positive "
                f"{kind.__name__}"
            )
        return value

    words = {word: need(key) for word, key in WORDS.items()}
    heads = words["num_attention_heads"]
    head_dim = need("attention.key_length", default=words["hidden_size"] // heads)
    for key, want in {
        "rope.scaling.type": "none",
        "rope.dimension_count": head_dim,
        "attention.value_length": head_dim,
        "attention.sliding_window": 0,
    }.items():
        value = values.get(f"{arch}.{key}", want)
        if value != want:
            raise WeightsError(
                f"{path}: {arch}.{key} is {value!r:.80}: only {want!r} is read: use "
                "the model's safetensors"
            )
    if "token_embd.weight" not in spans:
        raise WeightsError(f"{path}: no tensor token_embd.weight")
    ids = {
        f"{word}_token_id": values.get(f"tokenizer.ggml.{key}_token_id")
        for word, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return {
        "model_type": arch,
        **words,
        "num_key_value_heads": need("attention.head_count_kv", default=heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": _short(need("attention.layer_norm_rms_epsilon", float)),
        "rope_theta": _short(need("rope.freq_base", float, 10000.0)),
        "attention_bias": "blk.0.attn_q.bias" in spans,
        "vocab_size": spans["token_embd.weight"][0][0],
        "tie_word_embeddings": "output.weight" not in spans,
        **ids,
    }


def _short(value: float) -> float:
    """The shortest decimal of a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _tensor(
    path: str,
    name: str,
    shape: tuple[int, ...],
    kind: Any,
    offset: int,
    size: int,
    turned: int,
) -> Tensor:
    def read() -> np.ndarray:
        gguf = _gguf()
        data = np.frombuffer(read_span(path, offset, size), np.uint8)
        rows = gguf.quants.quant_shape_to_byte_shape(shape, kind)
        try:
            values = gguf.dequantize(data.reshape(rows), kind)
        except NotImplementedError as error:
            raise WeightsError(
                f"{path}: tensor {name} is {kind.name}, which gguf cannot turn into "
                "floats: take another quantisation"
            ) from error
        values = values.astype(np.float32, copy=False).reshape(shape)
        return finite(from_pairs(values, turned) if turned else values, name, path)

    return Tensor(shape, kind.name, read)


def _tokenizer(path: str, values: Mapping[str, Any]) -> "PreTrainedTokenizerFast":
    """The byte-level BPE of the metadata, its special tokens and chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    get = lambda key, default=None: values.get(f"tokenizer.ggml.{key}", default)
    if get("model") != "gpt2" or get("pre") not in PRE_TOKENIZERS:
        raise WeightsError(
            f"{path}: tokenizer {get('model')!r} with pre-tokenizer {get('pre')!r}: "
            f"known: 'gpt2' with {', '.join(PRE_TOKENIZERS)}: name a tokenizer of "
            "Hugging Face instead"
        )
    tokens, kinds = get("tokens"), get("token_type", [])
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise WeightsError(f"{path}: tokenizer.ggml.tokens has a token twice")
    merges = [tuple(merge.split(" ")) for merge in get("merges", [])]
    for merge in merges:  # of some of these the Rust library panics
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocab.keys():
            raise WeightsError(
                f"{path}: tokenizer.ggml.merges has {' '.join(merge)!r:.80}: want two "
                "tokens that make a third"
            )
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    added = {
        token: AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind in (CONTROL, USER_DEFINED)
    }
    backend.add_tokens([token for token in added.values() if not token.special])
    backend.add_special_tokens([token for token in added.values() if token.special])
    named = {
        f"{word}_token": _token(path, tokens, f"{key}_token_id", get(f"{key}_token_id"))
        for word, key in (
            ("bos", "bos"),
            ("eos", "eos"),
            ("unk", "unknown"),
            ("pad", "padding"),
        )
        if get(f"{key}_token_id") is not None
    }
    if get("add_bos_token", False) and "bos_token" in named:
        bos = named["bos_token"]
        backend.post_processor = TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, get("bos_token_id"))]
        )
    others = [t for t, a in added.items() if a.special and t not in named.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        additional_special_tokens=others,
        chat_template=values.get("tokenizer.chat_template"),
        model_max_length=values[f"{values['general.architecture']}.context_length"],
        clean_up_tokenization_spaces=False,
        **named,
    )


def _token(path: str, tokens: list[str], key: str, id: Any) -> str:
    if not isinstance(id, int) or not 0 <= id < len(tokens):
        raise WeightsError(
            f"{path}: tokenizer.ggml.{key} is {id!r:.80}, of {len(tokens)} tokens"
        )
    return tokens[id]


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            "GGUF files need `gguf`: pip install 'rm_jax[gguf]'"
        ) from error
    return gguf
