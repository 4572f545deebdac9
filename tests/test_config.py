"""Configs: where they come from, what an override may say, what is refused and how."""

import json
import re

import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from rm_jax import config, rundir
from rm_jax.config import (
    ConfigError,
    Duration,
    load,
    override,
    parse_duration,
    validate,
)

FILE = """
from ml_collections import ConfigDict
from rm_jax.config import load

def get_config(arg=""):
    c = load("rm_jax:base")
    c.name = "mine-" + arg
    c.batch.examples = 7
    return c
"""


@pytest.fixture
def base():
    return load("rm_jax:base")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_load_a_python_file_with_an_argument(file):
    assert load(str(file)).name == "mine-"
    assert (
        load(f"{file}:big").name == "mine-big" and load(str(file)).batch.examples == 7
    )


def test_load_by_name(base):
    assert load("rm_jax:quickstart").name == "quickstart"
    assert load("rm_jax:hh:small").name == "hh-small"
    assert base.schema_version == 1


def test_load_a_run_directory_or_its_json(tmp_path, file):
    want = load(f"{file}:x")
    (tmp_path / "config.json").write_text(rundir.config_text(want))
    for address in (tmp_path, tmp_path / "config.json"):
        assert load(str(address)).to_dict() == want.to_dict()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("no/such.py", "no config file 'no/such.py': give FILE.py"),
        ("no/such.py:arg", "no config file 'no/such.py'"),
        (
            "rm_jax:quickstrat",
            r"no config 'rm_jax:quickstrat'; known: \['armorm', 'backbone', 'base', ",
        ),
        ("rm_jax:base:arg", "base takes no argument, got 'arg'"),
        ("rm_jax:hh:huge", r"hh has no size 'huge'; known: \['1b'"),
    ],
)
def test_an_address_of_nothing(address, message):
    with pytest.raises(ValueError, match=message):
        load(address)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no function get_config"),
        ("def get_config(arg): return 5", "get_config gave 5, want a ConfigDict"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_mod"),
        ("def get_config(arg):\n  return c", "NameError: name 'c' is not defined"),
        ("def get_config(arg:", "SyntaxError: "),
        (FILE.replace("= 7", "= 'seven'"), "TypeError: .*examples"),
        (FILE.replace("c.batch", "c.bach"), "bach"),
        ("import sys; sys.exit(0)", r"exit\(0\).*get_config"),
        ("def get_config(arg): raise SystemExit", r"exit\(None\).*get_config"),
        ("def get_config(arg):\n  1 / 0", ":2: ZeroDivisionError: division by zero"),
        ("def get_config(arg):\n  raise ValueError(arg)", ":2: ValueError"),
        ("def get_config(arg):\n  raise ValueError('no size')", ":2: no size"),
        ("def get_config(arg):\n  open('no/such')", ":2: FileNotFoundError.*no/such"),
        ("assert False", ":1: AssertionError$"),
        ("def get_config(arg):\n  return get_config(arg)", ":2: RecursionError"),
        (FILE.replace("return c", "load('no.py')"), ":9: no config file 'no.py'"),
    ],
)
def test_a_broken_python_file_is_named(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load(str(path))
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "{", "not JSON"),
        ("x.json", "[1]", "want a JSON object, got list"),
        (
            "x.json",
            '{"batch": {"exmples": 1}}',
            "batch.exmples; did you mean .'batch.ex",
        ),
        ("x.json", '{"batch": {"examples": 1.5}}', "examples = 1.5: want int like 64"),
        (
            "x.json",
            '{"batch": {"examples": "64"}}',
            "examples = '64': want int like 64",
        ),
        ("x.yaml", "a: 1", "want a .py or .json file"),
        ("x.json", '{"batch": ' * 5000, "x.json: .*nested too deep"),
        ("x.json", '{"a": ' * 600 + "1" + "}" * 600, "x.json: .{0,400}$"),
        ("x.json", '{"batch.examples": 1}', "x.json: .*'batch.examples' has a dot"),
        ("x.json", '{"loss": {"margin": NaN}}', "x.json: .*NaN"),
        ("x.json", '{"data": {"world": {"noise": -Infinity}}}', "x.json: .*Infinity"),
        (
            "x.json",
            '{"batch": {"examples": 1, "examples": 2}}',
            "x.json: .*'examples' twice",
        ),
    ],
)
def test_a_broken_data_file_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(str(tmp_path / name))


