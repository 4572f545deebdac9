"""Sweeps: each way to combine, and three published ones."""

import pytest

from rm_jax.hyper import chainit, fixed, product, sweep, zipit


def test_a_product_has_every_combination_the_last_fastest():
    assert product([sweep("a", [1, 2]), sweep("b", "xy")]) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    assert product([]) == [{}]
    assert product([sweep("a", [1, 2]), []]) == []


def test_a_zip_goes_in_step_and_repeats_what_is_single():
    found = zipit([sweep("a", [1, 2]), fixed("b", 3), fixed("c", 4, length=2)])
    assert found == [{"a": 1, "b": 3, "c": 4}, {"a": 2, "b": 3, "c": 4}]
    assert zipit([]) == []
    with pytest.raises(ValueError, match="3 and 2 units"):
        zipit([sweep("a", [1, 2]), sweep("b", [1, 2, 3])])


def test_a_chain_is_one_after_the_other():
    assert chainit([sweep("a", [1]), sweep("b", [2])]) == [{"a": 1}, {"b": 2}]
    with pytest.raises(ValueError, match="{'a': 1} is twice"):
        chainit([sweep("a", [1, 2]), sweep("a", [3, 1])])


@pytest.mark.parametrize("combine", [product, zipit])
def test_a_key_that_is_set_twice_is_named(combine):
    with pytest.raises(ValueError, match="two sweeps set a: 1 and 3"):
        combine([sweep("a", [1, 2]), sweep("a", [3, 4])])


def test_sweeps_that_say_nothing_or_the_same_twice():
    with pytest.raises(ValueError, match="at least one value"):
        sweep("a", [])
    with pytest.raises(ValueError, match="value 2 is twice"):
        sweep("a", [1, 2, 2])
    assert len(sweep("a", [1, True, 1.0])) == 3  # of three types
    with pytest.raises(ValueError, match="at least 1"):
        fixed("a", 1, length=0)


def test_batch_ensembles_on_jft():
    """uncertainty-baselines, a sweep of two nested products in a chain of one."""
    units = product(
        [
            chainit(
                [
                    product(
                        [
                            sweep("model.use_gp", [False]),
                            sweep("model.transformer.random_sign_init", [0.5, -0.5]),
                            sweep("model.mc_samples", [100, 500]),
                            sweep("grad_clip_norm", [1.0, 2.5]),
                            sweep("model.temperature", [0.2, 0.35, 1.0]),
                        ]
                    )
                ]
            )
        ]
    )
    assert len(units) == 24
    keys = ("random_sign_init", "mc_samples", "grad_clip_norm", "temperature")
    short = lambda unit: tuple(
        next(v for k, v in unit.items() if k.endswith(key)) for key in keys
    )
    assert [short(unit) for unit in units] == [
        (sign, samples, clip, temperature)
        for sign in (0.5, -0.5)
        for samples in (100, 500)
        for clip in (1.0, 2.5)
        for temperature in (0.2, 0.35, 1.0)
    ]
    assert all(unit["model.use_gp"] is False for unit in units)


def test_bird_vocalisations():
    """chirp (Perch): filter widths in step with strides, times four other knobs."""
    units = product(
        [
            zipit(
                [
                    sweep("model_config.bandwidth", [0, 40]),
                    sweep("model_config.band_stride", [0, 30]),
                ]
            ),
            sweep("model_config.random_low_pass", [False, True]),
            sweep("model_config.robust_normalization", [False, True]),
            sweep("model_config.melspec_config.scaling", ["pcen", "log", "raw"]),
            sweep("rng_seed", [0, 1, 2]),
        ]
    )
    widths = {
        (u["model_config.bandwidth"], u["model_config.band_stride"]) for u in units
    }
    assert widths == {(0, 0), (40, 30)} and len(units) == 2 * 2 * 2 * 3 * 3
    assert len({tuple(sorted(u.items())) for u in units}) == len(units)
    assert units[0] | units[2] == {
        "model_config.bandwidth": 0,
        "model_config.band_stride": 0,
        "model_config.random_low_pass": False,
        "model_config.robust_normalization": False,
        "model_config.melspec_config.scaling": "pcen",
        "rng_seed": 2,
    }
    assert units[-1]["model_config.melspec_config.scaling"] == "raw"


def test_energy_inspired_models():
    """The proposals and models of a comparison (Lawson 2019), three units in all."""
    both = lambda proposal, model: product(
        [fixed("proposal", proposal), fixed("model", model)]
    )
    units = product(
        [
            chainit(
                [
                    both("gaussian", "bernoulli_vae"),
                    both("bernoulli_vae", "nis"),
                    both("nis", "bernoulli_vae"),
                ]
            ),
            sweep("run", [0]),
            fixed("dataset", "static_mnist"),
            fixed("reparameterize_proposal", False),
            fixed("anneal_kl_step", 100000),
        ]
    )
    rest = {
        "run": 0,
        "dataset": "static_mnist",
        "reparameterize_proposal": False,
        "anneal_kl_step": 100000,
    }
    assert units == [
        {"proposal": "gaussian", "model": "bernoulli_vae"} | rest,
        {"proposal": "bernoulli_vae", "model": "nis"} | rest,
        {"proposal": "nis", "model": "bernoulli_vae"} | rest,
    ]
