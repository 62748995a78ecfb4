"""The page of visualizations of a network: filters, patches, saliency, occlusion."""

from train.visualize.page import read_steps, write_visualization
from train.visualize.parts import Network

__all__ = ["Network", "read_steps", "write_visualization"]
