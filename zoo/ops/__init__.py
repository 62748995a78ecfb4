"""Pure functions on arrays, static shapes, one example and `vmap`."""
