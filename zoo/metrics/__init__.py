"""Metrics as values: `empty`, `update`, `merge`, `compute`."""
