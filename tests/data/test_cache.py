"""The token cache: what goes in comes out, whole or not at all."""

import json
import os
import resource
import zlib

import numpy as np
import pytest

from rm_jax.data import arrays, cache
from rm_jax.data.cache import CacheError

NAN = float("nan")


@pytest.fixture
def records(id_record):
    return [
        id_record(
            0,
            [1, 10, 11, 12],
            [[20, 21], [30]],
            keep=[2, 4],
            gold=[0.5, -1.5],
            soft=0.75,
            weight=0.5,
            ratings={"help": (1.0, None)},
            steps=[[(0, 1), (1, None)], [(0, 0.25)]],
            reference_logp=(-1.5, None),
        ),
        id_record(1, None, [[5], [6]]),
        id_record(2, [1], [[7]], strength=3.0, ranks=(None,), ratings={"help": (2.5,)}),
        id_record("ü", [1, 13], [[40], [50, 51], [60]], ratings={"help": (None,) * 3}),
    ]


@pytest.fixture
def built(records, id_encoder, tmp_path):
    return cache.build(records, id_encoder(), tmp_path / "set", {"a": 1}, {"spec": "x"})


def test_round_trip(built):
    again = cache.open_cache(built.directory)
    for data in (built, again):
        assert len(data) == 3 and data.max_responses == 3
        assert [data.count(i) for i in range(3)] == [2, 1, 3]
        tokens = [
            [data.branch(i, j).tolist() for j in range(data.count(i) + 1)]
            for i in range(3)
        ]
        assert tokens == [
            [[1, 10, 11, 12], [20, 21], [30]],
            [[1], [7]],
            [[1, 13], [40], [50, 51], [60]],
        ]
        assert [data.lengths(i).tolist() for i in range(3)] == [[2, 1], [1], [1, 2, 1]]
        per = lambda name, i, data=data: data.per_response(name, i).tolist()
        assert [per("prompt_keep", i) for i in range(3)] == [[2, 4], [1], [2, 2, 2]]
        assert [per("ranks", i) for i in range(3)] == [[0, 1], [-1], [0, 1, 2]]
        np.testing.assert_array_equal(data.arrays["gold"], [0.5, -1.5, *[NAN] * 4])
        ratings = data.per_response("ratings", 0), data.per_response("ratings", 1)
        np.testing.assert_array_equal(ratings[0], [[1], [NAN]])
        np.testing.assert_array_equal(ratings[1], [[2.5]])
        np.testing.assert_array_equal(data.arrays["soft"], [0.75, NAN, NAN])
        np.testing.assert_array_equal(data.arrays["strength"], [NAN, 3, NAN])
        np.testing.assert_array_equal(data.arrays["weight"], [0.5, 1, 1])
        assert len(set(data.arrays["prompt_hash"].tolist())) == 3
        assert [data.id(i) for i in range(3)] == data.ids(3) == ["r0", "r2", "rü"]
        assert data.ids(1) == ["r0"]
        assert data.meta["audit"] == {"a": 1} and data.meta["source"] == {"spec": "x"}
        assert data.meta["counts"] == {"dropped": 1}
        assert data.meta["attributes"] == ["help"] and data.meta["tokens"] == 15
        assert data.meta["given"] == {
            "gold": 1, "pairs": 2, "ranks": 2, "ratings": 2, "reference_logp": 1,
            "soft": 1, "steps": 1, "strength": 1,
        }  # fmt: skip
        assert data.meta["max_steps"] == 2
        assert data.steps(np.arange(6)).tolist() == [2, 1, 0, 0, 0, 0]
        assert data.arrays["step_end"].tolist() == [0, 1, 0]
        np.testing.assert_array_equal(data.arrays["step_label"], [1, NAN, 0.25])
        np.testing.assert_array_equal(data.arrays["reference_logp"], [-1.5, *[NAN] * 5])


