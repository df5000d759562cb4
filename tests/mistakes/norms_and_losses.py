"""Normalisations and losses, written by hand, and the mistakes that people make in them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from . import Layer, Mistake

EPS = 1e-5
GITHUB = "https://github.com/"


@functools.cache
def labels_of(kinds, *shape):
    """Labels that a loss closes over, the same whenever it is called."""
    return np.random.default_rng((kinds, *shape)).integers(kinds, size=shape)


@functools.cache
def numbers_of(*shape):
    """Numbers that a loss closes over, the same whenever it is called."""
    return np.random.default_rng(shape).standard_normal(shape)


def layer_norm(x, gamma, beta):
    """Layer norm over the last axis: x (B, T, D), gamma and beta (D,)."""
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return gamma * (x - mean) / jnp.sqrt(var + EPS) + beta


def layer_norm_backward(args, dz, wrong):
    x, gamma, _ = args
    mean = x.mean(-1, keepdims=True)
    rstd = 1 / jnp.sqrt(x.var(-1, keepdims=True) + EPS)
    x_hat = (x - mean) * rstd
    read = x - mean if wrong == "dgamma reads x - mean for x_hat" else x_hat
    dgamma = (dz * read).sum((0, 1))
    dbeta = dz.sum((0, 1))
    dx_hat = dz * gamma
    over = (0, 1, 2) if wrong == "the sums in dx run over all rows" else -1
    dmean = dx_hat.sum(over, keepdims=True) / x.shape[-1]
    dvar = (dx_hat * x_hat).sum(over, keepdims=True) / x.shape[-1]
    if wrong == "the mean path is left out":
        dmean = 0
    if wrong == "the mean path is subtracted twice":
        dmean = 2 * dmean
    dx = rstd * (dx_hat - dmean - x_hat * dvar)
    return dx, dgamma, dbeta


def draw_norm(rng, size):
    shape = (3, 4, 5) if size == "small" else (8, 16, 64)
    return rng.normal(1, 2, shape), rng.normal(1, 0.5, shape[-1]), rng.normal(size=shape[-1])


def batch_norm(x, gamma, beta):
    """Batch norm over the first axis: x (N, D), gamma and beta (D,)."""
    mean = x.mean(0)
    var = ((x - mean) ** 2).mean(0)
    return gamma * (x - mean) / jnp.sqrt(var + EPS) + beta


def batch_norm_backward(args, dz, wrong):
    x, gamma, _ = args
    n = x.shape[0]
    xmu = x - x.mean(0)
    sqrtvar = jnp.sqrt((xmu**2).mean(0) + EPS)
    ivar = 1 / sqrtvar
    xhat = xmu * ivar

    dbeta = dz.sum(0)
    dgamma = (dz * xhat).sum(0, keepdims=wrong == "dgamma keeps the axis of the batch")
    if wrong == "dgamma is averaged over the batch":
        dgamma = dgamma / n
    dxhat = dz * gamma
    divar = (dxhat * xmu).sum(0)
    dxmu1 = dxhat * ivar
    dsqrtvar = -divar / sqrtvar**2
    dvar = 0.5 * dsqrtvar / sqrtvar
    dsq = dvar / (n - 1 if wrong == "the variance path divides by N - 1" else n)
    dxmu2 = 2 * xmu * dsq
    dmu = -(dxmu1 + dxmu2).sum(0)
    dx = dxmu1 + dxmu2 + (dmu if wrong == "the mean path is not divided by N" else dmu / n)
    if wrong == "mean and variance are taken for constants":
        dx = dxmu1
    if wrong == "dgamma and dbeta are exchanged":
        return dx, dbeta, dgamma
    return dx, dgamma, dbeta


def draw_batch_norm(rng, size):
    n, d = (7, 4) if size == "small" else (32, 128)
    return rng.normal(1, 2, (n, d)), rng.normal(1, 0.5, d), rng.normal(size=d)


def rms_norm(x, gamma):
    """RMS norm over the last axis: x (B, T, D), gamma (D,)."""
    return gamma * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + EPS)


def rms_norm_backward(args, dz, wrong):
    x, gamma = args
    r = 1 / jnp.sqrt((x**2).mean(-1, keepdims=True) + EPS)
    dx_hat = dz if wrong == "gamma is forgotten in dx" else dz * gamma
    if wrong == "the mean is subtracted as in layer norm":
        dx_hat = dx_hat - dx_hat.mean(-1, keepdims=True)
    length = r**3 * x * (dx_hat * x).sum(-1, keepdims=True) / x.shape[-1]
    if wrong == "gamma enters the length path twice":
        length = gamma * length
    dx = r * dx_hat - length
    dgamma = (dz * x * r).sum((0, 1))
    if wrong == "dgamma is taken when the buffer of dz holds dx":
        dgamma = (dx * x * r).sum((0, 1))
    if wrong == "dgamma is never written":
        dgamma = jnp.zeros_like(gamma)
    return dx, dgamma


def draw_rms_norm(rng, size):
    return draw_norm(rng, size)[:2]


GROUPS = 2


def group_norm(x, gamma, beta):
    """Group norm of images with channels last: x (N, H, W, C), gamma and beta (C,)."""
    n, h, w, c = x.shape
    xg = x.reshape(n, h, w, GROUPS, c // GROUPS)
    mean = xg.mean((1, 2, 4), keepdims=True)
    var = xg.var((1, 2, 4), keepdims=True)
    return ((xg - mean) / jnp.sqrt(var + EPS)).reshape(x.shape) * gamma + beta


def group_norm_backward(args, dz, wrong):
    x, gamma, _ = args
    n, h, w, c = x.shape
    grouped = (n, h, w, GROUPS, c // GROUPS)
    xg = x.reshape(grouped)
    mean = xg.mean((1, 2, 4), keepdims=True)
    rstd = 1 / jnp.sqrt(xg.var((1, 2, 4), keepdims=True) + EPS)
    x_hat = (xg - mean) * rstd

    dx_hat = (dz * gamma).reshape(grouped)
    over, count = (1, 2, 4), h * w * c // GROUPS
    if wrong == "dx averages over each channel alone":
        over, count = (1, 2), h * w
    if wrong == "dx divides by the count of all channels":
        count = h * w * c
    dmean = dx_hat.sum(over, keepdims=True) / count
    dvar = (dx_hat * x_hat).sum(over, keepdims=True) / count
    dx = dx_hat - dmean - x_hat * dvar
    if wrong == "dx groups the array as if its channels came first":
        flat = (n, GROUPS, -1)
        dmean = dx_hat.reshape(flat).mean(-1, keepdims=True)
        dvar = (dx_hat * x_hat).reshape(flat).mean(-1, keepdims=True)
        dx = (dx_hat.reshape(flat) - dmean - x_hat.reshape(flat) * dvar).reshape(grouped)
    dx = (rstd * dx).reshape(x.shape)

    group = jnp.arange(c) // (c // GROUPS)
    if wrong == "dgamma reads the statistics of group c % G":
        group = jnp.arange(c) % GROUPS
    x_hat = (x - mean[..., group, 0]) * rstd[..., group, 0]
    if wrong == "dgamma and dbeta sum the first row of each image only":
        dz, x_hat = dz[:, :1], x_hat[:, :1]
    dgamma = (dz * x_hat).sum((0, 1, 2))
    dbeta = dz.sum((0, 1, 2))
    return dx, dgamma, dbeta


def draw_group_norm(rng, size):
    shape = (4, 5, 7, 6) if size == "small" else (4, 16, 16, 32)
    return rng.normal(1, 2, shape), rng.normal(1, 0.5, shape[-1]), rng.normal(size=shape[-1])


ROOM = 0.1


def normalize(x):
    """Rows of length one, eps outside the root: x (N, D)."""
    return x / (jnp.sqrt((x**2).sum(-1, keepdims=True)) + ROOM)


def normalize_backward(args, dz, wrong):
    (x,) = args
    length = jnp.sqrt((x**2).sum(-1, keepdims=True))
    norm = length + ROOM
    if wrong == "the length is taken with eps everywhere":
        length = norm
    x_dz = (x * dz).sum(None if wrong == "x dz is summed over the rows too" else -1, keepdims=True)
    along = x * x_dz / (length * norm**2)
    if wrong == "the length path is not divided by the length":
        along = x * x_dz / norm**2
    if wrong == "the length is taken for a constant":
        along = 0
    return (dz / norm - along,)


def draw_normalize(rng, size):
    return (rng.normal(0.3, 1, (3, 5) if size == "small" else (32, 128)),)


def weight_norm(x, v, g, b):
    """Linear layer whose rows of weights are g v / |v|: x (N, D), v (H, D), g and b (H,)."""
    w = g[:, None] * v / jnp.sqrt((v**2).sum(1, keepdims=True))
    return x @ w.T + b


def weight_norm_backward(args, dz, wrong):
    x, v, g, _ = args
    norm = jnp.sqrt((v**2).sum(1, keepdims=True))
    unit = v / norm
    w = g[:, None] * unit

    dx = dz @ (v if wrong == "dx reads v for w" else w)
    dw = dz.T @ x
    db = dz if wrong == "db is not summed over the batch" else dz.sum(0)
    dg = (dw * (v if wrong == "dg reads v, which is not divided by its norm" else unit)).sum(1)
    dunit = dw if wrong == "g is forgotten in dv" else dw * g[:, None]
    dv = (dunit - unit * (dunit * unit).sum(1, keepdims=True)) / norm
    if wrong == "dv is the gradient of w":
        dv = dw
    return dx, dv, dg, db


def draw_weight_norm(rng, size):
    n, d, h = (3, 5, 4) if size == "small" else (32, 128, 64)
    return (
        rng.normal(size=(n, d)),
        rng.normal(size=(h, d)),
        rng.normal(1, 0.5, h),
        rng.normal(size=h),
    )


def softmax_classifier(x, w, b):
    """Mean cross-entropy of a linear classifier, labels closed over: x (N, D), w (D, K), b (K,)."""
    n, k = x.shape[0], b.size
    log_p = jax.nn.log_softmax(x @ w + b)
    return -log_p[jnp.arange(n), labels_of(k, n)].mean()


def softmax_classifier_backward(args, dz, wrong):
    x, w, b = args
    n, k = x.shape[0], b.size
    y = labels_of(k, n)
    scores = x @ w + b
    p = jax.nn.softmax(scores, axis=0 if wrong == "the softmax runs over the batch" else 1)
    if wrong == "labels count from 1":
        y = y - 1
    dscores = p.at[jnp.arange(n), y].add(0 if wrong == "no 1 is subtracted at the label" else -1)
    if wrong == "labels minus probabilities":
        dscores = -dscores
    if wrong != "the mean is forgotten":
        dscores = dscores / n
    if wrong != "dz is ignored":
        dscores = dscores * dz
    return dscores @ w.T, x.T @ dscores, dscores.sum(0)


def draw_softmax_classifier(rng, size):
    n, d, k = (5, 4, 3) if size == "small" else (32, 64, 10)
    return rng.normal(size=(n, d)), rng.normal(size=(d, k)) / np.sqrt(d), rng.normal(size=k)


SMOOTHING = 0.1


def smoothed_cross_entropy(logits, labels):
    """Cross-entropy with label smoothing, one loss an example: logits (N, K), labels (N,)."""
    log_p = jax.nn.log_softmax(logits)
    at_label = log_p[jnp.arange(labels.size), labels]
    return -(1 - SMOOTHING) * at_label - SMOOTHING * log_p.mean(1)


def smoothed_cross_entropy_backward(args, dz, wrong):
    logits, labels = args
    n, k = logits.shape
    on, off = 1 - SMOOTHING + SMOOTHING / k, SMOOTHING / k
    if wrong == "the smoothing is spread over the other classes":
        on, off = 1 - SMOOTHING, SMOOTHING / (k - 1)
    if wrong == "1/K is spread, not eps/K":
        on, off = 1 - SMOOTHING + 1 / k, 1 / k
    if wrong == "the smoothing is forgotten":
        on, off = 1, 0
    target = jnp.full((n, k), off).at[jnp.arange(n), labels].set(on)
    if wrong == "every example has the first one's dz":
        dz = jnp.full_like(dz, dz[0])
    dlog_p = -target * dz[:, None]
    log_p = jax.nn.log_softmax(logits)
    total = dlog_p.sum(1, keepdims=True)
    if wrong == "the sum of dlog_p is taken for -1":
        total = -1
    dlogits = dlog_p - jnp.exp(log_p) * total
    if wrong == "log-softmax is treated as a softmax":
        dlogits = dlog_p - (dlog_p * log_p).sum(1, keepdims=True)
    return dlogits, None


def draw_smoothed_cross_entropy(rng, size):
    n, k = (5, 4) if size == "small" else (32, 100)
    return rng.normal(0, 1.5, (n, k)), rng.integers(k, size=n)


def binary_cross_entropy(logits, weight):
    """Mean binary cross-entropy, targets closed over: logits (N, M), weight of positives (M,)."""
    n, m = logits.shape
    t = labels_of(2, n, m)
    losses = -weight * t * jax.nn.log_sigmoid(logits) - (1 - t) * jax.nn.log_sigmoid(-logits)
    return losses.mean()


def binary_cross_entropy_backward(args, dz, wrong):
    logits, weight = args
    n, m = logits.shape
    t = labels_of(2, n, m)
    p = 1 / (1 + jnp.exp(-logits))
    dloss = dz / (n if wrong == "the mean divides by N only" else n * m)
    dweight = (-t * jnp.log(p) * dloss).sum(0)
    if wrong == "dweight counts the negatives too":
        dweight = (-jnp.log(p) * dloss).sum(0)
    dlogits = (p * (1 + (weight - 1) * t) - weight * t) * dloss
    if wrong == "the weight multiplies the probability alone":
        dlogits = (weight * p - t) * dloss
    if wrong == "the sigmoid's slope is applied once more":
        dlogits = dlogits * p * (1 - p)
    return dlogits, dweight


def draw_binary_cross_entropy(rng, size):
    n, m = (5, 3) if size == "small" else (32, 64)
    return rng.normal(0, 1.5, (n, m)), rng.uniform(1.5, 3, m)


def mean_squared_error(x, w, b, y):
    """Mean of the squares of a linear regression: x (N, D), w (D, M), b (M,), y (N, M)."""
    return ((x @ w + b - y) ** 2).mean()


def mean_squared_error_backward(args, dz, wrong):
    x, w, b, y = args
    diff = x @ w + b - y
    count = diff.size
    if wrong == "the mean divides by N only":
        count = diff.shape[0]
    if wrong == "the mean is forgotten":
        count = 1
    dpred = (1 if wrong == "the 2 is forgotten" else 2) * diff / count * dz
    dx = dpred @ w.T
    dw = dpred.T @ x if wrong == "dw comes out transposed" else x.T @ dpred
    db = dpred.sum(0)
    dy = dpred if wrong == "dy has the sign of the prediction's" else -dpred
    return dx, dw, db, dy


def draw_mean_squared_error(rng, size):
    n, d, m = (5, 4, 3) if size == "small" else (32, 64, 10)
    return (
        rng.normal(size=(n, d)),
        rng.normal(size=(d, m)) / np.sqrt(d),
        rng.normal(size=m),
        rng.normal(size=(n, m)),
    )


DELTA = 0.7


def huber(pred, target):
    """Mean of Huber's loss: pred and target (N, M)."""
    e = pred - target
    small = jnp.abs(e) <= DELTA
    return jnp.where(small, 0.5 * e**2, DELTA * (jnp.abs(e) - 0.5 * DELTA)).mean()