def test_a_relative_path_has_its_line_too(tmp_path, monkeypatch):
    (tmp_path / "c.py").write_text("def get_config(arg):\n  return 1 / 0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="^c.py:2: ZeroDivisionError"):
        load("./c.py")


def test_a_frozen_config_of_a_file_can_be_changed(tmp_path):
    text = FILE.replace("import ConfigDict", "import FrozenConfigDict")
    text = text.replace("return c", "return FrozenConfigDict(c)")
    (tmp_path / "c.py").write_text(text)
    found = load(f"{tmp_path}/c.py:x")
    override(found, "model.windows", "(8, 0)")
    want = load("rm_jax:base")
    want.name, want.batch.examples, want.model.windows = "mine-x", 7, (8, 0)
    assert found.to_dict() == want.to_dict() == validate(found).to_dict()


def test_an_interrupt_in_a_python_file_passes(tmp_path):
    (tmp_path / "c.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load(f"{tmp_path}/c.py")


def test_json_takes_no_argument(tmp_path):
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ConfigError, match="a JSON config takes no argument"):
        load(f"{tmp_path}/c.json:tiny")


@pytest.mark.parametrize("key", ["train.too_good", "data.eval", "data.columns"])
def test_one_knob_that_a_file_lacks_is_said(base, tmp_path, capsys, key):
    values = base.to_dict()
    section, _, last = key.rpartition(".")
    default = values[section].pop(last)
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load(str(tmp_path)).to_dict() == base.to_dict()
    taken = config.flatten({section: {last: default}})
    assert capsys.readouterr().err == (
        f"{tmp_path}/config.json lacks knobs; taken: "
        + ", ".join(f"config.{k} = {v!r}" for k, v in taken.items())
        + "\n"
    )


def test_a_file_that_lacks_none_is_read_in_silence(base, tmp_path, capsys):
    base.data.eval, base.data.train = ConfigDict({"a": "world:#test"}), "world:"
    (tmp_path / "config.json").write_text(rundir.config_text(base))
    load(str(tmp_path))
    assert capsys.readouterr().err == ""


def test_json_round_trip_is_exact(base, tmp_path):
    # Everything that JSON or the defaults could bend: tuples, sections that lost keys,
    # sections that got some, numbers that look like text and text like numbers.
    base.data.eval = ConfigDict({"mine": "jsonl:x.jsonl"})
    base.data.columns = ConfigDict({"prompt": "1", "chosen": "None"})
    base.data.world.noise = 0.25
    del base.data.audit["conflict"]
    base.loss = ConfigDict({"name": "pkg.mod:f", "margin": 1, "regularizers": {}})
    base.loss.regularizers.center = ConfigDict({"weight": 0.5})
    base.model.windows = (4, 0)
    base.model.init, base.members.count = ("a", "b"), 2
    base.optim.lr_multipliers = (("embed", 0.0), (".*", 1.0))
    base.optim.learning_rate = 1 / 3
    base.train.best_metric = "eval/mine/nll"
    frozen = validate(base)
    (tmp_path / "config.json").write_text(rundir.config_text(frozen))
    again = load(str(tmp_path))
    assert again.to_dict() == base.to_dict() == frozen.to_dict()
    assert type(again.optim.lr_multipliers[0]) is tuple
    assert rundir.config_text(validate(again)) == rundir.config_text(frozen)


def test_json_may_leave_keys_out_and_they_are_said(tmp_path, base, capsys):
    (tmp_path / "c.json").write_text(
        '{"batch": {"examples": 3}, "loss": {"name": "x"}}'
    )
    found = load(f"{tmp_path}/c.json")
    head, _, taken = capsys.readouterr().err.partition("; taken: ")
    assert head == f"{tmp_path}/c.json lacks knobs" and taken.count("\n") == 1
    want = config.flatten(base.to_dict())
    want = {k for k in want if k != "batch.examples" and not k.startswith("loss.")}
    assert set(re.findall(r"config\.([\w.]+) = ", taken)) == want
    assert "config.train.duration = '300 steps', " in taken
    assert "config.data.eval.valid = '#valid', " in taken
    assert found.batch.examples == 3 and found.loss.to_dict() == {"name": "x"}
    assert found.model.to_dict() == base.model.to_dict()


@pytest.mark.parametrize(
    ("key", "value", "want"),
    [
        ("batch.examples", "5", 5),
        ("batch.examples", 5, 5),
        ("optim.learning_rate", "2", 2.0),
        ("optim.learning_rate", "1e-4", 1e-4),
        ("train.tensorboard", "False", False),
        ("train.duration", "3 epochs", "3 epochs"),
        ("name", "7", "7"),
        ("model.windows", "(8, 0)", (8, 0)),
        ("model.init", "runs/a", "runs/a"),
        ("model.init", '["runs/a", "b"]', ("runs/a", "b")),
        ("model.windows", "[8, 0]", (8, 0)),
        (
            "optim.lr_multipliers",
            "[['embed', 0], ['.*', 1]]",
            (("embed", 0), (".*", 1)),
        ),
        ("data.eval.mine", "jsonl:a.jsonl", "jsonl:a.jsonl"),
        ("data.world.noise", "0.1", 0.1),
        ("data.columns.prompt", "question", "question"),
        ("loss.margin", "0.5", 0.5),
        ("loss.regularizers.center.weight", "0.01", 0.01),
        ("data.eval", "{}", {}),
        ("data.eval", '{"a": "world:#test"}', {"a": "world:#test"}),
    ],
)
def test_override_reads_text_as_the_type_of_the_key(base, key, value, want):
    override(base, key, value)
    found = base
    for name in key.split("."):
        found = found[name]
    found = found.to_dict() if isinstance(found, ConfigDict) else found
    assert found == want and type(found) is type(want)


def test_a_number_of_an_open_section_may_change_its_kind(base):
    override(base, "loss.margin", "1")
    override(base, "loss.margin", "0.5")
    assert base.loss.margin == 0.5


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "batch.exampels",
            "5",
            r"unknown key config.batch.exampels; .*'batch.examples'",
        ),
        ("bach.examples", "5", r"unknown key config.bach.examples; .*'batch.examples'"),
        ("batch.examples.x", "5", "unknown key config.batch.examples.x"),
        ("examples", "5", "unknown key config.examples"),
        (
            "batch.examples",
            "five",
            "batch.examples = 'five': want int like 64, got str",
        ),
        ("batch.examples", "5.0", "want int like 64, got float"),
        ("batch.examples", "True", "want int like 64, got bool"),
        ("train.tensorboard", "1", "want bool like True, got int"),
        ("optim.learning_rate", "True", "want float like 0.001, got bool"),
        ("model.windows", "8", r"want tuple like \(0,\), got int"),
        ("optim.learning_rate", "fast", "want float like 0.001, got str"),
        ("name", 7, "config.name = 7: want text like 'base'"),
        ("batch.examples", "(" * 5000, r"examples = '\(\(.{,200}: want int like 64"),
        ("batch.examples", "{[]: 1}", "config.batch.examples = .*not JSON: .*column 2"),
        ("batch.examples", '{"a": 1}', "want int like 64, got ConfigDict"),
        ("batch.examples", "1e18", "want int like 64, got float"),
        ("data.columns", '{1: "x"}', "data.columns = .*not JSON: .*column 2.*at '1: "),
        ("data.columns", '{"a.b": "x"}', "config.data.columns = .*'a.b' has a dot"),
        ("loss.margin", '{"a": NaN}', "config.loss.margin = .*NaN is not JSON"),
        ("data.train", "{" * 5000, "config.data.train = '{{.{,80}: not JSON: "),
        ("data.train", '{"a":' * 50000, "config.data.train = .{,100}RecursionError"),
        (
            "data.train",
            '{"a": {"spec": "hh:x", weight: 1}}',
            "config.data.train = .*not JSON: .*double quotes: line 1 column 24 .char "
            "23., at 'weight: 1}}'; want {\"name\"",
        ),
        ("data.train", '{"a": {"spec": "hh:x"', "not JSON: .*delimiter: line 1 column"),
        ("data.train", " {'a': 1}", "not JSON: .* line 1 column 3"),
        ("data.world", "[" * 99 + "]" * 99, "world = '.{,201}: this is a section"),
        (
            "optim",
            "sgd",
            r"optim = 'sgd': this is a section of \['b1', .*config.optim.NA",
        ),
    ],
)
def test_override_refuses(base, key, value, message):
    before = base.to_dict()
    with pytest.raises(ConfigError, match=message):
        override(base, key, value)
    assert base.to_dict() == before


