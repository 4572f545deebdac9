"""Heads on features of a frozen trunk: the whole model's numbers, without its work."""

import json
import pathlib
import resource
import shutil

import ml_dtypes
import numpy as np
import pyarrow.parquet as pq
import pytest
import tinymodel
from safetensors.numpy import load_file, save_file
from tiny import WORLD, arrays, lines, train
from tinymodel import LAYERS

import rm_jax as package
from rm_jax import features, store
from rm_jax.config import ConfigError
from rm_jax.data import pack, vectors
from rm_jax.data.loader import Loader
from rm_jax.data.schema import record_from_dict, record_to_dict
from rm_jax.data.vectors import FeatureError, FeatureLoader
from rm_jax.data.world import make_world
from rm_jax.export import export
from rm_jax.manifest import named
from rm_jax.members import take

pytestmark = pytest.mark.usefixtures("one_device")
FROZEN = {
    "model__arch": "init",
    "model__dropout": 0.0,
    "optim__lr_multipliers": (("^head", 1.0), (".*", 0.0)),
    "train__duration": "4 steps",
    "train__keep_best": 0,
    "train__ema": 0.0,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A model folder of random numbers, as config.model.init names it."""
    return tinymodel.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def config(make, weights):
    """Makes a config of a run on that trunk, frozen."""
    return lambda **changes: make(**FROZEN | {"model__init": weights} | changes)


def head_of(run, step=4):
    """Parameters of the head in a checkpoint, members and all."""
    model = package.load(str(run))
    return named(model.params["head"])[0]


CASES = {
    "linear": {},
    "mean": {"contract__pooling": "mean"},
    "mlp": {"model__head__name": "mlp", "model__head__dropout": 0.0},
    "lengths": {
        "model__head__name": "odin",
        "loss__regularizers": {"odin": {"weight": 1.0}},
    },
    "rivals": {"model__head__name": "pair"},
    "members": {"members__count": 2},
    "own order": {"members__count": 2, "members__own_order": True},
    "padded": {"batch__layout": "padded"},
    "ema": {"train__ema": 0.5},
}


@pytest.mark.parametrize("case", CASES)
def test_a_frozen_model_and_its_features_train_alike(config, tmp_path, case):
    train(config(**CASES[case]), tmp_path / "whole")
    train(config(**CASES[case], model__features=LAYERS), tmp_path / "features")
    whole, ours = lines(tmp_path / "whole"), lines(tmp_path / "features")
    assert len(whole) == len(ours) > 1
    for a, b in zip(whole, ours, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_allclose(a[key], b[key], 2e-4, 2e-5, err_msg=key)
    want, got = head_of(tmp_path / "whole"), head_of(tmp_path / "features")
    assert want.keys() == got.keys()
    for path in want:
        np.testing.assert_allclose(want[path], got[path], rtol=1e-3, atol=1e-5)
    saved = arrays(tmp_path / "features", 4)
    assert not any("embed" in path or "stack" in path for path in saved)


def test_a_lower_layer_is_a_cut_trunk_wherever_it_goes(config, tmp_path, weights):
    """Training's own scores, a scorer's, and those of the exported folder's weights."""
    run = tmp_path / "run"
    train(config(model__features=2), run)
    model = package.load(str(run))
    assert model.arch.n_layers == 2
    table = pq.read_table(run / "predictions" / "valid.parquet").to_pydict()
    records = [
        record_from_dict(record_to_dict(r)) for r in make_world(WORLD).records("valid")
    ]
    scores = model.score_records(records)
    got = [x for row in scores for x in row if not np.isnan(x)]
    np.testing.assert_allclose(got, table["score"], rtol=1e-4, atol=1e-5)
    assert np.std(got) > 1e-3
    (folder,) = export(str(run), str(tmp_path / "out"))
    out = json.loads(pathlib.Path(folder, "config.json").read_text())
    assert out["num_hidden_layers"] == 2
    want = load_file(pathlib.Path(weights.removeprefix("hf:")) / "model.safetensors")
    found = load_file(pathlib.Path(folder) / "model.safetensors")
    left = {n for n in want if "layers.2." not in n and "layers.3." not in n}
    assert found.keys() == left | {"score.weight"}
    for name in found.keys() & want.keys():
        np.testing.assert_array_equal(found[name], want[name])
    np.testing.assert_array_equal(found["score.weight"][0], model.params["head"])


def test_what_is_cheap_is_checked_before_the_trunk_runs(config, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "load", lambda *args: pytest.fail("the trunk ran"))
    nothing = {"optim__lr_multipliers": ((".*", 0.0),), "model__features": 4}
    fresh = {"data__cache_dir": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match="freezes everything"):
        train(config(**nothing, **fresh), tmp_path / "run")


def test_a_second_run_does_not_read_the_trunk(config, tmp_path, monkeypatch):
    train(config(model__features=3), tmp_path / "first")

    def never(*args):
        raise AssertionError("the trunk was read")

    monkeypatch.setattr(features, "load", never)
    done, said = train(config(model__features=3, init_seed=5), tmp_path / "second")
    assert done and "features: " not in said
    with pytest.raises(AssertionError, match="was read"):
        train(config(model__features=1), tmp_path / "third")


def test_one_pass_gives_every_layer(config, tmp_path, rm_jax, monkeypatch, weights):
    """The verb's features are those that a run of one layer makes for itself."""
    own = config(model__features=1, data__cache_dir=str(tmp_path / "a"))
    train(own, tmp_path / "one")
    c = config(data__cache_dir=str(tmp_path / "b"))
    said = []
    data, found = features.of_config(c, [3, 1], said.append)
    passes = [line for line in said if "tokens through the first 3 layers" in line]
    assert found.keys() == {"train", "valid"} and len(passes) == 2
    single = sorted((tmp_path / "a" / "features").glob("*/vectors.array_record"))
    assert len(single) == 2
    for name, of in found.items():
        assert list(of) == [1, 3]
        twin = tmp_path / "a" / "features" / of[1].folder.name
        twin = vectors.open_features(twin, {"train": data.train, **data.evals}[name])
        a, b = of[1].read(np.arange(12)), twin.read(np.arange(12))
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
        assert not np.allclose(a[0], of[3].read(np.arange(1))[0])
    words = ["--config", "rm_jax:base", f"--config.data.cache_dir={tmp_path / 'b'}"]
    words += ["--config.model.arch=init", f"--config.model.init={weights}"]
    words += ["--config.train.compile_cache=", "--config.batch.chunk_tokens=2048"]
    words += [f"--config.data.world.{part}=8" for part in ("train", "valid", "test")]
    code, out, err = rm_jax("features", *words, "--layers", "2,1")
    assert code == 0, err
    assert "train: layer 1, " in out and "test: layer 2, " in out
    assert rm_jax("features", *words, "--layers", "0")[0] == 1
    code, _, err = rm_jax("features", *words, "--layers", "9")
    assert code == 1 and "has 4 layers" in err.splitlines()[-1]


def write(folder, data, steps, d=2):
    """Features whose vector is (example, position), and of prompts (-example, 7)."""
    places = vectors.Positions(data, steps)
    meta = {"dtype": "float32", "d_model": d, "width": 2 * d, "steps": steps}
    with vectors.writer(folder, meta) as put:
        for i in range(len(data)):
            n = places.example[i + 1] - places.example[i]
            put(np.array([[i, j, -i, 7] for j in range(n)]))
    return vectors.open_features(folder, data)


@pytest.mark.parametrize("steps", [False, True])
def test_vectors_are_where_the_slots_say(toy_set, tmp_path, steps):
    """Beside the chunks of tokens of the same items, slot for slot."""
    sizes = [(5, [6, 4]), (3, [8]), (4, [5, 7, 6])]
    ends = [
        [[(1, 1), (3, 0)], []],
        [[(0, 1), (4, 1), (6, 0)]],
        [[(2, 1)], [(1, 0), (5, 1)], []],
    ]
    data = toy_set(sizes, steps=ends)
    found = write(tmp_path / "f", data, steps)
    ours = FeatureLoader(data, lambda _: found, 3, multiple=2, steps=steps)
    tokens = Loader(data, pack.shapes((64,), 256, 4), 3, steps=steps)
    for step in range(3):
        mine, theirs = ours.batch_at(step), tokens.batch_at(step)
        assert mine.examples == theirs.examples and mine.pairs == theirs.pairs
        assert [shape.rows for shape in mine.shapes] == [4]  # 3, in pairs
        ((batch, labels),), ((packed, other),) = mine.chunks, theirs.chunks
        assert labels.ids[:3].tolist() == other.ids[:3].tolist()
        np.testing.assert_array_equal(labels.ranks[:3], other.ranks[:3])
        p = labels.steps.shape[2]
        np.testing.assert_array_equal(labels.steps[:3], other.steps[:3, :, :p])
        length = dict(_slots(packed, other.lengths))
        here = dict(_slots(batch, batch.lengths))
        assert here.keys() == length.keys() and len(here) == mine.tokens
        items = ours.items_at(step)
        for (e, k, s), (row, slot) in here.items():
            item = items[e]
            at = vectors.Positions(data, steps).of(item.example)[item.order[k]]
            number = at[s - 1] if s else at[-1]
            assert batch.responses[row, slot].tolist() == [item.example, number]
            assert batch.prompts[row, slot].tolist() == [-item.example, 7]
            assert batch.lengths[row, slot] == sizes[item.example][1][item.order[k]]
            assert batch.lengths[row, slot] == other.lengths[e, k]


def _slots(batch, _):
    used = np.argwhere(batch.slot_ids[..., 0] >= 0)
    return [(tuple(batch.slot_ids[r, s].tolist()), (r, s)) for r, s in used.tolist()]


def test_steps_and_prompts_are_features_too(config, weights, tmp_path):
    """A head of steps and one that reads the prompt, on the rows that configs ship."""
    steps = "rm_jax:prm:tiny-prm800k"
    gate = "rm_jax:armorm:tiny-gate"
    for address, changes in ((steps, {}), (gate, {"model.head.dropout": 0.0})):
        c = package.config.load(address)
        for key, value in {
            "model.arch": "init", "model.init": weights, "model.dropout": 0.0,
            "model.lm_head": "none", "train.duration": "3 steps",
            "train.report": False, "train.tensorboard": False,
            "data.cache_dir": str(tmp_path / "tokens"), **changes,
        }.items():  # fmt: skip
            package.config.override(c, key, value)
        whole, ours = c.copy_and_resolve_references(), c
        whole.optim.lr_multipliers = FROZEN["optim__lr_multipliers"]
        ours.optim.lr_multipliers = FROZEN["optim__lr_multipliers"]
        ours.model.features = LAYERS
        name = address.split(":")[1]
        train(whole, tmp_path / f"{name}-whole")
        train(ours, tmp_path / name)
        a, b = lines(tmp_path / f"{name}-whole")[-1], lines(tmp_path / name)[-1]
        assert a.keys() == b.keys()
        for key in a:
            if "dropout" not in key:
                np.testing.assert_allclose(a[key], b[key], rtol=1e-3, atol=1e-4)


def test_it_goes_on_where_it_stopped(config, tmp_path):
    make = lambda steps: config(model__features=2, train__duration=f"{steps} steps")
    train(make(6), tmp_path / "whole")
    train(make(3), tmp_path / "parts")
    train(make(6), tmp_path / "parts")
    assert arrays(tmp_path / "whole", 6) == arrays(tmp_path / "parts", 6)


def test_bfloat16_is_kept_as_it_is(config, tmp_path):
    c = config(model__dtype="bfloat16", data__cache_dir=str(tmp_path))
    found = features.of_config(c, [2], print)[1]["valid"][2]
    assert found.meta["dtype"] == "bfloat16"
    (own,) = found.read(np.array([3]))
    assert own.dtype == ml_dtypes.bfloat16 and np.std(own.astype(np.float32)) > 0.1
    assert own.shape == (2, 8)


def test_members_of_features_are_models_of_one_trunk(config, tmp_path):
    train(config(model__features=2, members__count=3), tmp_path / "run")
    model = package.load(str(tmp_path / "run"))
    assert model.members.count == 3
    one = named(take(model.params, model.members.share, 1))[0]
    heads = model.params["head"]
    assert heads.shape == (3, 8) and not np.allclose(heads[0], heads[1])
    np.testing.assert_array_equal(one["head"], heads[1])
    assert model.score_members(
        [record_from_dict({"prompt": "a", "responses": ["b", "c"]}, "x")]
    ).shape == (3, 1, 2)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model__lora__rank": 2}, "lora.rank = 0"),
        ({"model__dropout": 0.1}, "dropout = 0"),
        ({"model__arch": "decoder"}, "config.model.arch = 'init'"),
        ({"model__init": "runs/other"}, "weights of others"),
        ({"model__lm_head": "tied"}, "lm_head = 'none'"),
        ({"members__share": "trunk", "members__count": 2}, "share = 'none'"),
        ({"model__features": LAYERS + 1}, "has 4 layers"),
        ({"model__features": -1}, "0 or more"),
    ],
)
def test_what_features_cannot_have(config, tmp_path, changes, why):
    with pytest.raises(ValueError, match=why):
        train(config(**{"model__features": 2} | changes), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_other_weights_are_refused(config, weights, tmp_path):
    """By a run that goes on, and by what scores with its head."""
    folder = tmp_path / "model"
    shutil.copytree(weights.removeprefix("hf:"), folder)
    make = lambda n: config(
        model__init=f"hf:{folder}", model__features=2, train__duration=f"{n} steps"
    )
    train(make(2), tmp_path / "run")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = 2 * tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="another content of config.model.init"):
        train(make(4), tmp_path / "run")
    with pytest.raises(ConfigError, match="bring the old weights back"):
        package.load(str(tmp_path / "run"))
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="no such path.*bring them back"):
        package.load(str(tmp_path / "run"))


