"""Every config is sound, and every key of base.py is read: an unread key is a lie."""

import io
import math
import types
from collections.abc import Mapping

import jax
import pytest

import rm_jax
from rm_jax import losses, models, sharding
from rm_jax.config import FrozenConfigDict, flatten, validate
from rm_jax.data import pack
from rm_jax.data.public_lists import ATTRIBUTES
from rm_jax.evals import reducers
from rm_jax.weights.tensors import Source

# Their keys are of a choice's own, checked where they are read.
OPEN = ("data.columns", "data.world", "loss.regularizers")
CONFIGS = (
    "base", "small", "quickstart", "truthfulqa",
    "hh", "hh:tiny", "hh:small", "hh:1b", "hh:8b",
    "grm:tiny", "grm:8b", "odin:tiny", "odin:8b", "inform:tiny", "inform:8b",
    "armorm:tiny-rate", "armorm:tiny-gate", "armorm:8b-rate", "armorm:8b-gate",
    "coste:tiny-mean", "coste:tiny-wco", "coste:tiny-uwo", "coste:44m-mean",
    "coste:44m-wco", "coste:44m-uwo", "coste:1b-mean", "coste:1b-wco", "coste:1b-uwo",
    "eisenstein:tiny", "eisenstein:1b", "helpsteer2:tiny-reg", "helpsteer2:tiny-pref",
    "helpsteer2:8b-reg", "helpsteer2:8b-pref", "instructgpt:tiny", "instructgpt:8b",
    "kto:tiny", "kto:8b", "llama:tiny", "llama:1b", "llama:3b", "llama:8b",
    "llama:8b-large", "llama2_margin:tiny-none", "llama2_margin:tiny-small",
    "llama2_margin:tiny-large", "llama2_margin:8b-none", "llama2_margin:8b-small",
    "llama2_margin:8b-large", "pair:tiny", "pair:8b", "poe:tiny", "poe:8b",
    "prm:tiny-prm800k", "prm:tiny-hard", "prm:tiny-soft", "prm:tiny-implicit",
    "prm:8b-prm800k", "prm:8b-hard", "prm:8b-soft", "prm:8b-implicit", "qrm:tiny",
    "qrm:8b", "rewarduq:tiny", "rewarduq:8b", "secrets2:tiny-soft",
    "secrets2:tiny-flip", "secrets2:tiny-margin", "secrets2:8b-soft",
    "secrets2:8b-flip", "secrets2:8b-margin", "skywork:tiny-bt",
    "skywork:tiny-focal", "skywork:tiny-focal_penalty", "skywork:tiny-hinge",
    "skywork:tiny-margin_mse", "skywork:tiny-temperature", "skywork:tiny-tempered",
    "skywork:tiny-ce", "skywork:8b-bt", "skywork:8b-focal", "skywork:8b-focal_penalty",
    "skywork:8b-hinge", "skywork:8b-margin_mse", "skywork:8b-temperature",
    "skywork:8b-tempered", "skywork:8b-ce", "starling:tiny", "starling:8b",
    "stiennon:tiny", "stiennon:1b", "stiennon:8b", "ties:tiny-rao_kupper",
    "ties:tiny-davidson", "ties:8b-rao_kupper", "ties:8b-davidson", "up_lora:tiny",
    "up_lora:8b", "urm:tiny-mle", "urm:tiny-reparam", "urm:8b-mle", "urm:8b-reparam",
    "warm:tiny-probe", "warm:tiny-tune", "warm:3b-probe", "warm:3b-tune",
    "ziegler:tiny", "ziegler:124m", "smollm2:frozen", "smollm2:features",
    "smollm2:lora", "smollm2:full",
    "backbone:llama3.1-8b", "backbone:qwen3-8b", "backbone:gemma2-9b",
    "backbone:gemma2-27b",
)  # fmt: skip
# Written for 32 chips -> their parameters with Llama 3's tokenizer; tied, no LM head.
POD = {
    "llama:1b": 1.236e9,
    "llama:3b": 3.213e9,
    "llama:8b": 7.505e9,
    "llama:8b-large": 7.505e9,
    "coste:1b-mean": 1.477e9,
}
# The same of configs whose trunk is of the hub, and their chips.
HUB = {
    "backbone:llama3.1-8b": (7.505e9, 32),
    "backbone:qwen3-8b": (7.568e9, 32),
    "backbone:gemma2-9b": (9.242e9, 32),
    "backbone:gemma2-27b": (27.23e9, 128),
}
# What their config.json say, by the end of their name.
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip
WEIGHTS = {
    "SmolLM2-135M-Instruct": ("llama", (49152, 576, 1536, 30, 9, 3, 64), {}),
    "Llama-3.1-8B-Instruct": (
        "llama",
        (128_256, 4096, 14336, 32, 32, 8, 128),
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    ),
    "Qwen3-8B": ("qwen3", (151_936, 4096, 12288, 36, 32, 8, 128), {"rope_theta": 1e6}),
    "gemma-2-9b-it": ("gemma2", (256_000, 3584, 14336, 42, 16, 8, 256), {}),
    "gemma-2-27b-it": ("gemma2", (256_000, 4608, 36864, 46, 32, 16, 128), {}),
}
TINY = {
    "data.world.train": 16,
    "data.world.valid": 8,
    "data.world.test": 8,
    "contract.max_length": 128,
    "contract.max_response": 96,
    "batch.examples": 8,
    "batch.row_lengths": (128,),
    "batch.chunk_tokens": 8192,
    "model.d_model": 8,
    "model.n_layers": 2,
    "model.n_heads": 2,
    "model.n_kv_heads": 1,
    "model.d_ff": 16,
    "train.duration": "2 steps",
}


