"""Every tiny config is built up to its first program: data, labels, head, rates."""

import gzip

import pytest
from test_config_keys import CONFIGS

import rm_jax
from rm_jax import build, losses

OF_FILES = ("grm", "hh", "inform", "odin")  # these read a file that is given to them
TINY = [c for c in CONFIGS if ":tiny" in c and not c.startswith(OF_FILES)]
WORLD = {"train": 64, "valid": 16, "test": 16}


class Reached(Exception):
    """The next thing would be a program."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A token cache for all."""
    return str(tmp_path_factory.mktemp("tokens"))


@pytest.fixture
def built(cache, monkeypatch):
    """Builds a config as far as it goes without a program; returns what was said."""

    def stop(*_, **__):
        raise Reached

    monkeypatch.setattr(build, "plan", stop)

    def built(config):
        if config.data.train == "world:":
            config.data.world.update(WORLD)
        config.data.cache_dir, said = cache, []
        frozen = rm_jax.config.validate(config)
        known = losses.LOSSES, losses.REGULARIZERS
        with pytest.raises(Reached):
            build.build(frozen, None, *known, said.append)
        return said

    return built


@pytest.mark.parametrize("address", TINY)
def test_a_tiny_config_has_all_its_loss_needs(built, address):
    said = built(rm_jax.config.load(f"rm_jax:{address}"))
    assert not [line for line in said if "WARNING" in line]


@pytest.mark.parametrize(
    ("address", "key", "value", "message"),
    [
        ("helpsteer2:tiny-pref", "data.train", "world:", "predicts ratings"),
        ("secrets2:tiny-soft", "data.world.annotators", 1, "`soft`"),
        ("urm:tiny-mle", "model.head.name", "attributes", "'log_std'"),
        ("up_lora:tiny", "model.lora.rank", 0, "rank"),
        ("warm:tiny-probe", "optim.lr_multipliers", (("hed", 1.0),), "matches none"),
    ],
)
def test_a_config_that_lacks_something_is_not_built(
    built, address, key, value, message
):
    config = rm_jax.config.load(f"rm_jax:{address}")
    rm_jax.config.override(config, key, value)
    if value == "world:":
        config.contract.tokenizer = "word"
    with pytest.raises(ValueError, match=message):
        built(config)


def test_a_set_that_needs_larger_chunks_says_so(built):
    config = rm_jax.config.load("rm_jax:quickstart")
    config.data.eval.many = "world:responses=99,test=2#test"
    found = [line for line in built(config) if "chunk_tokens" in line]
    assert len(found) == 1 and found[0].startswith("many: its largest example needs")


@pytest.mark.parametrize("address", [c for c in CONFIGS if "-" in c])
def test_an_argument_that_is_not_known_lists_those_that_are(address):
    name, _, argument = address.partition(":")
    known = argument.partition("-")[2]
    with pytest.raises(ValueError, match=known):
        rm_jax.config.load(f"rm_jax:{name}:tiny-nothing")


def test_the_rows_are_those_of_their_script(root, tmp_path):
    folder = root / "configs" / "rows"
    rm_jax.config.module_of(str(folder / "make.py")).write(tmp_path)
    for name in ("rated", "steps"):
        made, kept = (
            gzip.decompress((at / f"{name}.jsonl.gz").read_bytes())
            for at in (tmp_path, folder)
        )
        assert made == kept, f"run python configs/rows/make.py: {name} has changed"
