"""Trains and evaluates the networks of the zoo."""