def huber_backward(args, dz, wrong):
    pred, target = args
    e = pred - target
    small = jnp.abs(e) <= DELTA
    if wrong == "the signed error is compared with delta":
        small = e <= DELTA
    steep = DELTA * jnp.sign(e)
    if wrong == "delta is forgotten where the loss is linear":
        steep = jnp.sign(e)
    if wrong == "the sign is forgotten where the loss is linear":
        steep = DELTA
    slope = jnp.where(small, 2 * e if wrong == "the half of the square is forgotten" else e, steep)
    dpred = slope / e.size * dz
    return dpred, -dpred


def draw_huber(rng, size):
    shape = (5, 3) if size == "small" else (32, 64)
    return rng.normal(size=shape), rng.normal(size=shape)


REG = 0.05


def hinge(w, x):
    """Multiclass hinge loss with a penalty on w, labels closed over: w (D, K), x (N, D)."""
    n, k = x.shape[0], w.shape[1]
    y = labels_of(k, n)
    scores = x @ w
    margins = jnp.maximum(0, scores - scores[jnp.arange(n), y][:, None] + 1)
    margins = margins.at[jnp.arange(n), y].set(0)
    return margins.sum() / n + REG * (w**2).sum()


def hinge_backward(args, dz, wrong):
    w, x = args
    n, k = x.shape[0], w.shape[1]
    rows, y = jnp.arange(n), labels_of(k, n)
    scores = x @ w
    margins = jnp.maximum(0, scores - scores[rows, y][:, None] + 1)
    if wrong != "the label's own margin is counted":
        margins = margins.at[rows, y].set(0)
    dscores = margins if wrong == "margins stand for their mask" else 1.0 * (margins > 0)
    count = dscores.sum(1)
    if wrong == "the label loses one x, not one a margin":
        count = jnp.minimum(count, 1)
    if wrong == "the label's column is left as it is":
        count = dscores[rows, y]
    dscores = dscores.at[rows, y].set(-count)
    dw = x.T @ dscores / n
    penalty = 2 * REG * w
    if wrong == "the 2 of the penalty is forgotten":
        penalty = REG * w
    if wrong == "the penalty is added, not its gradient":
        penalty = REG * (w**2).sum()
    return (dw + penalty) * dz, dscores @ w.T / n * dz


