"""handgrad: the gradients of the layers people train, derived by hand and proved against JAX.

Every layer is a triple of plain functions, f, f_fwd and f_bwd; see notebooks/00_contents.ipynb.
"""

import jax  # before the hook, under which it would take three times as long
from jaxtyping import install_import_hook

# The shapes in the layers' signatures are enforced at run time.
with install_import_hook("handgrad", "beartype.beartype"):
    from handgrad.activations import (
        relu,
        relu_bwd,
        relu_fwd,
        sigmoid,
        sigmoid_bwd,
        sigmoid_fwd,
        tanh,
        tanh_bwd,
        tanh_fwd,
    )
    from handgrad.linear import linear, linear_bwd, linear_fwd
    from handgrad.losses import (
        cross_entropy,
        cross_entropy_bwd,
        cross_entropy_fwd,
        softmax_cross_entropy,
        softmax_cross_entropy_bwd,
        softmax_cross_entropy_fwd,
        squared_error,
        squared_error_bwd,
        squared_error_fwd,
    )
    from handgrad.softmax import (
        log_softmax,
        log_softmax_bwd,
        log_softmax_fwd,
        logsumexp,
        logsumexp_bwd,
        logsumexp_fwd,
        softmax,
        softmax_bwd,
        softmax_fwd,
    )

from handgrad.check import GradientMismatch, check_gradient, check_rule, check_steps, tap
from handgrad.layer import as_layer
