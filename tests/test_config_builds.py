"""Every tiny config is built up to its first program: data, labels, head, rates."""

import gzip
import json

import pytest
from test_config_keys import CONFIGS

import rm_jax
from rm_jax import build, losses
from rm_jax.data.specs import parse_spec, resolve

OF_FILES = ("grm", "hh", "inform", "odin")  # these read a file that is given to them
TINY = [c for c in CONFIGS if ":tiny" in c and not c.startswith(OF_FILES)]
WORLD = {"train": 64, "valid": 16, "test": 16}


# config -> its public data set, and a row of it but for the prompt, which is PROMPT
ROWS = {
    "helpsteer2:tiny-pref": (
        "helpsteer2_preference",
        {
            "split": "train",
            "prompt": "PROMPT",
            "response_1": "Seven words are what is said here.",
            "response_2": "Fewer here.",
            "preference_strength": -2,
        },
    ),
    "prm:tiny-hard": (
        "math_shepherd",
        {
            "input": "PROMPT Step 1: 1 + 1 = 2. ки\nStep 2: It is 3. ки",
            "label": "PROMPT Step 1: 1 + 1 = 2. +\nStep 2: It is 3. -",
            "task": "GSM8K",
        },
    ),
    "prm:tiny-prm800k": (
        "prm800k",
        {
            "question": {"problem": "PROMPT"},
            "label": {
                "steps": [
                    {
                        "completions": [
                            {"text": "Add them up.", "rating": 0},
                            {"text": "Take one away.", "rating": -1},
                        ],
                        "human_completion": None,
                        "chosen_completion": 0,
                    }
                ]
            },
        },
    ),
}


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


@pytest.mark.parametrize("address", ROWS)
def test_the_rows_of_a_public_data_set_have_all_a_config_needs(
    built, address, tmp_path
):
    form, row = ROWS[address]
    config = rm_jax.config.load(f"rm_jax:{address}")
    full = rm_jax.config.load(f"rm_jax:{address.replace('tiny', '8b')}")
    assert full.data.train == f"preset:{form}"
    text = json.dumps(row)
    lines = [text.replace("PROMPT", f"Number {i}, 1 + 1?") for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    config.data.train = f"{form}:{tmp_path}/rows.jsonl"
    if config.contract.tokenizer.startswith("bpe"):
        config.contract.tokenizer = "byte"
    assert not [line for line in built(config) if "WARNING" in line]


def test_every_preset_that_a_config_names_is_known():
    trains = [rm_jax.config.load(f"rm_jax:{c}").data.train for c in CONFIGS]
    specs = {spec for spec in trains if spec.startswith("preset:")}
    assert len(specs) > 8
    for spec in specs:
        resolve(parse_spec(spec))


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