@pytest.mark.parametrize(
    ("side", "bos", "want"),
    [("left", 1, [1, 12]), ("right", 1, [1, 10]), ("left", None, [11, 12])],
)
def test_prompts_are_cut_by_contract(records, id_encoder, tmp_path, side, bos, want):
    encoder = id_encoder(side=side, bos_id=bos)
    data = cache.build(records, encoder, tmp_path / "set", {}, {})
    assert data.prompt(0, 2).tolist() == want
    assert data.prompt(0, 4).tolist() == [1, 10, 11, 12]


def test_arrays_are_mapped_and_cannot_be_written(built):
    assert isinstance(built.tokens.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        built.tokens[0] = 5


@pytest.mark.parametrize(("size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.int32)])
def test_two_bytes_a_token_where_they_do(id_record, id_encoder, tmp_path, size, dtype):
    top = size - 1
    data = cache.build(
        [id_record(0, [1], [[top]])], id_encoder(size), tmp_path / "a", {}, {}
    )
    assert data.tokens.dtype == dtype and data.branch(0, 1).tolist() == [top]


def test_labels_that_nobody_gave_are_not_fields(id_record, id_encoder, tmp_path):
    data = cache.build(
        [id_record(0, [1], [[2], [3]], ranks=(None, None))],
        id_encoder(), tmp_path / "a", {}, {},
    )  # fmt: skip
    assert data.meta["given"] == {}
    assert data.per_response("ratings", 0).shape == (2, 0)


def test_a_key_names_source_policy_and_contract():
    base = ("fingerprint", {"duplicate": "keep", "conflict": "drop"}, "contract")
    one = cache.key(*base)
    assert one == cache.key(base[0], dict(reversed(base[1].items())), base[2])
    others = {
        cache.key("other", *base[1:]),
        cache.key(base[0], base[1] | {"duplicate": "drop"}, base[2]),
        cache.key(base[0], {"duplicate": "keep"}, base[2]),
        cache.key(*base[:2], "other"),
    }
    assert len(others | {one}) == 5 and len(one) == 32


@pytest.mark.parametrize("name", [*(f"{n}.bin" for n in cache.ARRAYS), "tokens.bin",
                                  "ids.txt"])  # fmt: skip
@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_damaged_file_is_named_with_the_way_out(built, name, harm):
    path = built.directory / name
    data = path.read_bytes()
    path.unlink() if harm == "gone" else path.write_bytes(data[:-1])
    found = -1 if harm == "gone" else len(data) - 1
    with pytest.raises(CacheError) as error:
        cache.open_cache(built.directory)
    assert f"{path}: {found} bytes, want {len(data)}: delete" in str(error.value)


@pytest.mark.parametrize("name", [*(f"{n}.bin" for n in cache.ARRAYS), "tokens.bin",
                                  "ids.txt"])  # fmt: skip
def test_a_flipped_bit_is_found(built, name):
    path = built.directory / name
    data = bytearray(path.read_bytes())
    for at in (0, len(data) - 1):
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(CacheError, match=f"{path}: damaged: .*: delete .*/set and"):
            cache.open_cache(built.directory)
        data[at] ^= 1
    path.write_bytes(data)
    cache.open_cache(built.directory)


def test_checksums_are_crc32_of_every_file(built):
    assert built.meta["crc32"] == {
        path.name: zlib.crc32(path.read_bytes())
        for path in built.directory.iterdir()
        if path.name != "meta.json"
    }


def test_a_cache_of_many_blocks_is_as_one_of_one_block(
    random_set, tmp_path, monkeypatch
):
    whole = random_set(5, n=40)
    monkeypatch.setattr(arrays, "BLOCK", 7)
    blocks = random_set(5, n=40, max_length=65)
    assert whole.meta["crc32"] != {} and blocks.meta["crc32"] == whole.meta["crc32"]
    assert blocks.meta["given"] == whole.meta["given"]
    assert whole.meta["given"]["strength"] == 40 > whole.meta["given"]["soft"] > 0


@pytest.mark.parametrize("block", [1, 2, 4096])
def test_labels_are_counted_in_any_block(
    id_record, id_encoder, tmp_path, monkeypatch, block
):
    monkeypatch.setattr(arrays, "BLOCK", block)
    plain = [id_record(i, [1], [[2], [3]], ranks=(None, None)) for i in range(4)]
    given = {
        "gold": {"gold": [1.0, 2.0]},
        "soft": {"soft": 0.5},
        "strength": {"strength": 1.0},
        "ranks": {"ranks": (0, None)},
    }
    for name, fields in given.items():
        odd = id_record(9, [1], [[2], [3]], **({"ranks": (None, None)} | fields))
        data = cache.build([*plain, odd, *plain], id_encoder(), tmp_path / name, {}, {})
        more = {"pairs": 1} if name == "soft" else {}
        assert data.meta["given"] == {name: 1, **more}


def unsealed(path):
    return {k: v for k, v in json.loads(path.read_text()).items() if k != "seal"}


def test_every_bit_of_meta_is_guarded(built):
    """But those of the word seal, without which the rest is read as it is."""
    path = built.directory / "meta.json"
    good = path.read_bytes()
    for at in range(3, 8 * len(good), 97):
        bad = bytearray(good)
        bad[at // 8] ^= 1 << at % 8
        path.write_bytes(bad)
        try:
            found = cache.open_cache(built.directory).meta
        except CacheError:
            continue
        assert {k: found[k] for k in built.meta} == built.meta


def test_another_version_is_refused(built):
    path = built.directory / "meta.json"
    path.write_text(json.dumps(unsealed(path) | {"schema_version": 0}))
    with pytest.raises(
        CacheError, match="has schema_version 0, this code reads 4: delete .*/set"
    ):
        cache.open_cache(built.directory)


def test_damaged_meta_says_what_to_do(built):
    (built.directory / "meta.json").write_text('{"schema')
    with pytest.raises(CacheError, match="meta.json: not JSON: .*: delete .*/set and"):
        cache.open_cache(built.directory)


@pytest.mark.parametrize(
    "key",
    sorted(cache.META - {"schema_version"}),
)
def test_meta_without_a_key_is_refused(built, key):
    path = built.directory / "meta.json"
    meta = unsealed(path)
    del meta[key]
    path.write_text(json.dumps(meta))
    with pytest.raises(CacheError, match=f"meta.json: .*'{key}'.*: delete .*/set and"):
        cache.open_cache(built.directory)


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": []},
        {"crc32": []},
        {"crc32": {}},
        {"token_dtype": "nope"},
        {"token_dtype": "int32"},
        {"attributes": 3},
        {"attributes": []},
        {"attributes": ["a", "b"]},
        {"tokens": 14},
        {"examples": 4},
        {"examples": None},
    ],
    ids=str,
)
def test_meta_that_does_not_fit_the_arrays_is_refused(built, change):
    path = built.directory / "meta.json"
    path.write_text(json.dumps(unsealed(path) | change))
    with pytest.raises(CacheError, match=r"/set.*: delete .*/set and"):
        cache.open_cache(built.directory)


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"schema_version": 1}', "\0", "[" * 10**5]
)
def test_meta_that_is_something_else_is_refused(built, text):
    (built.directory / "meta.json").write_text(text)
    with pytest.raises(CacheError, match="/set.*delete .*set"):
        cache.open_cache(built.directory)


