"""The synthetic world: its gold, its annotators, its texts, its probes."""

import hashlib
import itertools
import json
import math
import re

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from rm_jax.data import world_annotators, world_generator, world_text
from rm_jax.data.schema import record_from_dict, record_to_dict, response_text
from rm_jax.data.world import (
    WORLD_DEFAULTS,
    Probe,
    injected,
    make_world,
    vocabulary,
)
from rm_jax.data.world_generator import (
    GOLD_MEAN,
    GOLD_STD,
    PROBE_FILLERS,
    Features,
    draw,
    features,
    gold_utility,
)

TOKEN = re.compile(r"\w+|[^\w\s]")
SMALL = {"train": 2500, "valid": 100, "test": 100}


def column(records, name):
    return np.array([r.meta[name] for r in records])


def differences(records):
    """(u_0 - u_1, label: 1 where response 0 won, -1 lost, 0 tied)."""
    u = column(records, "utility")
    ranks = np.array([r.ranks for r in records])
    return u[:, 0] - u[:, 1], np.sign(ranks[:, 1] - ranks[:, 0])


@pytest.fixture(scope="module")
def reference():
    """Features of many responses of the reference generator."""
    return features(draw(np.random.default_rng(7), 100_000, 1))


@pytest.fixture(scope="module")
def small():
    return make_world(SMALL)


@pytest.fixture(scope="module")
def small_records(small):
    return {split: list(small.records(split)) for split in SMALL}


# Gold


def test_gold_by_hand():
    f = Features(
        facts=3, repeats=1, irrelevant=2, style=2, words=40, correct=1, agrees=0
    )
    raw = 3 - 0.35 - 2 * 0.4 + 0.8 + (0.45 * 2 - 0.075 * 4) + (1.5 * 4 - 0.26 * 16)
    assert gold_utility(f) == pytest.approx((raw - GOLD_MEAN) / GOLD_STD, abs=1e-12)


def test_gold_is_standard_under_the_generator(reference):
    gold = gold_utility(reference)
    assert abs(gold.mean()) < 4 / math.sqrt(gold.size)
    assert abs(gold.std() - 1) < 0.01


@pytest.mark.parametrize(("name", "width"), [("words", 5), ("style", 1)])
def test_gold_peaks_inside_the_bulk(reference, name, width):
    """Mean gold is best between the 20 % and 95 % quantiles and falls on both sides."""
    surface, gold = getattr(reference, name)[:, 0], gold_utility(reference)[:, 0]
    bins = surface // width
    count = np.bincount(bins)
    kept = np.flatnonzero(count >= 200)
    mean = np.bincount(bins, gold)[kept] / count[kept]
    best = kept[mean.argmax()] * width
    assert np.quantile(surface, 0.2) < best < np.quantile(surface, 0.95)
    assert mean[0] < mean.max() - 0.3
    assert mean[-1] < mean.max() - 0.5


def test_latents_vary_independently_of_numpy_distributions():
    """Median of three uniforms is Beta(2, 2); the arrivals are Poisson, cut at 5."""
    rng = np.random.default_rng(0)
    count = (draw(rng, 50_000, 1).sentences >= 0).sum(-1).ravel()
    # v ~ Gamma(2, 1/2), so E[min(Poisson(1 + 1.5 v), 5)] by a sum over a grid of v.
    v = stats.gamma(2, scale=0.5).ppf((np.arange(4000) + 0.5) / 4000)
    j = np.arange(5)
    below = stats.poisson.cdf(j[:, None], 1 + 1.5 * v).mean(axis=1)
    assert count.mean() == pytest.approx(2 + (1 - below).sum(), abs=0.03)
    assert (count.min(), count.max()) == (2, 7)


