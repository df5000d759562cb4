"""Every test runs in float64, as the proofs do, and compiles nothing twice."""

import os
from importlib.metadata import version
from pathlib import Path

# Shared by the workers and by the kernels of the notebooks; jax reads it when it is imported.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Most of the time goes into compiling what runs once. Older emitters take two thirds of it.
if version("jax") < "0.11":
    os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"

import jax

jax.config.update("jax_enable_x64", True)