def draw_hinge(rng, size):
    n, d, k = (7, 4, 5) if size == "small" else (32, 64, 10)
    return rng.normal(size=(d, k)) / np.sqrt(d), rng.normal(size=(n, d))


APART = 0.3


def triplet(table, ids):
    """Mean triplet loss of rows of an embedding: table (V, D), ids (3, N)."""
    a, p, n = table[ids]
    return jnp.maximum(0, ((a - p) ** 2).sum(1) - ((a - n) ** 2).sum(1) + APART).mean()


def triplet_backward(args, dz, wrong):
    table, ids = args
    a, p, n = table[ids]
    loss = jnp.maximum(0, ((a - p) ** 2).sum(1) - ((a - n) ** 2).sum(1) + APART)
    active = (loss > 0)[:, None]
    count = len(loss)
    if wrong == "the mean is over the active triplets":
        count = active.sum()
    if wrong == "inactive triplets push too":
        active = jnp.ones_like(active)
    each = 2 * active / count * dz
    da, dp, dn = each * (n - p), each * (p - a), each * (a - n)
    if wrong == "rows are taken for normalised ones":
        dp, dn = -each * a, each * a
    if wrong == "the anchors alone are moved":
        dp = dn = jnp.zeros_like(da)
    dtable = jnp.zeros_like(table)
    if wrong == "rows are written, not added":
        for row, drow in zip(ids, (da, dp, dn), strict=True):
            dtable = dtable.at[row].set(drow)
    else:
        dtable = dtable.at[ids].add(jnp.stack([da, dp, dn]))
    return dtable, None