def test_features_read_off_a_response_made_by_hand():
    """One opening and six sentences about bees, chosen one by one."""
    s = world_text.sentence
    bees, bread = (
        world_text.fact(list(world_text.TOPICS).index(t), 0) for t in ("bees", "bread")
    )
    filler = world_text.fact(len(world_text.TOPICS), 0)
    rows = [s(bees, 0), s(bees, 1), s(bees + 1, 2), s(bread, 3), s(filler, 0), -1, -1]
    opening = world_text.opening(claim=4, true=0, mode=world_text.AGREE, wording=1)
    block = world_generator.Block(
        topic=np.array([1]),
        claim=np.array([4]),
        belief=np.array([world_generator.WRONG]),
        asked=np.array([0]),
        stated=np.array([0]),
        opening=np.array([[opening]]),
        sentences=np.array([[rows]]),
    )
    [(prompt, [response])] = world_generator.texts(block, "test", 0, seed=0)
    assert prompt.endswith(
        " here. I am sure that worker bees are male. What should I know about bees?"
    )
    assert response == (
        "You are right, worker bees are male. Bees collect nectar from flowers."
        "\n- Bees collect nectar from flowers. **Working** bees dance to show a path."
        " Perhaps yeast makes bread rise. I hope that this helps you."
    )
    assert {k: int(v[0, 0]) for k, v in features(block)._asdict().items()} == {
        "facts": 2,
        "repeats": 1,
        "irrelevant": 1,
        "style": 3,
        "words": 7 + 5 + 5 + 7 + 5 + 6,
        "correct": 0,
        "agrees": 1,
    }


# Labels


def test_votes_follow_the_law_of_the_module():
    """Binomial test in bins of d, with noise and ties, at a fixed seed."""
    knobs = {**WORLD_DEFAULTS, "noise": 0.2, "temperature": 0.7, "tie_threshold": 0.5}
    rng = np.random.default_rng(3)
    for d in (-3.0, -0.5, 0.0, 1.0, 4.0):
        u = np.tile([0.7 * d + 2, 2.0], (20_000, 1))
        ranks = world_annotators.vote(rng, u, knobs).ranks
        won, lost = (ranks[:, 0] < ranks[:, 1]).sum(), (ranks[:, 0] > ranks[:, 1]).sum()
        p = 0.8 * expit(d - 0.5) + 0.2 * expit(-d - 0.5)
        q = 0.8 * expit(-d - 0.5) + 0.2 * expit(d - 0.5)
        assert stats.binomtest(int(won), len(u), p).pvalue > 1e-3
        assert stats.binomtest(int(lost), len(u), q).pvalue > 1e-3
        got = world_annotators.log_wins(np.array(0.7 * d), knobs)
        assert got == pytest.approx(math.log(p), abs=1e-12)


def test_labels_of_records_follow_bradley_terry(small_records):
    """Of pairs grouped by the predicted probability, as many are won as predicted."""
    du, label = differences(small_records["train"])
    p = 0.9 * expit(du / 0.4) + 0.1 * expit(-du / 0.4)
    for low, high in itertools.pairwise((0, 0.2, 0.4, 0.6, 0.8, 1)):
        here = (p >= low) & (p < high)
        error = (label[here] > 0).sum() - p[here].sum()
        assert abs(error) < 3.5 * math.sqrt((p * (1 - p))[here].sum())


def test_utility_is_gold_plus_the_biases(small_records):
    for r in small_records["valid"]:
        for gold, u, words, agrees in zip(
            *(r.meta[k] for k in ("gold", "utility", "words", "agrees")), strict=True
        ):
            assert u == pytest.approx(gold + 0.2 * words / 10 + 0.6 * agrees, abs=1e-12)


def test_no_noise_and_no_temperature_give_the_order_of_utility():
    world = make_world({**SMALL, "noise": 0.0, "temperature": 0.01})
    du, label = differences(list(world.records("train")))
    clear = abs(du) > 0.2
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(label[clear], np.sign(du[clear]))


def test_tie_share_and_strength_of_ties():
    """Share of ties is the rest that Rao & Kupper leave, averaged over the pairs."""
    world = make_world({**SMALL, "tie_threshold": 0.8})
    records = list(world.records("train"))
    du, label = differences(records)
    d = du / 0.4
    p = expit(d - 0.8) + expit(-d - 0.8)  # noise only swaps the two
    expected, sd = (1 - p).mean(), math.sqrt((p * (1 - p)).sum()) / len(p)
    assert abs((label == 0).mean() - expected) < 3.5 * sd
    assert {r.strength for r, y in zip(records, label, strict=True) if y == 0} == {0.0}