def test_validate_freezes_and_changes_nothing(base):
    frozen = validate(base)
    assert isinstance(frozen, FrozenConfigDict) and frozen.to_dict() == base.to_dict()
    assert validate(frozen).to_dict() == frozen.to_dict()


@pytest.mark.parametrize("name", ["base", "quickstart", "truthfulqa", "hh:1b"])
def test_our_configs_are_valid(name):
    validate(load(f"rm_jax:{name}"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.on_bad_row": "skip"}, r"= 'skip': known are \['raise', 'drop'\]"),
        ({"contract.bos": "two"}, r"config.contract.bos = 'two': known are \['one', "),
        ({"contract.pooling": "max"}, "config.contract.pooling = 'max': known"),
        ({"model.dtype": "float16"}, "config.model.dtype = 'float16': known"),
        (
            {"model.lora.targets": '("q", "mlp")'},
            r"lora.targets = \('q', 'mlp'\): want regexes .* \('q', 'k', .*'down'\)",
        ),
        ({"model.lora.targets": '("q", "v(")'}, "targets = .*want regexes"),
        ({"model.lora.targets": "()"}, r"targets = \(\): want regexes"),
        ({"model.lora.rank": "-1"}, "config.model.lora.rank = -1: must be 0 or more"),
        ({"model.lora.alpha": "0"}, "config.model.lora.alpha = 0.*: must be above 0"),
        ({"model.lora.dropout": "1"}, "lora.dropout = 1.*: must be 0 or more, below"),
        (
            {"members.count": "2", "members.share": "adapters"},
            "share = 'adapters': the model has none: set config.model.lora.rank",
        ),
        (
            {"members.count": "2", "members.share": "trunk", "model.lora.rank": "2"},
            "share = 'trunk' trains one trunk, and config.model.lora freezes it",
        ),
        (
            {
                "members.count": "2",
                "members.share": "trunk",
                "model.init": '["a", "b"]',
            },
            "names 2 runs, and members that share one trunk .*'trunk'.* start from one",
        ),  # fmt: skip
        (
            {"model.head.init": "none"},
            r"head.init = 'none': known are \['zero', 'normal', 'keep', 'reset'\]",
        ),
        ({"model.init": '["a", "b"]'}, "names 2 runs for config.members.count = 1"),
        ({"model.init": "7"}, "init = 7: want 'scratch', a run directory, or a list"),
        ({"model.head.init": "keep"}, "'keep': a model from scratch has no head yet"),
        ({"model.head.init": "reset"}, "'reset': a model from .*'zero' or 'normal'"),
        ({"optim.name": "adam"}, r"= 'adam': known are \['adamw', 'lion'"),
        ({"batch.layout": "dense"}, "config.batch.layout = 'dense': known"),
        ({"train.duration": "300"}, "config.train.duration = '300': want an amount"),
        ({"train.duration": "0 steps"}, "train.duration = '0 steps': must be above 0"),
        (
            {"train.log_every": "0 epochs"},
            "config.train.log_every = '0 epochs': must be",
        ),
        (
            {"train.eval_every": "-1 steps"},
            "config.train.eval_every = '-1 steps': want",
        ),
        ({"train.save_every": "1.5 steps"}, "config.train.save_every = '1.5 steps'"),
        ({"batch.examples": "0"}, "config.batch.examples = 0: must be above 0"),
        ({"model.d_model": "-8"}, "config.model.d_model = -8: must be above 0"),
        ({"optim.learning_rate": float("inf")}, "learning_rate = inf: must be above 0"),
        ({"optim.eps": float("nan")}, "config.optim.eps = nan: must be above 0"),
        ({"optim.clip_norm": "-1"}, "config.optim.clip_norm = -1.0: must be 0 or more"),
        ({"batch.examples": 10**18}, "examples = 10+: must be above 0: .* to 16777216"),
        ({"batch.examples": 10**400}, "examples = a number of over 300 digits: must"),
        ({"model.d_ff": 10**12}, "config.model.d_ff = 10+: .* 1 to 4194304"),
        ({"model.n_layers": 10**6}, "config.model.n_layers = 10+: .* 1 to 16384"),
        ({"train.keep_last": 2**31}, "keep_last = 2147483648: .* 1 to 2147483647"),
        (
            {"data.limit": 2**60},
            "config.data.limit = .*: must be 0 or more: 0, or 1 to ",
        ),
        ({"optim.learning_rate": 1e39}, "learning_rate = 1e.39: .* to 3.4e.38"),
        (
            {"optim.eps": 1e-39},
            "config.optim.eps = 1e-39: must be above 0: 1.2e-3",
        ),
        ({"model.windows": (2**31,)}, r"windows = \(2147483648,\): want .*2147483647"),
        ({"train.duration": "1e18 steps"}, 'duration = .1e18.*at most "2147483647 st'),
        ({"train.duration": "1e300 epochs"}, "config.train.duration = '1e300 epochs'"),
        ({"train.spike_sigma": float("nan")}, "spike_sigma = nan: must be 0 or more"),
        (
            {"data.valid_fraction": "1.5"},
            "valid_fraction = 1.5: must be between 0 and 1",
        ),
        ({"optim.b1": "1"}, "config.optim.b1 = 1.0: must be 0 or more, below 1"),
        ({"optim.b2": "1"}, "config.optim.b2 = 1.0: must be 0 or more, below 1"),
        ({"train.ema": "1"}, "config.train.ema = 1.0: must be 0 or more, below 1"),
        (
            {"model.dropout": "1"},
            "config.model.dropout = 1.0: must be 0 or more, below",
        ),
        ({"init_seed": "-1"}, r"config.init_seed = -1: must be in \[0, 2\^31\)"),
        (
            {"batch.row_lengths": "()"},
            r"row_lengths = \(\): want numbers of tokens, ris",
        ),
        ({"batch.row_lengths": "(256, 128)"}, "row_lengths = .256, 128.: want numbers"),
        ({"batch.row_lengths": "(128, 128, 256)"}, "want numbers of tokens, rising"),
        ({"batch.row_lengths": "(0, 256)"}, "want numbers of tokens, rising"),
        ({"batch.row_lengths": "('a', 'b')"}, "want numbers of tokens, rising"),
        (
            {"contract.max_length": "257"},
            r"max_length = 257 does not fit the longest row",
        ),
        ({"contract.max_response": "256"}, "max_response = 256 must be below .* = 256"),
        (
            {"batch.chunk_tokens": "2000"},
            "chunk_tokens = 2000 is not a multiple .* 128",
        ),
        ({"model.attention": "full"}, "set config.batch.layout = 'padded'"),
        ({"model.windows": "()"}, r"config.model.windows = \(\): want at least one"),
        ({"model.windows": "(-1,)"}, r"config.model.windows = \(-1,\): want at least"),
        (
            {"model.n_kv_heads": "3"},
            "n_heads = 4 is not a multiple of model.n_kv_heads",
        ),
        (
            {"model.n_heads": "6", "model.n_kv_heads": "6"},
            "d_model = 128 is not a mult",
        ),
        (
            {"data.valid_fraction": "0.5", "data.test_fraction": "0.5"},
            "valid_fraction . test_fraction must be below 1",
        ),
        (
            {"data.columns": '{"prompt": 3}'},
            "config.data.columns.prompt = 3: want text",
        ),
        (
            {"data.columns.prompt": '{"a": "b"}'},
            "data.columns.prompt.a = 'b': want text",
        ),
        ({"data.eval.mine": "5"}, "config.data.eval.mine = 5: want a SPEC"),
        (
            {"train.best_metric": "valid/nll"},
            r"best_metric = 'valid/nll': want eval/SET/FIGURE, .*\['test', 'valid'\]",
        ),
        (
            {"train.best_metric": "eval/valid"},
            "best_metric = 'eval/valid': want eval/S",
        ),
        (
            {"train.best_metric": "eval/vaild/nll"},
            "best_metric = 'eval/vaild/nll': want",
        ),
        ({"data.eval": "{}"}, r"SET one of \[\] and .*keep_best = 0"),
    ],
    ids=str,
)
def test_validate_names_key_value_and_limit(base, changes, message):
    for key, value in changes.items():
        override(base, key, value)
    with pytest.raises(ConfigError, match=message):
        validate(base)


