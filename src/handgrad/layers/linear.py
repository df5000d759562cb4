"""The linear layer, z = W x + b.    Derivation: notebooks/04_linear.ipynb"""

from jax.typing import ArrayLike
from jaxtyping import Float


def linear(
    x: Float[ArrayLike, "*batch d"], W: Float[ArrayLike, "h d"], b: Float[ArrayLike, " h"]
) -> Float[ArrayLike, "*batch h"]:
    """z = W x + b for every example x, (4.1): x (*batch, d), W (h, d), b (h,) -> z (*batch, h).

    Raises:
        TypeError: an argument is not a float array, or a shape does not fit the signature.

    """
    return x @ W.T + b


def linear_fwd(x, W, b):
    """z, and the residuals (x, W): b is not needed on the way back."""
    return linear(x, W, b), (x, W)


def linear_bwd(
    residuals: tuple[Float[ArrayLike, "*batch d"], Float[ArrayLike, "h d"]],
    dz: Float[ArrayLike, "*batch h"],
):
    """(dx, dW, db) from dz (*batch, h). All examples read W and b: cotangents add up."""
    x, W = residuals
    x_rows, dz_rows = x.reshape(-1, x.shape[-1]), dz.reshape(-1, dz.shape[-1])
    dx = dz @ W  # (4.9)
    dW = dz_rows.T @ x_rows  # (4.7)
    db = dz_rows.sum(axis=0)  # (4.8)
    return dx, dW, db
