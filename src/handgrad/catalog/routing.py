"""The rows of layers/routing.py."""

import numpy as np

from handgrad.catalog import Row
from handgrad.layers.routing import load_balance, mixture_of_experts


def _experts(rng):
    d, E, h, c = 3, 6, 4, 7
    router, first, second = (rng.normal(size=shape) for shape in ((E, d), (E, h, d), (E, c, h)))
    of = lambda x: ((x, router, first, second), {"k": 2})  # noqa: E731
    return {
        "typical": of(rng.normal(size=(5, d))),
        "edge: one token, no batch axis": of(rng.normal(size=d)),
        "edge: more batch axes": of(rng.normal(size=(2, 4, d))),
        "extreme: 1e4": of(1e4 * rng.normal(size=(5, d))),
    }


def _logits(rng):
    # each row's own order, at distances that the differences of a check do not close
    def ranked(*batch):
        ranks = rng.permuted(np.broadcast_to(np.arange(5), (*batch, 5)), axis=-1)
        return (ranks / 3 + rng.uniform(0, 0.1, size=ranks.shape),), {"k": 2}

    (z,), k = ranked(4)
    return {
        "typical": ((z,), k),
        "edge: one token, no batch axis": ranked(),
        "edge: more batch axes": ranked(3, 2),
        "extreme: 1e4, and -inf": ((np.where(z < 0.2, -np.inf, 1e4 * z),), k),
    }


def _token_by_token(x, Wg, W1, W2, k):
    def y(token):
        z = Wg @ token
        chosen = sorted(range(len(z)), key=lambda e: (-z[e], e))[:k]
        weights = np.exp(z[chosen] - z[chosen[0]])
        outputs = [W2[e] @ np.maximum(W1[e] @ token, 0) for e in chosen]
        return sum(w * out for w, out in zip(weights / weights.sum(), outputs, strict=True))

    return np.apply_along_axis(y, -1, x)


def _counted(z, k):
    rows, load, probability = z.reshape(-1, z.shape[-1]), 0, 0
    for row in rows:
        w = np.exp(row - row.max())
        rank = np.array([np.sum(row > r) + np.sum(row[:e] == r) for e, r in enumerate(row)])
        load, probability = load + (rank < k) / k, probability + w / w.sum()
    return row.size * np.dot(load, probability) / len(rows) ** 2


ROWS = (
    Row(
        mixture_of_experts,
        r"y = \sum_j p_j\,W_{2 s_j}\,a_j, \quad a_j = \mathrm{relu}(W_{1 s_j}\,x), \quad"
        r" p = \operatorname{softmax}(z_{s_0}, \dots), \quad z = W_g\,x",
        {
            "x": r"dx = W_g^\top dz + \sum_j W_{1 s_j}^\top dr_j",
            "Wg": r"dW_g = \sum_n dz_n\,x_n^\top",
            "W1": r"dW_{1e} = \sum_{n, j:\; s_{nj} = e} dr_{nj}\,x_n^\top",
            "W2": r"dW_{2e} = \sum_{n, j:\; s_{nj} = e} dm_{nj}\,a_{nj}^\top",
        },
        _experts,
        same_as=_token_by_token,
        where=r"$s_j$ is the expert with the $j$-th largest logit, $n$ counts tokens,"
        r" $dm_j = p_j\,dy$, $da_j = W_{2 s_j}^\top dm_j$, $dr_j = da_j \odot [a_j > 0]$,"
        r" $g_j = \langle da_j, a_j \rangle$, and $dz_{s_j} = g_j - p_j \sum_i g_i$, 0 elsewhere",
    ),
    Row(
        load_balance,
        r"l = E\,\langle q, \bar o \rangle, \quad \bar o = \frac{1}{N} \sum_n"
        r" \operatorname{softmax}(z_n)",
        {"z": r"dz_n = \frac{E}{N}\,dl\;o_n \odot (q - \langle o_n, q \rangle)"},
        _logits,
        same_as=_counted,
        where="$q_e$ is the share of the choices that fell on expert $e$, a constant on the way"
        " back, and $E$ the number of experts",
    ),
)