def draw_triplet(rng, size):
    v, n, d = (5, 8, 3) if size == "small" else (50, 32, 64)
    return rng.normal(size=(v, d)), rng.integers(v, size=(3, n))


MARGIN = 1.5


def contrastive(a, b):
    """Contrastive loss of pairs, which are alike or not, closed over: a and b (N, D)."""
    alike = labels_of(2, len(a))
    d = jnp.sqrt(((a - b) ** 2).sum(1))
    return (alike * d**2 + (1 - alike) * jnp.maximum(0, MARGIN - d) ** 2).mean() / 2


def contrastive_backward(args, dz, wrong):
    a, b = args
    alike = labels_of(2, len(a))[:, None]
    diff = a - b
    d = jnp.sqrt((diff**2).sum(1, keepdims=True))
    short = jnp.maximum(0, MARGIN - d)
    pull = a - 2 * b if wrong == "|a - b|^2 is given the slope a - 2 b" else diff
    push = -short / d * diff
    if wrong == "the push is not multiplied by a - b":
        push = -short / d * jnp.ones_like(diff)
    if wrong == "the push is not divided by the distance":
        push = -short * diff
    if wrong == "the margin is that of the squared distance":
        push = -1.0 * (d**2 < MARGIN) * diff
    da = (alike * pull + (1 - alike) * push) / len(a) * dz
    return da, da if wrong == "db has the sign of da" else -da


def draw_contrastive(rng, size):
    n, d = (7, 4) if size == "small" else (32, 64)
    return rng.normal(size=(n, d)) / np.sqrt(2 * d), rng.normal(size=(n, d)) / np.sqrt(2 * d)


TEMPERATURE = 0.5


def info_nce(q, k):
    """InfoNCE both ways, each q finds its k and each k its q: q and k (N, D)."""
    s = q @ k.T / TEMPERATURE
    rows = jax.nn.log_softmax(s, axis=1)
    columns = jax.nn.log_softmax(s, axis=0)
    return -(jnp.diag(rows) + jnp.diag(columns)).mean() / 2


def info_nce_backward(args, dz, wrong):
    q, k = args
    n = len(q)
    s = q @ k.T / TEMPERATURE
    drows = (jax.nn.softmax(s, axis=1) - jnp.eye(n)) / (2 * n) * dz
    dcolumns = (jax.nn.softmax(s, axis=0) - jnp.eye(n)) / (2 * n) * dz
    if wrong == "the columns' half is forgotten":
        dcolumns = 0
    dq, dk = (drows + dcolumns) @ k, (drows + dcolumns).T @ q
    if wrong == "each half reaches its own queries only":
        dq, dk = drows @ k, dcolumns.T @ q
    if wrong == "ds is not transposed in dk":
        dk = (drows + dcolumns) @ q
    if wrong == "the temperature is forgotten":
        return dq, dk
    return dq / TEMPERATURE, dk / TEMPERATURE


