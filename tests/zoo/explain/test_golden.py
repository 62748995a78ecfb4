"""The published networks at full size, against golden files of a statement in torch."""

from pathlib import Path

import jax
import numpy as np
import pytest
import restate_deconvnet

import zoo
from zoo.verify import parity
from zoo.verify.summaries import load_summaries, measure, summarize
from zoo.weights.torch_format import from_torch

FOLDER = Path(__file__).parents[2] / "reference" / "golden"
METHODS = ("saliency", "deconvnet", "guided_backprop")


@pytest.mark.apart
@pytest.mark.parametrize("name", ["alexnet", "zfnet", "vgg16"])
def test_every_layer_is_as_the_statement_in_torch(name):
    """In float64: near a tie, float32 may take another pixel of a pool."""
    sections, _ = load_summaries(FOLDER / f"deconvnet_{name}.npz")
    types = dict(dtype="float64", param_dtype="float64")
    model, images = zoo.build(name, **types), parity.make_example(name)[0][:1]
    variables = from_torch(name, parity.deterministic_state(name))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        for method in METHODS:
            expected = sections[method]
            explain = getattr(zoo.explain, method)
            maps = {
                endpoint: np.asarray(
                    explain(model, wide, images.astype(np.float64), endpoint)
                )
                for endpoint in expected.names
            }
            found = summarize(maps, samples=64, sums=8)
            errors = measure(found, expected)
            assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("name", ["alexnet", "zfnet", "vgg16"])
def test_the_golden_files_have_every_layer(name):
    sections, facts = load_summaries(FOLDER / f"deconvnet_{name}.npz")
    endpoints = zoo.list_endpoints(zoo.build(name), zoo.get_spec(name).preprocess.shape)
    assert set(sections) == set(METHODS)
    for method, table in sections.items():
        assert set(table.names) == set(endpoints)
        # Behind a saturated norm the gradient is negative, and guided away.
        assert (table.norms > 0).all() or method == "guided_backprop"
    assert "restate_deconvnet" in facts["source"]
    assert restate_deconvnet.METHODS == METHODS
