"""Faces: the network, alignment, and verification of whether two show one person."""