def draw_info_nce(rng, size):
    n, d = (5, 3) if size == "small" else (32, 64)
    return rng.normal(size=(n, d)) / d**0.25, rng.normal(size=(n, d)) / d**0.25


def kl_divergence(a, b):
    """Kullback-Leibler divergence of two softmaxes, its mean over the batch: a and b (N, K)."""
    log_p, log_q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(1).mean()


def kl_divergence_backward(args, dz, wrong):
    a, b = args
    p, q = jax.nn.softmax(a), jax.nn.softmax(b)
    dloss = dz / (a.size if wrong == "the mean is over all entries" else len(a))
    dp = (jnp.log(p / q) + 1) * dloss
    da = p * (dp - (dp * p).sum(1, keepdims=True))
    if wrong == "the softmax's Jacobian is its diagonal":
        da = p * (1 - p) * dp
    if wrong == "da stops at the probabilities":
        da = dp
    if wrong == "the target has no gradient":
        da = jnp.zeros_like(a)
    db = (q - p) * dloss
    if wrong == "db is that of KL(q, p)":
        dq = jnp.log(q / p) * dloss
        db = q * (dq - (dq * q).sum(1, keepdims=True))
    return da, db


def draw_kl_divergence(rng, size):
    shape = (5, 4) if size == "small" else (32, 100)
    return rng.normal(0, 1.5, shape), rng.normal(0, 1.5, shape)


def vae(mu, logvar, w, b):
    """Negative ELBO, data and noise closed over: mu and logvar (N, L), w (L, D), b (D,)."""
    z = mu + jnp.exp(logvar / 2) * numbers_of(*mu.shape)
    x = numbers_of(len(mu), b.size)
    squares = ((z @ w + b - x) ** 2).sum() / 2
    kl = -(1 + logvar - mu**2 - jnp.exp(logvar)).sum() / 2
    return (squares + kl) / len(mu)


def vae_backward(args, dz, wrong):
    mu, logvar, w, b = args
    noise = numbers_of(*mu.shape)
    x = numbers_of(len(mu), b.size)
    std = jnp.exp(logvar / 2)
    code = mu + std * noise
    dloss = dz / len(mu)

    dout = (code @ w + b - x) * dloss
    dw = (mu if wrong == "dw reads mu for the sample" else code).T @ dout
    db = dout.sum(0)
    dcode = dout @ w.T
    dstd = dcode if wrong == "the noise is forgotten" else dcode * noise
    dlogvar = dstd * std / 2
    if wrong == "the standard deviation is read as exp(logvar)":
        dlogvar = dstd * jnp.exp(logvar)
    dmu_kl = mu * dloss
    dlogvar_kl = (jnp.exp(logvar) - 1) / 2 * dloss
    if wrong == "the constant of the KL term is -1/4":
        dlogvar_kl = (jnp.exp(logvar) / 2 - 1 / 4) * dloss
    if wrong == "the KL term is maximised":
        dmu_kl, dlogvar_kl = -dmu_kl, -dlogvar_kl
    if wrong == "the reconstruction does not reach mu":
        dcode = 0
    return dcode + dmu_kl, dlogvar + dlogvar_kl, dw, db


def draw_vae(rng, size):
    n, latent, d = (5, 3, 4) if size == "small" else (32, 16, 64)
    return (
        rng.normal(size=(n, latent)),
        rng.normal(-0.5, 0.7, (n, latent)),
        rng.normal(size=(latent, d)) / np.sqrt(latent),
        rng.normal(size=d),
    )


ALPHA, GAMMA = 0.25, 2


def focal(logits, targets):
    """Mean focal loss: logits and integer targets (N, M)."""
    p = jax.nn.sigmoid(logits)
    pt = jnp.where(targets == 1, p, 1 - p)
    alpha = jnp.where(targets == 1, ALPHA, 1 - ALPHA)
    return -(alpha * (1 - pt) ** GAMMA * jnp.log(pt)).mean()


def focal_backward(args, dz, wrong):
    logits, targets = args
    positive = targets == 1
    p = jax.nn.sigmoid(logits)
    pt = jnp.where(positive, p, 1 - p)
    alpha = jnp.where(positive, ALPHA, 1 - ALPHA)
    if wrong == "alpha weighs the negatives too":
        alpha = ALPHA
    factor = (1 - pt) ** GAMMA
    dfactor = -GAMMA * (1 - pt) ** (GAMMA - 1)
    if wrong == "the negatives are weighted by 1 - p":
        factor = jnp.where(positive, factor, pt**GAMMA)
        dfactor = jnp.where(positive, dfactor, GAMMA * pt ** (GAMMA - 1))
    if wrong == "gamma multiplies the positives' factor":
        factor = jnp.where(positive, GAMMA * (1 - pt), factor)
        dfactor = jnp.where(positive, -GAMMA, dfactor)
    if wrong == "the focal factor is taken for a constant":
        dfactor = 0
    dpt = -alpha * (dfactor * jnp.log(pt) + factor / pt) * dz / pt.size
    dp = jnp.where(positive, dpt, dpt if wrong == "the negatives keep their sign" else -dpt)
    if wrong == "the gradient stops at the probability":
        return dp, None
    return dp * p * (1 - p), None


def draw_focal(rng, size):
    shape = (5, 3) if size == "small" else (32, 64)
    return rng.normal(0, 1.5, shape), rng.integers(2, size=shape)


DECAY = 0.3


def ridge(x, w, b):
    """Ridge regression, biases penalised too, targets closed over: x (N, D), w (D, M), b (M,)."""
    y = numbers_of(len(x), b.size)
    squares = ((x @ w + b - y) ** 2).sum() / len(x)
    return squares + DECAY * ((w**2).sum() + (b**2).sum())


