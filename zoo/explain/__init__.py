"""What a network sees: pure functions of a model, its variables and images.

maps = zoo.explain.deconvnet(model, variables, images, "conv5")
"""

from zoo.explain.attributions import (
    completeness_error,
    grad_cam,
    integrated_gradients,
    smooth_grad,
)
from zoo.explain.perturbations import (
    Occlusion,
    correspondence,
    hide_boxes,
    occlusion,
)
from zoo.explain.projections import deconvnet, guided_backprop, saliency

__all__ = [
    "Occlusion",
    "completeness_error",
    "correspondence",
    "deconvnet",
    "grad_cam",
    "guided_backprop",
    "hide_boxes",
    "integrated_gradients",
    "occlusion",
    "saliency",
    "smooth_grad",
]
