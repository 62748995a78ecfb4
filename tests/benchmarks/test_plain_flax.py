"""The plain Flax statements that the TPU's compiler compares the zoo with."""

import math

import jax
import pytest
from plain_flax import PEERS

import zoo
from zoo.summary import abstract_variables


@pytest.mark.parametrize("name", PEERS)
def test_plain_statements_have_the_parameters_of_the_networks(name):
    model, spec = PEERS[name](), zoo.get_spec(name)
    params = abstract_variables(model, spec.preprocess.shape)["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == spec.params