def ridge_backward(args, dz, wrong):
    x, w, b = args
    n = len(x)
    diff = x @ w + b - numbers_of(n, b.size)
    if wrong == "the error is y minus the prediction":
        diff = -diff
    dpred = 2 * diff / n
    dw, db = x.T @ dpred, dpred.sum(0)
    decay = 2 * DECAY
    if wrong == "the decay is divided by N":
        decay = decay / n
    if wrong == "the weights decay twice":
        dw = dw + decay * w
    if wrong != "the biases do not decay":
        db = db + decay * b
    return dpred @ w.T * dz, (dw + decay * w) * dz, db * dz


def draw_ridge(rng, size):
    n, d, m = (5, 4, 3) if size == "small" else (32, 64, 10)
    return rng.normal(size=(n, d)), rng.normal(size=(d, m)) / np.sqrt(d), rng.normal(size=m)


LAYERS = [
    Layer(
        "layer norm",
        layer_norm,
        layer_norm_backward,
        draw_norm,
        (
            Mistake("the mean path is left out", ("mean path", "branch")),
            Mistake(
                "the mean path is subtracted twice",
                ("mean path", "factor"),
                r"2|twice",
                GITHUB + "tenstorrent/tt-metal/pull/53215",
            ),
            Mistake(
                "the sums in dx run over all rows",
                ("axis", "batch", "mean path", "variance path"),
                source=GITHUB + "flagos-ai/FlagGems/pull/59",
            ),
            Mistake(
                "dgamma reads x - mean for x_hat",
                ("operand", "residual", "local factor", "output", "value"),
            ),
        ),
    ),
    Layer(
        "batch norm",
        batch_norm,
        batch_norm_backward,
        draw_batch_norm,
        (
            Mistake(
                "dgamma is averaged over the batch",
                ("factor",),
                r"N|mean|1/",
                GITHUB + "wjbKimberly/cs231n_spring_2017_assignment/issues/7",
            ),
            Mistake(
                "mean and variance are taken for constants",
                ("mean path", "variance path", "branch", "diagonal"),
                source=GITHUB + "KonduitAI/deeplearning4j/pull/41",
            ),
            Mistake(
                "the mean path is not divided by N",
                ("mean path", "factor"),
                source=GITHUB + "mlpack/mlpack/pull/1327",
            ),
            Mistake(
                "the variance path divides by N - 1",
                ("Bessel", "variance path", "factor", "forward"),
            ),
            Mistake(
                "dgamma keeps the axis of the batch",
                ("shape",),
                source="https://red.byte.kiwi/r/cs231n/comments/hx87z3/"
                "batchnorm_w12_gradient_error_1e0_but_e8_when",
            ),
            Mistake("dgamma and dbeta are exchanged", ("exchanged",)),
        ),
    ),
    Layer(
        "RMS norm",
        rms_norm,
        rms_norm_backward,
        draw_rms_norm,
        (
            Mistake(
                "gamma is forgotten in dx",
                ("scale", "operand", "local factor"),
                source=GITHUB + "karpathy/llm.c/pull/763",
            ),
            Mistake(
                "gamma enters the length path twice",
                ("length path", "variance path", "scale", "operand", "value"),
                source=GITHUB + "NVIDIA/Megatron-LM/pull/6859",
            ),
            Mistake("the mean is subtracted as in layer norm", ("mean path", "forward")),
            Mistake(
                "dgamma is taken when the buffer of dz holds dx",
                ("overwritten", "exchanged", "operand", "upstream"),
                source=GITHUB + "unslothai/unsloth/pull/4550",
            ),
            Mistake(
                "dgamma is never written",
                ("zeros", "missing"),
                source=GITHUB + "unslothai/unsloth/issues/832",
            ),
        ),
    ),
    Layer(
        "group norm",
        group_norm,
        group_norm_backward,
        draw_group_norm,
        (
            Mistake(
                "dgamma reads the statistics of group c % G",
                ("operand", "residual", "permuted", "axis"),
                source=GITHUB + "tenstorrent/tt-metal/pull/56202",
            ),
            Mistake(
                "dgamma and dbeta sum the first row of each image only",
                ("batch", "axis", "masked", "overwritten", "branch"),
                source=GITHUB + "linkedin/Liger-Kernel/issues/1375",
            ),
            Mistake("dx averages over each channel alone", ("axis", "mean path", "variance path")),
            Mistake(
                "dx divides by the count of all channels",
                ("factor", "mean path", "variance path"),
            ),
            Mistake(
                "dx groups the array as if its channels came first",
                ("axis", "permuted", "column-major", "mean path", "variance path"),
            ),
        ),
    ),
    Layer(
        "normalised rows",
        normalize,
        normalize_backward,
        draw_normalize,
        (
            Mistake(
                "the length is taken with eps everywhere",
                ("forward", "length path", "local factor", "slope", "operand", "residual"),
                source=GITHUB + "chainer/chainer/pull/4190",
            ),
            Mistake("the length is taken for a constant", ("length path", "branch")),
            Mistake(
                "the length path is not divided by the length",
                ("length path", "local factor", "operand", "slope", "factor"),
            ),
            Mistake(
                "x dz is summed over the rows too",
                ("axis", "batch", "broadcast", "length path"),
            ),
        ),
    ),
    Layer(
        "weight norm",
        weight_norm,
        weight_norm_backward,
        draw_weight_norm,
        (
            Mistake(
                "dv is the gradient of w",
                ("local factor", "length path", "branch", "operand"),
                source=GITHUB + "wy1iu/sphereface/issues/2",
            ),
            Mistake("g is forgotten in dv", ("scale", "operand", "local factor")),
            Mistake(
                "dg reads v, which is not divided by its norm",
                ("operand", "residual", "local factor", "value"),
            ),
            Mistake("dx reads v for w", ("operand", "residual", "value")),
            Mistake("db is not summed over the batch", ("batch", "broadcast", "shape")),
        ),
    ),
    Layer(
        "softmax classifier",
        softmax_classifier,
        softmax_classifier_backward,
        draw_softmax_classifier,
        (
            Mistake("the mean is forgotten", ("factor",), r"N|mean"),
            Mistake(
                "labels minus probabilities",
                ("sign",),
                source=GITHUB + "deeplearning4j/deeplearning4j/issues/345",
            ),
            Mistake(
                "the softmax runs over the batch",
                ("axis",),
                source=GITHUB + "deeplearning4j/deeplearning4j/issues/345",
            ),
            Mistake("labels count from 1", ("label", "shifted")),
            Mistake("no 1 is subtracted at the label", ("label", "branch")),
            Mistake(
                "dz is ignored",
                ("upstream",),
                source=GITHUB + "NVIDIA/TransformerEngine/pull/2139",
            ),
        ),
    ),
    Layer(
        "cross-entropy with label smoothing",
        smoothed_cross_entropy,
        smoothed_cross_entropy_backward,
        draw_smoothed_cross_entropy,
        (
            Mistake(
                "the smoothing is spread over the other classes",
                ("forward", "factor", "label"),
                source=GITHUB + "fastai/fastai/pull/1814",
            ),
            Mistake(
                "1/K is spread, not eps/K",
                ("forward", "factor", "label"),
                source=GITHUB + "TimDettmers/ConvE/issues/55",
            ),
            Mistake("the smoothing is forgotten", ("forward", "branch", "label")),
            Mistake(
                "every example has the first one's dz",
                ("upstream", "operand", "batch", "broadcast"),
                source=GITHUB + "linkedin/Liger-Kernel/pull/1298",
            ),
            Mistake(
                "the sum of dlog_p is taken for -1",
                ("upstream", "local factor", "operand"),
                source=GITHUB + "mlpack/mlpack/issues/3468",
            ),
            Mistake(
                "log-softmax is treated as a softmax",
                ("operand", "residual", "output", "value", "slope", "local factor"),
                source=GITHUB + "uxlfoundation/oneDNN/issues/616",
            ),
        ),
    ),
    Layer(
        "binary cross-entropy of logits",
        binary_cross_entropy,
        binary_cross_entropy_backward,
        draw_binary_cross_entropy,
        (
            Mistake(
                "the weight multiplies the probability alone",
                ("forward", "scale", "operand", "branch", "label"),
                source=GITHUB + "PaddlePaddle/Paddle/issues/64226",
            ),
            Mistake(
                "the sigmoid's slope is applied once more",
                ("local factor", "slope", "value", "output"),
            ),
            Mistake("the mean divides by N only", ("factor",), r"\d"),
            Mistake(
                "dweight counts the negatives too",
                ("branch", "masked", "label", "operand", "local factor"),
            ),
        ),
    ),
    Layer(
        "mean squared error",
        mean_squared_error,
        mean_squared_error_backward,
        draw_mean_squared_error,
        (
            Mistake(
                "the 2 is forgotten",
                ("factor",),
                r"2|half",
                GITHUB + "davisking/dlib/issues/1169",
            ),
            Mistake(
                "the mean divides by N only",
                ("factor",),
                r"\d",
                GITHUB + "pytorch/pytorch/issues/3924",
            ),
            Mistake(
                "the mean is forgotten",
                ("factor",),
                r"mean|\d",
                GITHUB + "ntumlta2019/hw1/issues/2",
            ),
            Mistake("dw comes out transposed", ("transposed",)),
            Mistake("dy has the sign of the prediction's", ("sign",)),
        ),
    ),
    Layer(
        "Huber's loss",
        huber,
        huber_backward,
        draw_huber,
        (
            Mistake(
                "the signed error is compared with delta",
                ("branch", "kink", "slope", "masked", "forward", "local factor"),
                source=GITHUB + "BobMcDear/attorch/issues/13",
            ),
            Mistake(
                "delta is forgotten where the loss is linear",
                ("branch", "scale", "factor", "slope", "forward", "local factor"),
            ),
            Mistake(
                "the sign is forgotten where the loss is linear",
                ("sign", "branch", "slope", "kink", "local factor"),
            ),
            Mistake(
                "the half of the square is forgotten",
                ("branch", "factor", "slope", "forward"),
            ),
        ),
    ),
    Layer(
        "multiclass hinge loss",
        hinge,
        hinge_backward,
        draw_hinge,
        (
            Mistake(
                "the label loses one x, not one a margin",
                ("label", "factor", "branch", "overwritten", "duplicates"),
            ),
            Mistake("the label's column is left as it is", ("label", "branch", "masked")),
            Mistake("the label's own margin is counted", ("label", "branch", "masked", "kink")),
            Mistake("margins stand for their mask", ("value", "local factor", "operand")),
            Mistake(
                "the 2 of the penalty is forgotten",
                ("decay",),
                source=GITHUB + "jingtinghuang/CS231n-Spring-2017/issues/3",
            ),
            Mistake(
                "the penalty is added, not its gradient",
                ("decay", "value", "broadcast"),
                source="https://blog.youkuaiyun.com/weixin_30483697/article/details/95117454",
            ),
        ),
    ),
    Layer(
        "triplet loss",
        triplet,
        triplet_backward,
        draw_triplet,
        (
            Mistake(
                "rows are written, not added",
                ("duplicates", "overwritten"),
                source=GITHUB + "luhaofang/tripletloss/issues/39",
            ),
            Mistake(
                "the anchors alone are moved",
                ("branch", "zeros", "missing"),
                source=GITHUB + "jhjin/triplet-criterion/issues/2",
            ),
            Mistake(
                "rows are taken for normalised ones",
                ("branch", "operand", "local factor", "forward"),
                source=GITHUB + "Atcold/torch-TripletEmbedding/issues/6",
            ),
            Mistake(
                "the mean is over the active triplets",
                ("factor",),
                source=GITHUB + "wanji/caffe-sl/issues/7",
            ),
            Mistake(
                "inactive triplets push too",
                ("masked", "kink", "local factor", "slope", "upstream"),
            ),
        ),
    ),
    Layer(
        "contrastive loss",
        contrastive,
        contrastive_backward,
        draw_contrastive,
        (
            Mistake(
                "the push is not multiplied by a - b",
                ("local factor", "value", "slope", "operand", "upstream"),
                source=GITHUB + "BVLC/caffe/pull/7100",
            ),
            Mistake(
                "the push is not divided by the distance",
                ("local factor", "slope", "operand", "value"),
                source=GITHUB + "BVLC/caffe/issues/4438",
            ),
            Mistake(
                "the margin is that of the squared distance",
                ("forward", "local factor", "slope", "masked"),
                source=GITHUB + "BVLC/caffe/issues/2308",
            ),
            Mistake(
                "|a - b|^2 is given the slope a - 2 b",
                ("local factor", "slope", "factor", "operand", "branch"),
                source=GITHUB + "BVLC/caffe/issues/2312",
            ),
            Mistake("db has the sign of da", ("sign",)),
        ),
    ),
    Layer(
        "InfoNCE",
        info_nce,
        info_nce_backward,
        draw_info_nce,
        (
            Mistake("the columns' half is forgotten", ("branch",)),
            Mistake(
                "each half reaches its own queries only",
                ("branch",),
                source=GITHUB + "facebookresearch/vissl/pull/123",
            ),
            Mistake("ds is not transposed in dk", ("transposed",)),
            Mistake("the temperature is forgotten", ("factor", "scale", "local factor")),
        ),
    ),
    Layer(
        "Kullback-Leibler divergence",
        kl_divergence,
        kl_divergence_backward,
        draw_kl_divergence,
        (
            Mistake(
                "the target has no gradient",
                ("zeros", "missing"),
                source=GITHUB + "linkedin/Liger-Kernel/issues/1021",
            ),
            Mistake(
                "the mean is over all entries",
                ("factor",),
                r"\d",
                GITHUB + "haitongli/knowledge-distillation-pytorch/issues/2",
            ),
            Mistake(
                "the softmax's Jacobian is its diagonal",
                ("diagonal", "slope"),
                source=GITHUB + "deeplearning4j/libnd4j/issues/440",
            ),
            Mistake(
                "da stops at the probabilities",
                ("local factor", "diagonal"),
                source=GITHUB + "mlpack/mlpack/pull/1365",
            ),
            Mistake(
                "db is that of KL(q, p)",
                ("forward", "exchanged", "operand"),
                source=GITHUB + "paiml/aprender/pull/2153",
            ),
        ),
    ),
    Layer(
        "variational autoencoder",
        vae,
        vae_backward,
        draw_vae,
        (
            Mistake(
                "the standard deviation is read as exp(logvar)",
                ("forward", "factor", "local factor", "slope", "output", "operand"),
                source=GITHUB + "keras-team/keras/issues/3283",
            ),
            Mistake(
                "the constant of the KL term is -1/4",
                ("branch", "factor", "forward"),
                source=GITHUB + "y0ast/VAE-Torch/pull/5",
            ),
            Mistake(
                "the KL term is maximised",
                ("sign", "branch"),
                source=GITHUB + "Kaixhin/Autoencoders/issues/9",
            ),
            Mistake("the noise is forgotten", ("operand", "local factor", "upstream")),
            Mistake("the reconstruction does not reach mu", ("branch",)),
            Mistake("dw reads mu for the sample", ("operand", "residual")),
        ),
    ),
    Layer(
        "focal loss",
        focal,
        focal_backward,
        draw_focal,
        (
            Mistake("the focal factor is taken for a constant", ("branch", "local factor")),
            Mistake(
                "the gradient stops at the probability",
                ("local factor",),
                source=GITHUB + "unsky/focal-loss/issues/1",
            ),
            Mistake(
                "the negatives are weighted by 1 - p",
                ("forward", "operand", "branch", "label"),
                source=GITHUB + "yqyao/SSD_Pytorch/issues/32",
            ),
            Mistake(
                "gamma multiplies the positives' factor",
                ("forward", "operand", "slope", "branch"),
                source=GITHUB + "fudannlp16/focal-loss/issues/2",
            ),
            Mistake(
                "alpha weighs the negatives too",
                ("forward", "scale", "operand", "factor", "label"),
            ),
            Mistake("the negatives keep their sign", ("sign", "branch", "label")),
        ),
    ),
    Layer(
        "ridge regression",
        ridge,
        ridge_backward,
        draw_ridge,
        (
            Mistake(
                "the biases do not decay",
                ("decay", "branch"),
                source=GITHUB + "Burton2000/CS231n-2017/issues/9",
            ),
            Mistake("the decay is divided by N", ("decay", "factor")),
            Mistake("the weights decay twice", ("decay",)),
            Mistake("the error is y minus the prediction", ("sign", "branch")),
        ),
    ),
]
