"""The page of visualizations of a network: filters, patches, saliency, occlusion."""

from train.visualize.network import Network
from train.visualize.page import read_steps, write_visualization

__all__ = ["Network", "read_steps", "write_visualization"]
