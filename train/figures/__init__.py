"""Drawings for reports: charts as SVG, images as PNG."""

from train.figures.charts import Chart, Series, heat_map, line_chart

__all__ = ["Chart", "Series", "heat_map", "line_chart"]
