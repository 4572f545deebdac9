"""Damaged and strange weights: each is refused in one line that says what and where."""

import itertools
import json
import math
import os
import pickle
import struct

import numpy as np
import pytest
from command import assert_one_line
from test_weights import CONFIG, Q1, arrays, loaded, write

from rm_jax.models import hf
from rm_jax.models.hf_words import UnknownModel
from rm_jax.weights.source import open_source
from rm_jax.weights.tensors import WeightsError


def refused(spec, *parts, error=WeightsError, tokenizer=False):
    """The message has all the parts and is one line."""
    with pytest.raises(error) as found:
        source = open_source(spec)
        loaded(source)
        if tokenizer:
            source.tokenizer()
    said = str(found.value)
    assert "\n" not in said and len(said) < 500
    for part in parts:
        assert part in said, said


SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "intermediate_size",
)  # fmt: skip
NUMBERS = ("rms_norm_eps", "rope_theta")


@pytest.mark.parametrize("key", SIZES + NUMBERS)
def test_a_number_of_config_json_that_is_none(key):
    wrong = [0, -1, "8", math.nan, math.inf, [1], {}, True, 10**40]
    wrong += [2.5, 1e12, 10**12] if key in SIZES else []
    for value in wrong:
        with pytest.raises(UnknownModel) as found:
            hf.arch_fields(CONFIG | {key: value})
        assert f"{key} = {value!r:.80}: want a " in str(found.value)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": ["llama"]}, "model_type = ['llama']; known"),
        ({"hidden_act": 0}, "hidden_act = 0: want a name"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no': want true or"),
        ({"rope_parameters": 5}, "rope_parameters = 5: want an object"),
        ({"rope_scaling": []}, "rope_scaling = []: want an object"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": -2.0}},
            "rope_parameters.factor = -2.0: want a positive number",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": "4"}},
            "rope_scaling.factor = '4': want a positive number",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic'"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "3 query heads are no"),
        ({"head_dim": 3}, "3 features a head, 3 of them rotated: want 1 to 65536, and"),
        ({"head_dim": 2**20}, "1048576 features a head"),
        ({"head_dim": None, "num_attention_heads": 16}, "0 features a head"),
    ],
)
def test_words_of_config_json_that_cannot_be(changes, why):
    with pytest.raises(UnknownModel) as found:
        hf.arch_fields(CONFIG | changes)
    assert why in str(found.value) and "\n" not in str(found.value)


def test_null_is_as_if_it_were_not_there_and_a_missing_window_is_transformers_own():
    keys = ("rms_norm_eps", "rope_theta", "hidden_act", "attention_bias")
    nulls = {k: v for k, v in CONFIG.items() if k not in keys}
    fields = hf.arch_fields(nulls | dict.fromkeys(keys))
    assert fields == hf.arch_fields(nulls) and fields["norm_eps"] == 1e-6
    mistral = CONFIG | {"model_type": "mistral"}
    assert hf.arch_fields(mistral)["windows"] == (4096,)
    assert hf.arch_fields(mistral | {"sliding_window": None})["windows"] == (0,)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[]", "config.json: want an object, got []"),
        (b"null", "config.json: want an object, got None"),
        (b"{", "config.json: not JSON"),
        (b"\xff", "config.json: not UTF-8"),
        (b"[" * 100_000, "config.json: not JSON: too deep"),
    ],
)
def test_config_json_that_is_no_object(tmp_path, data, why):
    spec = write(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_bytes(data)
    refused(spec, why)


def test_folders_that_hold_more_or_less_than_they_should(tmp_path):
    folder = tmp_path / "m"
    spec = write(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))  # never looked at
    loaded(open_source(spec))
    os.symlink(folder, tmp_path / "link")  # the folder itself may be a link
    loaded(open_source(f"hf:{tmp_path / 'link'}"))
    index = folder / "model.safetensors.index.json"
    name = lambda file: index.write_text(
        json.dumps({"weight_map": dict.fromkeys(arrays(), file)})
    )
    name("pytorch_model.bin")
    refused(spec, "pytorch_model.bin: not a whole safetensors file")
    outside = tmp_path / "outside"
    outside.mkdir()
    os.replace(folder / "model.safetensors", outside / "w.safetensors")
    os.symlink(outside, folder / "d")
    name("d/w.safetensors")
    refused(spec, "shard 'd/w.safetensors': want the name of a file in it")
    name(str(outside / "w.safetensors"))
    refused(spec, "want the name of a file in it")
    os.symlink(outside / "w.safetensors", folder / "w.safetensors")
    name("w.safetensors")
    refused(spec, "a link that leads outside the folder")
    for file in ("", "..", "a\x00b", "x" * 300):
        name(file)
        refused(spec, f"{folder}: ")
    for found in (None, [], "x", {"a": 1}):
        index.write_text(json.dumps({"weight_map": found}))
        refused(spec, f"{index}: want weight_map")
    index.unlink()
    (folder / "model.safetensors").mkdir()
    refused(spec, f"{folder}: want model.safetensors, which is no file")