def test_a_head_alone_is_no_start_of_a_whole_model(config, weights, tmp_path):
    """Nor the other way round, nor on other weights; each is said before any work."""
    head, whole = tmp_path / "head", tmp_path / "whole"
    of = lambda **more: config(**{"train__duration": "2 steps"} | more)
    train(of(model__features=2), head)
    train(of(), whole)
    longer = {"train__duration": "3 steps"}
    heads = [str(head), str(head)]
    for start, why in (
        ({"model__init": str(head)}, "holds a head alone, .*rm-jax export"),
        ({"model__init": heads, "members__count": 2}, "holds a head alone"),
        ({"train__resume": str(head)}, "features = 2, this run 0: set it to 2"),
        (
            {"train__resume": str(whole), "model__features": 2},
            "features = 0, this run 2: set it to 0",
        ),
    ):
        with pytest.raises(ConfigError, match=why):
            train(of(**longer | start), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    folder = tmp_path / "model"
    shutil.copytree(weights.removeprefix("hf:"), folder)
    resume = {"model__features": 2, "train__resume": str(head), **longer}
    moved = of(**resume, model__init=f"hf:{folder}")
    train(moved, tmp_path / "moved")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = 2 * tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="bring the old weights back"):
        train(moved, tmp_path / "other")
    (head / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"head: its run\.json, .*is gone"):
        package.load(str(head))


