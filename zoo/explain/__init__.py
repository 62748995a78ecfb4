"""Explains what a network sees: pure functions of a model, variables and images.

maps = zoo.explain.deconvnet(model, variables, images, "conv5")

Those that map activations to pixels take `(model, variables, images, endpoint,
channels=None, positions=None)` and return maps float32 [B, H, W, C] in the network's
input space. None selects the strongest channel or position.
"""

from zoo.explain.attributions import (
    IndependentError,
    completeness_error,
    grad_cam,
    integrated_gradients,
    smooth_grad,
)
from zoo.explain.fields import ReceptiveField, receptive_field
from zoo.explain.perturbations import (
    Occlusion,
    correspondence,
    hide_boxes,
    occlusion,
)
from zoo.explain.projections import (
    count_rectifiers,
    deconvnet,
    guided_backprop,
    saliency,
)
from zoo.explain.sanity import (
    mass_in_mask,
    perturbation_curve,
    randomize_layers,
    similarity,
)
from zoo.explain.strongest import Strongest, top_activations
from zoo.explain.studies import ablate, invariance, rotations, scalings, translations

__all__ = [
    "IndependentError",
    "Occlusion",
    "ReceptiveField",
    "Strongest",
    "ablate",
    "completeness_error",
    "correspondence",
    "count_rectifiers",
    "deconvnet",
    "grad_cam",
    "guided_backprop",
    "hide_boxes",
    "integrated_gradients",
    "invariance",
    "mass_in_mask",
    "occlusion",
    "perturbation_curve",
    "randomize_layers",
    "receptive_field",
    "rotations",
    "saliency",
    "scalings",
    "similarity",
    "smooth_grad",
    "top_activations",
    "translations",
]