def test_a_tensor_in_two_shards_or_twice_in_a_header(tmp_path):
    folder = tmp_path / "m"
    write(folder, name="a.safetensors")
    spec = write(folder, {Q1: arrays()[Q1]}, name="b.safetensors")
    files = dict.fromkeys(arrays(), "a.safetensors") | {"x": "b.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    refused(spec, f"tensor {Q1} twice: in a.safetensors and in b.safetensors")
    index.unlink()
    one = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    header = f"{{{one}, {one}}}".encode()
    data = struct.pack("<Q", len(header)) + header + bytes(4)
    (folder / "model.safetensors").write_bytes(data)
    refused(spec, "tensor a twice in the header")


def test_safetensors_of_another_length(tmp_path):
    spec = write(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    data = file.read_bytes()
    cuts = [data[:n] for n in (0, 4, 8, 100, len(data) // 2, len(data) - 1)]
    for damaged in (*cuts, data + b"x"):
        file.write_bytes(damaged)
        refused(spec, f"{file}: not a whole safetensors file", "fetch it again")


META = {
    "block_count": 3, "embedding_length": 8, "attention.head_count": 2,
    "attention.head_count_kv": 1, "feed_forward_length": 12, "context_length": 64,
}  # fmt: skip
BLOCK = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
GQ1 = "blk.1.attn_q.weight"


def named_for_gguf():
    out = {}
    for name, x in arrays().items():
        stem = name.removesuffix(".weight")
        if stem not in TOP:
            _, _, layer, part = stem.split(".", 3)
        new = TOP[stem] if stem in TOP else f"blk.{layer}.{BLOCK[part]}"
        out[f"{new}.weight"] = x
    return out


@pytest.fixture
def make_gguf(tmp_path):
    """Writes a tiny GGUF file."""
    gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'rm_jax[gguf]'")

    def make(tensors=(), meta=(), arch="llama", leave=(), big=False, **tokenizer):
        path = tmp_path / "m.gguf"
        endian = gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE
        file = gguf.GGUFWriter(path, arch, endianess=endian)
        for key, value in (META | dict(meta)).items():
            if key not in leave:
                kinds = {
                    int: file.add_int64,
                    str: file.add_string,
                    list: file.add_array,
                }
                kinds[float] = file.add_float32
                kinds[type(value)](f"{arch}.{key}", value)
        file.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
        own = {"pre": "smollm", "merges": ["a b"], "bos": 9} | tokenizer
        file.add_tokenizer_model("gpt2")
        file.add_tokenizer_pre(own["pre"])
        file.add_token_list([*"abcdefghij", "ab"])
        file.add_token_merges(own["merges"])
        file.add_int32("tokenizer.ggml.bos_token_id", own["bos"])
        for name, x in (named_for_gguf() | dict(tensors)).items():
            if name not in leave:
                file.add_tensor(name, x)
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_tensors_to_file()
        file.close()
        return f"gguf:{path}", path

    return make


def test_a_gguf_that_is_whole(make_gguf):
    source = open_source(make_gguf()[0])
    _, params = loaded(source)
    want = arrays()["model.layers.1.mlp.up_proj.weight"]
    np.testing.assert_array_equal(params["stack_0"]["mlp"]["up"]["kernel"][1], want.T)
    assert source.tokenizer().encode("ab") == [10]


def test_a_gguf_that_is_cut(make_gguf):
    spec, path = make_gguf()
    data = path.read_bytes()
    for n in (0, 2, 4, 10, 24, 50, 200, len(data) // 2, len(data) - 2):
        path.write_bytes(data[:n])
        refused(spec, f"{path}: not a whole GGUF file", "fetch it again")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"tensors": {GQ1: np.full((8, 8), np.nan, "f4")}}, (GQ1, "64 of 64 values")),
        ({"leave": (GQ1,)}, ("lacks", Q1)),
        ({"leave": ("token_embd.weight",)}, ("no tensor token_embd.weight",)),
        (
            {"tensors": {"blk.1.odd.weight": np.ones(3, "f4")}},
            ("blk.1.odd.weight has",),
        ),
        (
            {"tensors": {"blk.7.attn_q.weight": np.ones((8, 8), "f4")}},
            ("model.layers.7.self_attn.q_proj.weight, which no llama has",),
        ),
        ({"tensors": {GQ1: np.ones((8, 4), "f4")}}, (Q1, "shape [8, 4]", "[8, 8]")),
        ({"tensors": {GQ1: np.ones((4, 8), "f4")}}, (GQ1, "2 heads of 4 rows")),
        ({"tensors": {GQ1: np.ones((8, 8), "i1")}}, (GQ1, "is I8, which gguf cannot")),
        ({"tensors": {"rope_freqs.weight": np.ones(2, "f4")}}, ("rope_freqs.weight:",)),
        ({"arch": "mamba"}, ("architecture 'mamba': known: llama, qwen2",)),
        ({"big": True}, ("big-endian",)),
        ({"leave": ("block_count",)}, ("llama.block_count is None: want a positive",)),
        ({"meta": {"embedding_length": -8}}, ("llama.embedding_length is -8",)),
        ({"meta": {"feed_forward_length": "x"}}, ("feed_forward_length is 'x'",)),
        ({"meta": {"attention.head_count": [2, 2]}}, ("head_count is [2, 2]",)),
        (
            {"meta": {"rope.scaling.type": "yarn"}},
            ("rope.scaling.type is 'yarn': only",),
        ),
        ({"meta": {"attention.key_length": 3}}, ("2 heads of 3 rows",)),
    ],
)
def test_a_gguf_that_cannot_be_taken(make_gguf, changes, parts):
    spec, path = make_gguf(**changes)
    refused(spec, str(path), *parts)


def test_too_many_layers(make_gguf):
    spec, _ = make_gguf(meta={"block_count": 2**31})
    refused(spec, "num_hidden_layers = 2147483648: want", error=UnknownModel)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"pre": "llama-bpe"}, "pre-tokenizer 'llama-bpe': known: 'gpt2' with smollm"),
        ({"merges": ["a z"]}, "tokenizer.ggml.merges has 'a z': want two tokens"),
        ({"merges": ["ab"]}, "tokenizer.ggml.merges has 'ab': want two tokens"),
        ({"merges": ["a c"]}, "tokenizer.ggml.merges has 'a c': want two tokens"),
        ({"bos": 11}, "tokenizer.ggml.bos_token_id is 11, of 11 tokens"),
        ({"bos": -1}, "tokenizer.ggml.bos_token_id is -1, of 11 tokens"),
    ],
)
def test_tokenizers_of_gguf(make_gguf, changes, why):
    spec, path = make_gguf(**changes)
    refused(spec, str(path), why, tokenizer=True)