@pytest.mark.parametrize(
    ("changes"),
    [
        {"data.eval": "{}", "train.keep_best": "0"},
        {"train.best_metric": "x", "train.keep_best": "0"},
        {"model.attention": "full", "batch.layout": "padded"},
        {"optim.warmup": "0 steps"},
        {"model.init": '["a", "b"]', "members.count": "2"},
        {"contract.max_response": "255"},
        {"data.test_fraction": "0", "optim.b1": "0", "train.ema": "0.999"},
    ],
    ids=str,
)
def test_validate_passes_the_limits_themselves(base, changes):
    for key, value in changes.items():
        override(base, key, value)
    validate(base)


def test_validate_finds_missing_unknown_and_mistyped_keys(base):
    del base.batch["prefetch"]
    with pytest.raises(
        ConfigError, match="config.batch.prefetch is missing; its def.* 2"
    ):
        validate(base)
    other = load("rm_jax:base")
    other.batch.prefech = 3
    with pytest.raises(
        ConfigError, match="unknown key config.batch.prefech; .*prefetch"
    ):
        validate(other)
    third = load("rm_jax:base")
    with third.batch.ignore_type():
        third.batch.examples = "64"
    with pytest.raises(ConfigError, match="batch.examples = '64': want int like 64"):
        validate(third)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("500 steps", 500),
        ("1 step", 1),
        ("3 epochs", 94),  # 3000 / 32 = 93.75
        ("0.5 epochs", 16),
        ("64 examples", 2),
        ("65 examples", 3),
        ("0 steps", 0),
    ],
)
def test_durations_are_whole_steps_rounded_up(text, steps):
    assert parse_duration(text).steps(batch=32, examples=1000) == steps


