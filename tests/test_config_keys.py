"""Every config is sound, and every key of base.py is read: an unread key is a lie."""

import io
from collections.abc import Mapping

import pytest

import rm_jax
from rm_jax import losses, models
from rm_jax.config import FrozenConfigDict, flatten, validate

# Their keys are of a choice's own, checked where they are read.
OPEN = ("data.columns", "data.world", "loss.regularizers")
OLD = (
    "base", "quickstart", "truthfulqa", "hh", "hh:tiny", "hh:small", "hh:1b", "hh:8b",
    "grm:tiny", "grm:8b", "odin:tiny", "odin:8b", "inform:tiny", "inform:8b",
)  # fmt: skip
CONFIGS = (*OLD, *variants.CONFIGS)
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


@pytest.mark.parametrize("address", CONFIGS)
def test_every_config_is_sound(address):
    config = validate(rm_jax.config.load(f"rm_jax:{address}"))
    losses.choose(config.loss)
    arch = models.make_arch(config.model, 4096, config.contract.pooling)
    assert arch.d_model == config.model.d_model


def test_every_config_is_named_here(root):
    files = {path.stem for path in (root / "configs").glob("*.py")}
    assert files == {address.partition(":")[0] for address in CONFIGS}