@pytest.mark.parametrize(("context", "warned"), [(127, True), (128, False)])
def test_a_context_that_is_too_short_is_warned_of(
    config, weights, tmp_path, context, warned
):
    """The config's max_length is 128 tokens."""
    folder = tmp_path / "model"
    shutil.copytree(weights.removeprefix("hf:"), folder)
    more = {"max_position_embeddings": context}
    (folder / "config.json").write_text(json.dumps(tinymodel.CONFIG | more))
    c = config(model__init=f"hf:{folder}", model__features=1)
    _, said = train(c, tmp_path / "run")
    assert (f"was made for {context} tokens" in said) == warned


def test_damaged_features_are_named(toy_set, tmp_path):
    data = toy_set([(5, [6, 4]), (3, [8])] * 40)
    write(tmp_path / "f", data, False)
    file = tmp_path / "f" / vectors.FILE
    whole = file.read_bytes()
    for content in (whole[:-9], whole + b"x", b""):
        file.write_bytes(content)
        with pytest.raises(FeatureError, match="damaged: .* bytes written"):
            vectors.open_features(tmp_path / "f", data)
    bad = bytearray(whole)
    bad[len(bad) // 2] ^= 16
    file.write_bytes(bad)
    with pytest.raises(FeatureError, match=r"f: damaged: .*delete the folder"):
        vectors.open_features(tmp_path / "f", data).read(np.arange(len(data)))
    file.write_bytes(whole)
    with pytest.raises(FeatureError, match="80 records for 2 examples"):
        vectors.open_features(tmp_path / "f", toy_set([(5, [6])] * 2, name="other"))
    meta = store.read_json(str(tmp_path / "f" / "meta.json"))
    for part in ({"width": 2}, {"width": "4"}, {"dtype": "float64"}, {"dtype": None}):
        store.write_json(str(tmp_path / "f" / "meta.json"), meta | part)
        with pytest.raises(FeatureError, match="damaged"):
            vectors.open_features(tmp_path / "f", data).read(np.arange(1))
    (tmp_path / "f" / "meta.json").write_text("{")
    with pytest.raises(FeatureError, match="damaged"):
        vectors.open_features(tmp_path / "f", data)
    (tmp_path / "f" / "meta.json").unlink()
    with pytest.raises(FeatureError, match="in the way"):
        write(tmp_path / "f", data, False)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(FeatureError, match=r"cannot be written.*cache_dir"):
        write(blocked / "f", data, False)


def test_a_full_disk_is_named(toy_set, tmp_path):
    """Nothing half-written is left, and nothing stands in the way of the next try."""
    data = toy_set([(5, [6, 4]), (3, [8])] * 40)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(FeatureError, match=r"f: cannot be written: .*cache_dir"):
            write(tmp_path / "d" / "f", data, False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "d").iterdir()) == []
    write(tmp_path / "d" / "f", data, False)