@pytest.mark.parametrize("name", ["branch_start", "example_branch", "id_start"])
def test_offsets_that_point_elsewhere_are_refused(built, name):
    path = built.directory / f"{name}.bin"
    offsets = np.fromfile(path, np.int64)
    for harm in (offsets * 2, offsets[::-1], np.full_like(offsets, 2**62)):
        harm.tofile(path)
        with pytest.raises(CacheError, match=f"{name}.bin: .*: delete .*/set and"):
            cache.open_cache(built.directory)


def test_no_cache_is_said(tmp_path):
    with pytest.raises(CacheError, match="none/meta.json: cannot read: no folder"):
        cache.open_cache(tmp_path / "none")


def test_a_folder_that_cannot_be_made_names_the_knob(records, id_encoder, tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file" / "set", tmp_path / "file" / "a" / "set"):
        with pytest.raises(CacheError, match=f"{folder}: .*config.data.cache_dir"):
            cache.build(records, id_encoder(), folder, {}, {})
    with pytest.raises(CacheError, match="file: .*Not a directory.*data.cache_dir"):
        cache.build(records, id_encoder(), tmp_path / "file", {}, {})
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("room", [0, 9, 30, 90, 300])
def test_a_full_disk_names_the_knob(records, id_encoder, tmp_path, room):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(CacheError, match="/set: .*config.data.cache_dir"):
            cache.build(records, id_encoder(), tmp_path / "set", {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_a_source_that_cannot_be_read_is_not_the_cache(records, id_encoder, tmp_path):
    def gone():
        yield records[0]
        yield (tmp_path / "no_such" / "rows.jsonl").read_text()

    with pytest.raises(FileNotFoundError, match="rows.jsonl"):
        cache.build(gone(), id_encoder(), tmp_path / "set", {}, {})


def test_an_unfinished_folder_is_built_again(records, id_encoder, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "tokens.bin").write_bytes(b"half")
    data = cache.build(records, id_encoder(), folder, {}, {})
    assert len(data) == 3 and os.listdir(tmp_path) == ["set"]


def test_a_finished_folder_is_never_replaced(built, id_record, id_encoder, tmp_path):
    before = (built.directory / "meta.json").read_bytes()
    data = cache.build(
        [id_record(9, [1], [[2]])], id_encoder(), built.directory, {}, {}
    )
    assert len(data) == 3 and os.listdir(tmp_path) == ["set"]
    assert (built.directory / "meta.json").read_bytes() == before


def test_of_two_builders_the_second_takes_the_work_of_the_first(
    records, id_encoder, tmp_path
):
    folder = tmp_path / "set"

    class Slow(id_encoder):
        def encode_many(self, some):
            yield from super().encode_many(some)
            self.other = cache.build(records, id_encoder(), folder, {"by": 1}, {})

    slow = Slow()
    data = cache.build(records, slow, folder, {"by": 2}, {})
    assert data.meta["audit"] == slow.other.meta["audit"] == {"by": 1}
    np.testing.assert_array_equal(data.tokens, slow.other.tokens)
    assert os.listdir(tmp_path) == ["set"]


def test_nothing_is_left_of_a_build_that_fails(records, id_encoder, tmp_path):
    def broken():
        yield records[0]
        raise OSError("disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        cache.build(broken(), id_encoder(), tmp_path / "set", {}, {})
    assert os.listdir(tmp_path) == []


def test_no_usable_record_is_an_error(id_record, id_encoder, tmp_path):
    with pytest.raises(CacheError, match=r"no usable record .* \{'dropped': 1\}"):
        cache.build([id_record(0, None, [[1]])], id_encoder(), tmp_path / "set", {}, {})
    assert os.listdir(tmp_path) == []


def test_records_have_the_same_attributes(records, id_record, id_encoder, tmp_path):
    records.append(id_record(7, [1], [[2]], ratings={"tone": (1.0,)}))
    with pytest.raises(CacheError, match=r"r7: ratings \['tone'\], but .*'help'"):
        cache.build(records, id_encoder(), tmp_path / "set", {}, {})


def test_source_facts_are_read_after_the_last_record(records, id_encoder, tmp_path):
    facts = {}

    def counted():
        yield from records
        facts["rows"] = 4

    data = cache.build(counted(), id_encoder(), tmp_path / "set", {}, facts)
    assert data.meta["source"] == {"rows": 4}
