"""Every test runs in float64, as the proofs do."""

import jax

jax.config.update("jax_enable_x64", True)
