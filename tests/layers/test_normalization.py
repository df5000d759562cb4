"""Normalisation: what is special to the topic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad as hg

RIGHT = {}
WRONG = {}
