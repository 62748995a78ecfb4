"""Detectors, one file per family."""