HEADER = (8, 12, 3, 2, 1, 11, 16)


def llama2c(folder, header=HEADER, data=lambda x: x):
    """A model.bin of ones with a tok.bin beside it."""
    folder.mkdir(exist_ok=True)
    weights = 11 * 8 + 3 * (2 * 8 + 2 * 64 + 2 * 4 * 8 + 3 * 12 * 8) + 8 + 2 * 16 * 2
    whole = struct.pack("<7i", *header) + np.ones(weights, "<f4").tobytes()
    (folder / "m.bin").write_bytes(data(whole))
    tokens = [struct.pack("<fi", 0.0, 1) + bytes([97 + i]) for i in range(11)]
    (folder / "tok.bin").write_bytes(struct.pack("<i", 1) + b"".join(tokens))
    return f"llama2c:{folder / 'm.bin'}"


def test_headers_of_llama2c(tmp_path):
    loaded(open_source(llama2c(tmp_path)))
    for i in range(7):
        for value in (0, -1, 7, 2**31 - 1):
            header = (*HEADER[:i], value, *HEADER[i + 1 :])
            refused(
                llama2c(tmp_path, header), f"{tmp_path}/m.bin: ", "header", str(value)
            )
    header = (0x616B3432, *HEADER[1:])
    refused(llama2c(tmp_path, header), "a newer format of llama2.c")


