"""What is spilled comes back by key, whatever is in memory at a time."""

import collections
import os

import numpy as np
import pytest

from rm_jax.data.spill import Flags, Spill


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 64, 1000])
@pytest.mark.parametrize("distinct", [1, 5, 10**6])
def test_all_pairs_come_back_by_key_in_their_order(tmp_path, n, distinct):
    rng = np.random.default_rng(n)
    hashes = rng.integers(0, 2**64, distinct, np.uint64, endpoint=False)
    keys = rng.choice(hashes, n).tolist()
    spill, want = Spill(tmp_path, run=8), collections.defaultdict(list)
    for value, key in enumerate(keys):
        want[key].append(value)
        if value < n // 3:
            spill.add(key, value)
    rest = np.array(keys[n // 3 :], np.uint64)
    spill.extend(rest, np.arange(n // 3, n))
    found, last = {}, -1
    for group, values in spill.groups():
        assert group.tolist() == sorted(group.tolist()) and len(group) == len(values)
        for key in dict.fromkeys(group.tolist()):
            assert key > last and key not in found  # whole in one group
            found[key], last = values[group == key].tolist(), key
    assert found == want


def test_extreme_keys_and_values():
    spill = Spill(run=2)
    pairs = [(2**64 - 1, 2**62), (0, 1), (2**63, 2), (2**63 - 1, 3), (2**64 - 1, 0)]
    for key, value in pairs:
        spill.add(key, value)
    groups = [list(zip(k.tolist(), v.tolist(), strict=True)) for k, v in spill.groups()]
    assert sum(groups, []) == [pairs[1], pairs[3], pairs[2], pairs[0], pairs[4]]


def test_groups_are_about_a_run():
    rng = np.random.default_rng(0)
    spill = Spill(run=256)
    for value, key in enumerate(rng.integers(0, 2**63, 256 * 16).tolist()):
        spill.add(2 * key, value)
    sizes = [len(keys) for keys, _ in spill.groups()]
    # Each of 4,096 falls into one of 16 groups: 256 on average, 15.5 of deviation.
    assert len(sizes) == 16 and all(abs(n - 256) < 5 * 15.5 for n in sizes)


@pytest.mark.parametrize("n", [0, 1, 8, 30])
def test_flags_are_changed_in_place(tmp_path, n):
    flags = Flags(tmp_path, block=8)
    for i in range(n):
        flags.append(i)
    assert flags.all().tolist() == list(range(n))
    flags.all()[2:5] |= 1 << 15
    want = [i | (1 << 15) * (2 <= i < 5) for i in range(n)]
    assert [block.tolist() for block in flags.blocks()] == [
        want[at : at + 8] for at in range(0, n, 8)
    ]


def test_the_files_have_no_name(tmp_path):
    spill, flags = Spill(tmp_path, run=1), Flags(tmp_path, block=1)
    spill.add(1, 1)
    flags.append(1)
    assert os.listdir(tmp_path) == []