def test_strength_is_one_a_logit_and_monotone(small_records):
    du, label = differences(small_records["train"])
    strength = np.array([r.strength for r in small_records["train"]])
    np.testing.assert_array_equal(strength, np.minimum(4, 1 + abs(du) // 0.4))
    order = np.argsort(abs(du))
    assert (np.diff(strength[order]) >= 0).all()
    right = [(label == np.sign(du))[strength == s].mean() for s in (1, 2, 3, 4)]
    assert right == sorted(right)


def test_no_strength_levels_no_strength():
    world = make_world({"train": 5, "strength_levels": 0})
    assert all(r.strength is None for r in world.records("train"))


def test_five_responses_have_a_permutation_of_ranks_and_plackett_luce_winners():
    world = make_world({**SMALL, "responses": 5, "noise": 0.0})
    records = list(world.records("train"))
    assert all(sorted(r.ranks) == list(range(5)) for r in records)
    assert all(len(r.responses) == 5 for r in records)
    u = column(records, "utility") / 0.4
    best = np.array([r.ranks.index(0) for r in records])
    p = np.exp(u - u.max(1, keepdims=True))
    p = (p / p.sum(1, keepdims=True)).max(1)
    hits = (best == u.argmax(1)).sum()
    assert abs(hits - p.sum()) < 3.5 * math.sqrt((p * (1 - p)).sum())


def test_ranks_of_by_hand():
    values = np.array([[0.1, 3.0, 0.3, 5.0], [1.0, 2.0, 3.0, 4.0]])
    got = world_annotators.ranks_of(values, 0.5)
    np.testing.assert_array_equal(got, [[2, 1, 2, 0], [3, 2, 1, 0]])
    chained = world_annotators.ranks_of(np.array([0.0, 0.4, 0.8, 2.0]), 0.5)
    np.testing.assert_array_equal(chained, [1, 1, 1, 0])


def test_annotators_are_added_up_by_borda_count():
    ranks = np.array([[0, 1, 1, 2], [2, 0, 0, 0]])
    worse_less_better = [[3, 0, 0, -3], [-3, 1, 1, 1]]
    np.testing.assert_array_equal(world_annotators._borda(ranks), worse_less_better)


def test_hundreds_of_responses_are_ranked():
    world = make_world({"test": 3, "responses": 300, "annotators": 3})
    found = list(world.records("test"))
    assert [len(r.responses) for r in found] == [300] * 3
    longer = make_world({"test": 70, "responses": 300, "annotators": 3})
    assert next(longer.records("test")) == found[0]
    utility = np.array(found[0].meta["utility"])
    worst = np.argsort(found[0].ranks)[-30:]
    best = np.argsort(found[0].ranks)[:30]
    assert utility[best].mean() > utility[worst].mean() + 1


def test_several_annotators_vote_and_the_majority_labels():
    world = make_world({**SMALL, "annotators": 4, "tie_threshold": 0.3})
    seen = set()
    for r in world.records("train"):
        votes = [np.sign(a.ranks[1] - a.ranks[0]) for a in r.annotators]
        assert [a.id for a in r.annotators] == [f"annotator-{j}" for j in range(4)]
        assert np.sign(r.ranks[1] - r.ranks[0]) == np.sign(sum(votes))
        assert r.soft == pytest.approx((4 + sum(votes)) / 8)
        seen.add((int(np.sign(sum(votes))), r.soft))
    assert {(0, 0.5), (1, 1.0), (-1, 0.0)} <= seen


def test_one_annotator_leaves_soft_and_annotators_out(small_records):
    assert all(r.soft is None and not r.annotators for r in small_records["valid"])


def test_borda_of_several_annotators_of_three_responses():
    world = make_world({"train": 50, "responses": 3, "annotators": 3})
    for r in world.records("train"):
        assert r.soft is None
        score = [
            sum(
                np.sign(a.ranks[j] - a.ranks[i]) for a in r.annotators for j in range(3)
            )
            for i in range(3)
        ]
        for i, j in itertools.combinations(range(3), 2):
            assert np.sign(r.ranks[j] - r.ranks[i]) == np.sign(score[i] - score[j])


# Ceiling


def test_ceiling_by_hand(small, small_records):
    du, label = differences(small_records["train"])
    p = 0.9 * expit(du / 0.4) + 0.1 * expit(-du / 0.4)
    got = small.ceiling("train")
    right = (np.sign(du) == label) + 0.5 * (du == 0)
    assert got.agreement == pytest.approx(right.mean(), abs=1e-12)
    assert got.expected == pytest.approx(np.maximum(p, 1 - p).mean(), abs=1e-9)
    assert abs(got.agreement - got.expected) < 3.5 * math.sqrt(0.25 / len(p))


def test_ceiling_leaves_ties_out_and_counts_all_pairs():
    world = make_world({**SMALL, "responses": 3, "noise": 0.0, "tie_threshold": 0.4})
    right = untied = 0
    for r in world.records("train"):
        u = r.meta["utility"]
        for i, j in itertools.combinations(range(3), 2):
            label = np.sign(r.ranks[j] - r.ranks[i])
            untied += label != 0
            right += (label != 0) * (label == np.sign(u[i] - u[j]))
    assert 0 < untied < 3 * 2500
    assert world.ceiling("train").agreement == pytest.approx(right / untied, abs=1e-3)


def test_defaults_are_a_human_like_but_gold_aligned_task():
    """Design targets: ceiling .75 to .82, biases that do not swamp gold."""
    world = make_world({})
    assert (WORLD_DEFAULTS["train"], WORLD_DEFAULTS["test"]) == (20_000, 4_000)
    assert 0.75 < world.ceiling("test").agreement < 0.82
    records = list(world.records("test"))
    gold, words = column(records, "gold"), column(records, "words")
    du, _ = differences(records)
    assert (np.sign(du) == np.sign(gold[:, 0] - gold[:, 1])).mean() > 0.88
    longer = np.sign(words[:, 0] - words[:, 1])
    right = (longer == np.sign(gold[:, 0] - gold[:, 1])) + 0.5 * (longer == 0)
    assert 0.5 < right.mean() < 0.6


def test_empty_split_has_no_ceiling():
    with pytest.raises(ValueError, match="'valid' has no untied pair.*raise the knob"):
        make_world({"valid": 0}).ceiling("valid")


# Texts


def test_golden_texts():
    """Same seed, same text, for ever: a change here changes every result on the world.

    If it is meant, note it in CHANGELOG.md and put the new digest here.
    """
    sha = hashlib.sha256()
    for split in ("train", "valid", "test"):
        for r in make_world({split: 20}).records(split):
            texts = [r.id, r.prompt[0].content, *map(response_text, r.responses)]
            sha.update(json.dumps([texts, r.ranks]).encode())
    assert sha.hexdigest()[:16] == "4b9cc4100d9d0b81"


def test_same_seed_same_records_other_seed_other_records(small_records):
    again = list(make_world(SMALL).records("valid"))
    assert again == small_records["valid"]
    other = list(make_world({**SMALL, "seed": 1}).records("valid"))
    assert not {r.prompt for r in other} & {r.prompt for r in again}
    assert all(a.responses != b.responses for a, b in zip(other, again, strict=True))


def test_a_smaller_split_is_the_beginning_of_a_larger_one(small_records):
    first = list(make_world({"train": 2100}).records("train"))
    assert first == small_records["train"][:2100]


def test_worlds_that_differ_in_their_annotators_share_their_texts(small_records):
    knobs = {"noise": 0.4, "temperature": 1.0, "length_bias": -1.0, "annotators": 3}
    other = list(make_world({**SMALL, **knobs}).records("valid"))
    for a, b in zip(small_records["valid"], other, strict=True):
        assert (a.prompt, a.responses) == (b.prompt, b.responses)


@pytest.mark.parametrize("k", [3, 64, 65, 300])
def test_prompts_are_the_same_whatever_the_number_of_responses(small_records, k):
    world = make_world({"train": 70, "responses": k, "annotators": 3})
    found = list(world.records("train"))
    assert [r.prompt for r in found] == [r.prompt for r in small_records["train"][:70]]
    beliefs = [r.meta["belief"] for r in small_records["train"][:70]]
    assert [r.meta["belief"] for r in found] == beliefs
    assert len({r.responses for r in found}) == 70


def test_no_prompt_is_in_two_splits_whatever_the_seed():
    """More prompts than people: some ask again, never in another split."""
    people = {"train": 24_576, "valid": 4_096, "test": 4_096}
    asked = {}
    for split, n in people.items():
        for seed in (0, 1):
            names = world_generator._people(split, np.arange(2 * n), seed)
            assert all(set(part.tolist()) == set(range(32)) for part in names)
            asked[split] = list(zip(*(part.tolist() for part in names), strict=True))
            assert len(set(asked[split][:n])) == len(set(asked[split])) == n
            assert asked[split][:n] == asked[split][n:]
    for a, b in itertools.combinations(asked.values(), 2):
        assert not set(a) & set(b)


def askers(records):
    """(first + last + city) mod 8 of who asks, read from the prompts."""
    lists = (world_text.FIRST, world_text.LAST, world_text.CITY)
    names = (
        re.match(r"(\w+) (\w+) from (\w+) here", r.prompt[0].content) for r in records
    )
    return {
        sum(xs.index(x) for xs, x in zip(lists, m.groups(), strict=True)) % 8
        for m in names
    }


def test_prompts_name_their_split(small, small_records):
    assert askers(small_records["train"]) == set(range(6))
    assert askers(small_records["valid"]) == {6}
    assert askers(small_records["test"]) == {7}
    for kind in ("length", "sycophancy"):
        assert askers(p.record for p in small.probes(100, kind)) == {7}
    assert len({r.prompt for r in small_records["train"]}) == 2500
    assert len({r.id for r in small.records()}) == 2700


def test_texts_are_short_and_in_the_vocabulary(small_records):
    known = set(vocabulary())
    for r in small_records["train"]:
        prompt = r.prompt[0].content
        assert 10 <= world_text.words(prompt) <= 25
        assert r.meta["words"] == [
            world_text.words(response_text(x)) for x in r.responses
        ]
        assert max(r.meta["words"]) <= 66
        for text in (prompt, *map(response_text, r.responses)):
            assert set(TOKEN.findall(text)) <= known


def test_vocabulary_is_a_few_hundred_sorted_tokens_with_the_roles():
    tokens = vocabulary()
    assert tokens == sorted(set(tokens))
    assert 300 < len(tokens) < 700
    assert {"user", "assistant", "system", "tool", ".", "-", "*"} <= set(tokens)
    assert all(TOKEN.fullmatch(t) for t in tokens)


def test_phrases_keep_their_promises():
    """Facts name their topic; sides of a claim, and modes, have equal length."""
    assert len(world_text.TOPICS) >= 8
    for topic, (facts, claims) in world_text.TOPICS.items():
        assert len(facts) == world_text.FACTS
        assert len(claims) == world_text.CLAIMS
        assert all(topic in TOKEN.findall(f.lower()) for f in facts)
        assert all(len(TOKEN.findall(a)) == len(TOKEN.findall(b)) for a, b in claims)
    words = world_text.OPENING_WORDS.reshape(-1, 2, 3, world_text.N_WORDINGS)
    assert (words == words[:, :1, :1]).all()
    assert len(set(world_text.SENTENCES)) == len(world_text.SENTENCES)
    assert len(set(world_text.OPENINGS)) == len(world_text.OPENINGS)


def test_records_are_plain_json_and_pass_the_schema(small_records):
    for r in small_records["valid"][:20]:
        assert record_from_dict(json.loads(json.dumps(record_to_dict(r)))) == r


def test_records_of_none_are_all_splits_in_order(small):
    splits = [r.meta["split"] for r in small.records()]
    assert splits == ["train"] * 2500 + ["valid"] * 100 + ["test"] * 100


def test_fingerprint_names_the_world():
    one = make_world(SMALL).fingerprint()
    assert one == make_world(SMALL).fingerprint()
    others = ({"seed": 1}, {"noise": 0.2}, {"train": 2400}, {"responses": 3})
    prints = {make_world({**SMALL, **o}).fingerprint() for o in others}
    assert len(prints | {one}) == 5


# Probes


def test_sycophancy_probe_by_hand():
    """Nothing but the opening differs; effects follow from the two weights alone."""
    world = make_world({"noise": 0.1, "temperature": 0.5, "sycophancy_bias": 1.2})
    flipped = lambda d: float(logit(0.9 * expit(d) + 0.1 * expit(-d)))
    gold = -0.8 / GOLD_STD
    for p in world.probes(50, "sycophancy"):
        with_it, without = (response_text(x) for x in p.record.responses)
        assert with_it.split(". ", 1)[1:] == without.split(". ", 1)[1:] or (
            with_it.split(".\n", 1)[1:] == without.split(".\n", 1)[1:]
        )
        assert with_it != without
        assert p.record.meta["belief"] == "wrong"
        assert p.record.meta["agrees"] == [1, 0]
        assert p.record.meta["correct"] == [0, 1]
        assert len(set(p.record.meta["words"])) == 1
        assert p.record.ranks == (None, None)
        assert p.gold == pytest.approx(flipped(gold / 0.5), abs=1e-9)
        assert p.annotator == pytest.approx(flipped((gold + 1.2) / 0.5), abs=1e-9)


def test_length_probe_by_hand():
    world = make_world({"noise": 0.0, "temperature": 0.5, "length_bias": 0.3})
    for p in world.probes(50, "length"):
        with_it, without = (response_text(x) for x in p.record.responses)
        assert with_it.startswith(without)
        added = with_it.removeprefix(without)
        assert sum(f in added for f in world_text.FILLERS) == PROBE_FILLERS
        a, b = p.record.meta["words"]
        assert a - b == world_text.words(added)
        gold = (1.5 * (a - b) / 10 - 0.26 * (a * a - b * b) / 100) / GOLD_STD
        assert p.gold == pytest.approx(gold / 0.5, abs=1e-9)
        bias = 0.3 * (a - b) / 10
        assert p.annotator == pytest.approx((gold + bias) / 0.5, abs=1e-9)


@pytest.mark.parametrize("kind", ["length", "sycophancy"])
def test_an_unbiased_world_has_no_injected_bias(kind):
    world = make_world(
        {"length_bias": 0.0, "sycophancy_bias": 0.0, "noise": 0.3, "tie_threshold": 0.5}
    )
    got = injected(world.probes(20, kind))
    assert got.annotator == got.gold != 0


def test_probes_are_the_same_every_time(small):
    assert small.probes(9, "length") == make_world(SMALL).probes(9, "length")


def test_injected_is_the_mean(small):
    record = small.probes(1, "length")[0].record
    got = injected([Probe(record, 1.0, 2.0), Probe(record, -2.0, 4.0)])
    assert got == (-0.5, 3.0)
    with pytest.raises(ValueError, match="no probes"):
        injected([])


def test_log_odds_stay_finite_and_antisymmetric():
    world = make_world({"noise": 0.0, "temperature": 0.01, "tie_threshold": 2.0})
    d = np.array([-1e4, -1.0, 0.0, 1.0, 1e4])
    got = world.log_odds(d)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, -world.log_odds(-d), rtol=1e-12)
    assert got[2] == 0
    half = make_world({"noise": 0.5}).log_odds(d)
    np.testing.assert_allclose(half, 0, atol=1e-9)


# Bad input


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"nosie": 0.1}, r"unknown world knob 'nosie'; known: \['seed', 'train'"),
        ({"noise": 0.6}, r"noise = 0.6: want float from 0.0 to 0.5"),
        ({"noise": float("nan")}, r"noise = nan: want float"),
        ({"noise": "0.1"}, r"noise = '0.1': want float"),
        ({"temperature": 0}, r"temperature = 0: want float from 0.01"),
        ({"responses": 1}, r"responses = 1: want int from 2 to 1024"),
        ({"responses": 2.0}, r"responses = 2.0: want int"),
        ({"annotators": True}, r"annotators = True: want int"),
        ({"train": -1}, r"train = -1: want int from 0"),
    ],
)
def test_bad_knobs(knobs, message):
    with pytest.raises(ValueError, match=message):
        make_world(knobs)


def test_bad_names(small):
    with pytest.raises(ValueError, match=r"split 'dev'; known: \['train', 'valid'"):
        small.records("dev")
    with pytest.raises(ValueError, match="split 'dev'"):
        small.ceiling("dev")
    with pytest.raises(ValueError, match=r"probe kind 'tone'; known: \['length'"):
        small.probes(3, "tone")
    with pytest.raises(ValueError, match="at least 1 probe, got n = 0"):
        small.probes(0, "length")


def test_an_integer_may_stand_for_a_float():
    assert make_world({"temperature": 1}).knobs["temperature"] == 1.0
