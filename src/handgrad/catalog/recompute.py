"""The rows of layers/recompute.py."""

from handgrad.catalog import Row
from handgrad.layers.attention import attention
from handgrad.layers.recompute import flash_attention, linear_cross_entropy


def _sequences(rng):
    """No length is a multiple of the block, so the last tiles overlap those before."""

    def draw(*batch, T, S, d=4, e=3, size=1.0):
        q, k = size * rng.normal(size=(*batch, T, d)), size * rng.normal(size=(*batch, S, d))
        return q, k, rng.normal(size=(*batch, S, e))

    return {
        "typical": (draw(3, T=7, S=8, d=5, e=4), {"block": 3}),
        "edge: one sequence, causal": (draw(T=7, S=5), {"causal": True, "block": 3}),
        "edge: more batch axes, one tile": (draw(2, 3, T=4, S=5), {}),
        "extreme: scores of 1e4": (draw(T=7, S=5, size=100), {"causal": True, "block": 3}),
    }


def _vocabulary(rng):
    def draw(*batch, k=11, d=4, size=1.0):
        x, W = size * rng.normal(size=(*batch, d)), size * rng.normal(size=(k, d))
        return x, W, rng.integers(k, size=batch)

    return {
        "typical": (draw(3), {"chunk": 4}),
        "edge: one example, no batch axis, a chunk for each class": (draw(), {"chunk": 1}),
        "edge: more batch axes, one chunk": (draw(2, 5), {}),
        "extreme: logits of 1e4": (draw(3, size=100), {"chunk": 4}),
    }


def _attention(q, k, v, *, causal=False, block=128):
    return attention(q, k, v, causal=causal)


def _of_all_logits(x, W, y, *, chunk=256):
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(x @ W.T, y)


ROWS = (
    Row(
        flash_attention,
        r"O = P V, \quad P = e^{Z - L\,\mathbf{1}^\top}, \quad Z = \tfrac{1}{\sqrt d}\,Q K^\top",
        {
            "q": r"dQ = \tfrac{1}{\sqrt d}\,dZ\,K",
            "k": r"dK = \tfrac{1}{\sqrt d}\,dZ^\top Q",
            "v": r"dV = P^\top dO",
        },
        _sequences,
        same_as=_attention,
        where=r"tile by tile, with $L_t = \log \sum_s e^{Z_{ts}}$; $dZ = P \odot (dP - "
        r"\delta\,\mathbf{1}^\top)$ with $dP = dO\,V^\top$, and $\delta$ the row sums of "
        r"$dO \odot O$",
    ),
    Row(
        linear_cross_entropy,
        r"l = -\log \operatorname{softmax}(W x)_y",
        {
            "x": r"dx = dl\,g",
            "W": r"dW = \sum_i dl_i\,(p_i - e_{y_i})\,x_i^\top",
        },
        _vocabulary,
        same_as=_of_all_logits,
        where=r"chunk by chunk, with $p = e^{W x - L}$, $L$ the log-sum-exp; $g = W^\top p - W_y$ "
        r"is made on the way forward",
    ),
)
