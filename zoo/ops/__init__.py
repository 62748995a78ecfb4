"""Pure functions on arrays with static shapes, for one example or under `vmap`."""