class Recording(Mapping):
    """A config that notes the dotted name of every value that somebody reads."""

    def __init__(self, values, seen, prefix=""):
        self._values, self._seen, self._prefix = values, seen, prefix

    def __getitem__(self, key):
        value, name = self._values[key], f"{self._prefix}{key}"
        if isinstance(value, Mapping | FrozenConfigDict):
            return Recording(value, self._seen, f"{name}.")
        self._seen.add(name)
        return value

    def __getattr__(self, key):
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None

    def __iter__(self):
        return iter(self._values)

    def __len__(self):
        return len(self._values)

    def to_dict(self):  # the whole of it goes into config.json: nobody read a value
        return self._values.to_dict()


def test_recording_notes_what_is_read_and_nothing_else():
    seen = set()
    config = Recording(FrozenConfigDict({"a": {"b": 1, "c": 2}, "d": 3, "e": 4}), seen)
    assert config.a.b == 1 and config["d"] == 3
    assert config.to_dict()["a"] == {"b": 1, "c": 2} and set(config) == {"a", "d", "e"}
    assert seen == {"a.b", "d"}
    assert dict(config.a.items()) == {"b": 1, "c": 2} and "a.c" in seen


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A config, and the names of the keys that its training run and report read."""
    config, seen = rm_jax.config.load("rm_jax:base"), set()
    del config.data.eval.test
    for key, value in TINY.items():
        rm_jax.config.override(config, key, value)
    folder = tmp_path_factory.mktemp("keys")
    config.data.cache_dir = str(folder / "cache")
    config.name = "a name that only this run has"
    validate = rm_jax.train.validate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rm_jax.train, "validate", lambda c: Recording(validate(c), seen))
        rm_jax.train(config, str(folder / "run"), stream=io.StringIO())
    # The report reads the run directory, not the config.
    page = (folder / "run" / "report.html").read_text("utf-8")
    return config, seen | ({"name"} if config.name in page else set())


def test_every_key_is_read(run):
    config, seen = run
    known = flatten(config.to_dict())
    seen = seen | {"schema_version"}  # by validate, before the recording: test_config
    unread = [k for k in known if k not in seen and not k.startswith(OPEN)]
    assert not unread, f"nobody reads config.{unread}: read them or delete them"


@pytest.fixture
def hub(monkeypatch):
    """Weights of the hub, as far as their config.json."""

    def open_source(spec):
        kind, sizes, more = WEIGHTS[spec.rpartition("/")[2]]
        config = {"model_type": kind, **dict(zip(SIZES, sizes, strict=True)), **more}
        return Source(spec, config, {}, None)

    monkeypatch.setattr(models.given, "open_source", open_source)


@pytest.mark.parametrize("address", CONFIGS)
def test_every_config_is_sound(address, hub):
    config = validate(rm_jax.config.load(f"rm_jax:{address}"))
    objective = losses.choose(config.loss)
    of_data = models.heads.find(config.model.head.name).of_attributes
    attributes = ATTRIBUTES if of_data else ("right",)
    arch = models.make_arch(config.model, 4096, config.contract.pooling, attributes)
    outputs = models.heads.shapes(arch)
    losses.check_outputs(objective, arch.head, outputs.keys(), {})
    losses.check_terms(objective, len(attributes), outputs)
    assert arch.lm_head != "none" or not objective.needs_token_logp
    reducers.parse(config.members.reducer)


@pytest.mark.parametrize("address", [*POD, *HUB])
def test_a_full_size_config_fits_its_pod(address, hub):
    want, chips = HUB.get(address) or (POD[address], 32)
    config = validate(rm_jax.config.load(f"rm_jax:{address}"))
    mesh = types.SimpleNamespace(shape=dict(config.mesh.items()))
    assert math.prod(mesh.shape.values()) == chips
    for shape in pack.shapes(config.batch.row_lengths, config.batch.chunk_tokens, 16):
        sharding.rows_divide(mesh, shape.rows, address)
    arch = models.make_arch(config.model, 128_256, config.contract.pooling)
    params = jax.eval_shape(models.functions(arch)[0], jax.random.key(0))
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    for path, x in leaves:
        sharding.spec_of(sharding.path_name(path), x.shape, mesh)
    size = sum(x.size for _, x in leaves)
    assert size == pytest.approx(want, rel=0.01)


def test_every_config_is_named_here(root):
    files = {path.stem for path in (root / "configs").glob("*.py")}
    assert files == {address.partition(":")[0] for address in CONFIGS}