def test_more_steps_than_can_be_counted_are_refused():
    assert Duration(2**31 - 1, "examples").steps(batch=1, examples=5) == 2**31 - 1
    with pytest.raises(
        ConfigError, match="3000 epochs are 3000000000000 steps of 1 of"
    ):
        Duration(3000.0, "epochs").steps(batch=1, examples=10**9)


def test_a_duration_that_divides_is_not_rounded_up():
    # 0.07 * 100 is 7.000000000000001 as a float.
    assert Duration(0.07, "epochs").steps(batch=1, examples=100) == 7


@pytest.mark.parametrize(
    "text",
    ["", "5", "steps", "five steps", "5 weeks", "5 steps more", "-1 steps",
     "nan epochs", "inf steps", "1.5 steps", 5, None],
)  # fmt: skip
def test_what_is_no_duration(text):
    with pytest.raises(
        ConfigError, match=r"config.a.b = .*: want an amount and a unit"
    ):
        parse_duration(text, "a.b")


def test_flatten_keeps_empty_sections():
    assert config.flatten({"a": {"b": 1, "c": {}}, "d": (2,)}) == {
        "a.b": 1,
        "a.c": {},
        "d": (2,),
    }


def test_a_head_has_a_name_and_a_start(base):
    base.model.head = ConfigDict({"name": "mlp"})
    with pytest.raises(ConfigError, match="model.head.init is missing; .* 'zero'"):
        validate(base)
    base.model.head = ConfigDict({"init": "normal", "hidden": (4,)})
    with pytest.raises(ConfigError, match="model.head.name is missing; .*'linear'"):
        validate(base)


