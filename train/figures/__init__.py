"""Drawings: curves and heat maps as SVG, pictures as PNG."""

from train.figures.charts import STYLE, Series, draw_confusion, line_chart
from zoo.figures.pictures import draw_prediction, png_uri, to_pil

__all__ = [
    "STYLE",
    "Series",
    "draw_confusion",
    "draw_prediction",
    "line_chart",
    "png_uri",
    "to_pil",
]