def test_lengths_of_llama2c(tmp_path):
    for change in (lambda x: x + b"1", lambda x: x[:-4], lambda x: x[: len(x) // 2]):
        spec = llama2c(tmp_path, data=change)
        refused(
            spec, f"{tmp_path}/m.bin: ", "dim 8, hidden_dim 12", "wants 6620: not a"
        )
    refused(llama2c(tmp_path, data=lambda x: x[:9]), "m.bin: 9 bytes, no header of 28")
    nan = struct.pack("<f", math.nan)
    spec = llama2c(tmp_path, data=lambda x: x[: -4 * 80] + nan + x[4 - 4 * 80 :])
    refused(spec, f"{tmp_path}/m.bin: tensor model.layers.2.mlp.up_proj.weight: 1 of")


def test_tokenizers_of_llama2c(tmp_path):
    spec, path = llama2c(tmp_path), tmp_path / "tok.bin"
    whole = path.read_bytes()
    for data, why in (
        (whole[:-1], "its 11 tokens end at"),
        (whole + b"x", "its 11 tokens end at"),
        (b"", "token 0"),
        (whole[:8] + struct.pack("<i", -5) + whole[12:], "token 0 has -5 bytes"),
        (whole[:4] + struct.pack("<f", math.nan) + whole[8:], "and score nan"),
        (whole[:12] + b"\xff" + whole[13:], "token 0: 'utf-8'"),
    ):
        path.write_bytes(data)
        refused(spec, f"{path}: ", why, tokenizer=True)
    (tmp_path / "tok2.bin").write_bytes(whole)
    refused(spec, "tok.bin and tok2.bin beside it")


BIG = CONFIG | {"vocab_size": 512}
SMALL = {
    "data.world": {"train": 64, "valid": 8, "test": 1}, "data.eval": "{}",
    "train.keep_best": 0, "contract.tokenizer": "byte", "model.arch": "init",
    "batch.examples": 8, "batch.row_lengths": (256,), "batch.chunk_tokens": 2048,
    "train.duration": "1 steps", "train.report": False, "train.tensorboard": False,
}  # fmt: skip


def test_the_command_line_says_it_in_one_line(tmp_path, rm_jax, one_device):
    """One case of each stage: opening, arch, names and shapes, values, the head."""
    embed = {"model.embed_tokens.weight": np.ones((512, 8), np.float32)}
    whole = arrays() | embed
    runs = (tmp_path / f"run{i}" for i in itertools.count())

    def said(tensors, config, *parts, **knobs):
        spec = write(tmp_path / "m", tensors, config)
        flags = SMALL | {"model.init": spec} | knobs
        flags["data.cache_dir"] = tmp_path / "tokens"
        worlds = {f"data.world.{k}": v for k, v in flags.pop("data.world").items()}
        words = [f"--config.{k}={v}" for k, v in (flags | worlds).items()]
        where = ("--config", "rm_jax:base", "--workdir", next(runs))
        code, _, err = rm_jax("train", *where, *words)
        assert_one_line(code, err, *parts)

    folder = str(tmp_path / "m")
    said(whole, BIG | {"hidden_size": 0}, folder, "hidden_size = 0: want a whole")
    said(whole, BIG | {"auto_map": {}}, folder, "auto_map")
    nan = whole | {Q1: np.full((8, 8), np.nan, np.float32)}
    said(nan, BIG, folder, f"tensor {Q1}: 64 of 64 values are NaN")
    said(whole | {Q1: np.ones((8, 4), np.float32)}, BIG, folder, Q1, "shape [8, 4]")
    head = whole | {"score.weight": np.ones((1, 7), np.float32)}
    keep = {"model.head.init": "keep"}
    said(head, BIG, folder, "score.weight has shape [1, 7], want [n, 8]", **keep)
    said(whole, BIG, folder, "has no head of scores", **keep)
