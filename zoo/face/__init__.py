"""Faces: the network, their alignment, and whether two are of one person."""
