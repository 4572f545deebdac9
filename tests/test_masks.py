"""Names of the parameters of scanned stacks."""

import pytest

from rm_jax.masks import parameter_names

SHAPES = {
    "embed/embedding": (5, 4),
    "stack_0/q/kernel": (3, 4, 4),
    "stack_0/norm/scale": (3, 4),
    "stack_1/q/kernel": (3, 4, 4),
    "stack_1/norm/scale": (3, 4),
    "layer_6/q/kernel": (4, 4),
    "head/kernel": (4,),
}


def test_names_have_one_entry_a_layer():
    assert parameter_names(SHAPES, n_pattern=2) == {
        "embed/embedding": ("embed/embedding",),
        "stack_0/q/kernel": tuple(f"layers/{i}/q/kernel" for i in (0, 2, 4)),
        "stack_0/norm/scale": tuple(f"layers/{i}/norm/scale" for i in (0, 2, 4)),
        "stack_1/q/kernel": tuple(f"layers/{i}/q/kernel" for i in (1, 3, 5)),
        "stack_1/norm/scale": tuple(f"layers/{i}/norm/scale" for i in (1, 3, 5)),
        "layer_6/q/kernel": ("layers/6/q/kernel",),
        "head/kernel": ("head/kernel",),
    }


def test_names_under_a_prefix():
    names = parameter_names({"trunk/stack_0/w": (2, 3), "trunk/layer_2/w": (2, 3)}, 1)
    assert names["trunk/stack_0/w"] == ("trunk/layers/0/w", "trunk/layers/1/w")
    assert names["trunk/layer_2/w"] == ("trunk/layers/2/w",)


@pytest.mark.parametrize("n_pattern", [1, 4])
def test_a_wrong_pattern_length_is_noticed(n_pattern):
    with pytest.raises(ValueError, match="n_pattern"):
        parameter_names(SHAPES | {"layer_4/q/kernel": (4, 4)}, n_pattern)
