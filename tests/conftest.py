"""What holds for every test: warnings are errors, and no rank is promoted unasked."""

import jax

# Broadcasting [B, H, W, C] with [C] is said in the code or it is a mistake.
jax.config.update("jax_numpy_rank_promotion", "raise")
# A type is what the code says, not what the environment made the default.
jax.config.update("jax_enable_x64", False)