def test_labels_do_not_change_the_name_of_features(toy_set):
    sizes = [(5, [6, 4]), (3, [8, 2])]
    a, b = toy_set(sizes), toy_set(sizes, name="b", ranks=[(1, 0), (0, 0)])
    other = toy_set(sizes, name="c", seed=1)
    assert vectors.key(a, {"layer": 1}) == vectors.key(b, {"layer": 1})
    names = {vectors.key(x, {"layer": n}) for x in (a, other) for n in (1, 2)}
    assert len(names) == 4


def test_the_trunk_may_be_sharded(make, weights, tmp_path, monkeypatch):
    """On eight devices the same features as on one."""
    import tiny

    base = FROZEN | {"model__init": weights}
    of = lambda **more: features.of_config(make(**base, **more), [3], print)[1]
    one = of(data__cache_dir=str(tmp_path / "1"))
    monkeypatch.setattr("rm_jax.sharding.make_mesh", tiny.REAL_MESH)
    mesh = {"mesh__fsdp": 2, "mesh__data": 2, "mesh__tensor": 2}
    where = {"data__cache_dir": str(tmp_path / "8"), "model__vocab_multiple": 8}
    eight = of(**mesh, **where)
    for name in one:
        a, b = (x[name][3].read(np.arange(12)) for x in (one, eight))
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_a_whole_model_goes_on_elsewhere(config, weights, tmp_path, several):
    """Its checkpoint has the trunk: the weights it started from are not asked about."""
    more = {"model__init": [weights, weights], "members__count": 2} if several else {}
    train(config(**more, train__duration="2 steps"), tmp_path / "first")
    info = json.loads((tmp_path / "first" / "run.json").read_text())
    assert isinstance(info["weights"], list) == several
    resume = {"train__resume": str(tmp_path / "first")}
    done, _ = train(config(**more, **resume), tmp_path / "second")
    assert done and arrays(tmp_path / "second", 4)