def test_another_schema_version_is_refused(base):
    base.schema_version = 2
    with pytest.raises(
        ConfigError, match="schema_version is 2, .* up to 1: install a newer"
    ):
        validate(base)


def test_an_evaluation_set_is_text(base):
    for bad in ({"valid": {"a": "world:#valid"}}, {"valid": ""}, {"valid": "#"}):
        base.data.eval = ConfigDict(bad)
        with pytest.raises(ConfigError, match="config.data.eval.*valid"):
            validate(base)


@pytest.mark.parametrize(
    "changes, alike",
    [
        ({"members.share": "trunk"}, True),
        ({"members.share": "trunk", "model.head.init": "normal"}, False),
        ({"members.share": "trunk", "data.bootstrap": "poisson"}, False),
        ({"members.share": "trunk", "model.head.name": "mlp"}, False),
        ({"model.init": "run"}, True),
        ({"model.init": "run", "model.head.init": "keep"}, True),
        ({"model.init": "run", "model.head.init": "reset"}, False),
        ({"model.init": "run", "model.dropout": 0.1}, False),
        ({"model.init": '["a", "b"]'}, False),
        ({}, False),
    ],
)
def test_members_that_would_be_copies_of_one_another_are_refused(base, changes, alike):
    for key, value in {"members.count": 2, **changes}.items():
        override(base, key, value)
    if alike:
        with pytest.raises(
            ConfigError, match="count = 2: all members would be the same"
        ):
            validate(base)
    else:
        validate(base)
