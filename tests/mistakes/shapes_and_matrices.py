"""Dense layers, convolutions, pooling, matrix calculus and element-wise functions, by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from . import Layer, Mistake


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape))


def square(rng, n):
    """A matrix that is far from singular and from symmetric."""
    return jnp.asarray(rng.normal(size=(n, n)) / np.sqrt(n) + 2 * np.eye(n))


def choose(size, small, realistic):
    return {"small": small, "realistic": realistic}[size]


# --- A two-layer network with relu, softmax loss over closed-over labels, and weight decay --------

DECAY = 0.02


def labels_of(n, classes):
    """The labels of n examples; neither f nor its backward pass takes them as an argument."""
    return np.random.default_rng(n).integers(classes, size=n)


def relu_network(X, W1, b1, W2, b2):
    y = labels_of(X.shape[0], W2.shape[1])
    h = jnp.maximum(X @ W1 + b1, 0)
    scores = h @ W2 + b2
    scores = scores - scores.max(axis=1, keepdims=True)
    log_p = scores - jnp.log(jnp.exp(scores).sum(axis=1, keepdims=True))
    loss = -log_p[jnp.arange(len(y)), y].mean()
    return loss + 0.5 * DECAY * ((W1**2).sum() + (W2**2).sum())


def relu_network_backward(args, dz, wrong):
    X, W1, b1, W2, b2 = args
    N, C = X.shape[0], W2.shape[1]
    y = labels_of(N, C)
    z1 = X @ W1 + b1
    h = jnp.maximum(z1, 0)
    p = jax.nn.softmax(h @ W2 + b2, axis=1)

    dscores = p - jax.nn.one_hot(y + (wrong == "labels counted from 1"), C)
    dscores = dz * dscores / (N * C if wrong == "divided by N times the classes" else N)
    decay = dz * DECAY * (2 if wrong == "decay's half forgotten" else 1)
    dW2 = h.T @ dscores + decay * W2
    db2 = dscores.sum(axis=0)
    if wrong == "W2 updated before it is used":
        W2 = W2 - 0.1 * dW2
    dh = dscores @ W2.T
    if wrong == "sigmoid's slope for relu's":
        dz1 = dh * h * (1 - h)
    elif wrong == "relu masked by the cotangent":
        dz1 = dh * (dh > 0)
    else:
        dz1 = dh * (z1 > 0)
    dW1 = X.T @ dz1 + decay * W1
    return dz1 @ W1.T, dW1, dz1.sum(axis=0), dW2, db2


def draw_relu_network(rng, size):
    n, d, h, c = choose(size, (5, 3, 6, 4), (32, 64, 96, 10))
    return (
        normal(rng, n, d),
        normal(rng, d, h) / np.sqrt(d),
        0.3 * normal(rng, h),
        normal(rng, h, c) / np.sqrt(h),
        0.3 * normal(rng, c),
    )


RELU_NETWORK = Layer(
    "two-layer network, relu, softmax loss, weight decay",
    relu_network,
    relu_network_backward,
    draw_relu_network,
    (
        Mistake(
            "divided by N times the classes",
            ("factor",),
            source="https://github.com/victorlempitsky/Mate/issues/2",
        ),
        Mistake(
            "labels counted from 1",
            ("label", "shifted"),
            source="https://github.com/hunkim/DeepLearningZeroToAll/issues/20",
        ),
        Mistake("decay's half forgotten", ("decay", "factor")),
        Mistake(
            "W2 updated before it is used",
            ("operand", "residual"),
            source="https://github.com/kim-marcel/basic_neural_network/issues/7",
        ),
        Mistake(
            "sigmoid's slope for relu's",
            ("slope",),
            source="https://github.com/jeffheaton/encog-dotnet-core/issues/124",
        ),
        Mistake("relu masked by the cotangent", ("slope",), says=r"cotangent|upstream|dz"),
    ),
)


# --- A three-layer network with tanh --------------------------------------------------------------


def tanh_network(X, W1, b1, W2, b2, W3, b3):
    a1 = jnp.tanh(X @ W1 + b1)
    a2 = jnp.tanh(a1 @ W2 + b2)
    return a2 @ W3 + b3


def tanh_network_backward(args, dz, wrong):
    X, W1, b1, W2, b2, W3, _ = args
    a1 = jnp.tanh(X @ W1 + b1)
    a2 = jnp.tanh(a1 @ W2 + b2)
    m = X.shape[0] if wrong == "1/m although dz has it" else 1

    dW3 = a2.T @ dz / m
    db3 = dz.sum(axis=0) / m
    da2 = dz @ W3.T
    dz2 = da2 * (-(a2**2) if wrong == "slope -tanh^2" else 1 - a2**2)
    dW2 = a1.T @ dz2 / m
    db2 = dz2 / m if wrong == "db2 keeps the examples" else dz2.sum(axis=0) / m
    da1 = dz2 @ W2.T
    if wrong == "tanh taken of the activation again":
        dz1 = da1 * (1 - jnp.tanh(a1) ** 2)
    elif wrong == "slope at the cotangent":
        dz1 = 1 - jnp.tanh(da1) ** 2
    else:
        dz1 = da1 * (1 - a1**2)
    dW1 = X.T @ dz1 / m
    db1 = dz1.sum(axis=0) / m
    return dz1 @ W1.T, dW1, db1, dW2, db2, dW3, db3


def draw_tanh_network(rng, size):
    n, *widths = choose(size, (6, 3, 5, 4, 2), (32, 64, 80, 48, 12))
    args = [normal(rng, n, widths[0])]
    for d, h in itertools.pairwise(widths):
        args += [normal(rng, d, h) / np.sqrt(d), 0.3 * normal(rng, h)]
    return tuple(args)


TANH_NETWORK = Layer(
    "three-layer network, tanh",
    tanh_network,
    tanh_network_backward,
    draw_tanh_network,
    (
        Mistake("1/m although dz has it", ("factor",), says=r"1/N|mean|1/6|1/32|examples|batch"),
        Mistake(
            "slope -tanh^2",
            ("slope",),
            source="https://github.com/scutan90/DeepLearning-500-questions/issues/544",
        ),
        Mistake(
            "db2 keeps the examples",
            ("shape", "batch", "broadcast"),
            source="https://community.deeplearning.ai/t/"
            "trouble-understanding-b-vector-back-propagation/536725",
        ),
        Mistake(
            "tanh taken of the activation again",
            ("output", "slope", "residual", "operand"),
            source="https://github.com/davidrmiller/neural2d/issues/40",
        ),
        Mistake(
            "slope at the cotangent",
            ("upstream", "slope", "operand"),
            source="https://github.com/yizt/numpy_neural_network/issues/6",
        ),
    ),
)


# --- Convolution, window by window: channels last, stride 2, padding 1 ----------------------------

STRIDE, PAD = 2, 1


def window_conv(A, W, b):
    k = W.shape[0]
    A = jnp.pad(A, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
    rows = (A.shape[1] - k) // STRIDE + 1
    columns = (A.shape[2] - k) // STRIDE + 1
    Z = []
    for i in range(rows):
        for j in range(columns):
            top, left = i * STRIDE, j * STRIDE
            window = A[:, top : top + k, left : left + k, :]
            Z.append(jnp.tensordot(window, W, axes=3) + b)
    return jnp.stack(Z, axis=1).reshape(A.shape[0], rows, columns, -1)


def window_conv_backward(args, dz, wrong):
    A, W, b = args
    k, (_, H, width, _) = W.shape[0], A.shape
    A = jnp.pad(A, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
    stride = 1 if wrong == "windows without their stride" else STRIDE
    W_back = W[::-1, ::-1] if wrong == "kernel rotated by 180 degrees" else W

    dA, dW, db = jnp.zeros_like(A), jnp.zeros_like(W), jnp.zeros_like(b)
    for i in range(dz.shape[1]):
        for j in range(dz.shape[2]):
            at = np.s_[:, i * stride : i * stride + k, j * stride : j * stride + k, :]
            d = dz[:, i, j, :]
            patch = jnp.einsum("nf,abcf->nabc", d, W_back)
            dA = dA.at[at].set(patch) if wrong == "windows overwrite" else dA.at[at].add(patch)
            if wrong == "dW of the last example":
                dW += jnp.einsum("abc,f->abcf", A[at][-1], d[-1])
            else:
                dW += jnp.einsum("nabc,nf->abcf", A[at], d)
            db += d.sum(axis=0)
    cut = 0 if wrong == "padding cut from the far end" else PAD
    return dA[:, cut : cut + H, cut : cut + width, :], dW, db


def draw_window_conv(rng, size):
    n, h, w, c, f = choose(size, (2, 6, 5, 4, 7), (8, 10, 10, 3, 12))
    return normal(rng, n, h, w, c), normal(rng, 3, 3, c, f) / np.sqrt(9 * c), normal(rng, f)


WINDOW_CONV = Layer(
    "convolution window by window, stride 2, padded",
    window_conv,
    window_conv_backward,
    draw_window_conv,
    (
        Mistake(
            "windows without their stride",
            ("shifted", "permuted", "operand", "forward"),
            source="https://github.com/Kulbear/deep-learning-coursera/pull/34",
        ),
        Mistake("windows overwrite", ("overwritten",)),
        Mistake(
            "kernel rotated by 180 degrees",
            ("reversed", "permuted", "transposed", "operand"),
            source="https://community.deeplearning.ai/t/"
            "should-it-have-a-rot180-on-filter-to-calculate-da-prev/121204",
        ),
        Mistake("padding cut from the far end", ("shifted",)),
        Mistake("dW of the last example", ("batch", "overwritten")),
    ),
)


# --- Convolution as a matrix product: channels first, stride 1 ------------------------------------


def im2col(x, k):
    """(N, C, H, W) -> (N, C k k, H' W'), the patches as columns."""
    n, c, h, w = x.shape
    h, w = h - k + 1, w - k + 1
    shifts = [x[:, :, i : i + h, j : j + w] for i in range(k) for j in range(k)]
    return jnp.stack(shifts, axis=2).reshape(n, c * k * k, h * w)


def matrix_conv(x, w, b):
    f, _, k, _ = w.shape
    n, _, height, width = x.shape
    out = w.reshape(f, -1) @ im2col(x, k) + b[:, None]
    return out.reshape(n, f, height - k + 1, width - k + 1)


def matrix_conv_backward(args, dz, wrong):
    x, w, _ = args
    (f, c, k, _), (n, _, h, width) = w.shape, dz.shape
    columns = im2col(x, k)
    dout = dz.reshape(n, f, -1)

    dw = jnp.einsum("nfp,ncp->fc", dout, columns)
    if wrong == "channels unravelled last":
        dw = dw.reshape(f, k, k, c).transpose(0, 3, 1, 2)
    else:
        dw = dw.reshape(f, c, k, k)
    if wrong == "kernel's rows and columns exchanged":
        dw = dw.swapaxes(2, 3)
    db = dout.sum(axis=2).mean(axis=0) if wrong == "db averaged" else dout.sum(axis=(0, 2))
    dcolumns = (w.reshape(f, -1).T @ dout).reshape(n, c, k, k, h, width)
    dx = jnp.zeros_like(x)
    for i in range(k):
        for j in range(k):
            at = dx.at[:, :, i : i + h, j : j + width]
            patch = dcolumns[:, :, i, j]
            dx = at.set(patch) if wrong == "col2im assigns" else at.add(patch)
    return dx, dw, db


def draw_matrix_conv(rng, size):
    n, c, h, w, f = choose(size, (2, 4, 6, 5, 7), (8, 3, 16, 16, 16))
    return normal(rng, n, c, h, w), normal(rng, f, c, 3, 3) / np.sqrt(9 * c), normal(rng, f)


MATRIX_CONV = Layer(
    "convolution by im2col",
    matrix_conv,
    matrix_conv_backward,
    draw_matrix_conv,
    (
        Mistake(
            "col2im assigns",
            ("overwritten",),
            source="https://github.com/oreilly-japan/deep-learning-from-scratch/issues/27",
        ),
        Mistake(
            "channels unravelled last",
            ("permuted", "column-major"),
            source="https://github.com/ravin-d-27/PyDeepFlow/pull/85",
        ),
        Mistake(
            "kernel's rows and columns exchanged",
            ("transposed", "permuted"),
            source="https://github.com/nntrainer/nntrainer/issues/705",
        ),
        Mistake("db averaged", ("factor",), says=r"1/N|mean|1/2|1/8|examples|batch"),
    ),
)


# --- Max pooling, 3 x 3 with stride 2: windows overlap --------------------------------------------


def windows_of(x, k=3, stride=2):
    """Where the windows of (N, C, H, W) lie, row by row."""
    rows, columns = (x.shape[2] - k) // stride + 1, (x.shape[3] - k) // stride + 1
    return (
        rows,
        columns,
        [
            np.s_[:, :, i * stride : i * stride + k, j * stride : j * stride + k]
            for i in range(rows)
            for j in range(columns)
        ],
    )


def max_pool(x):
    rows, columns, windows = windows_of(x)
    maxima = [x[at].max(axis=(2, 3)) for at in windows]
    return jnp.stack(maxima, axis=2).reshape(*x.shape[:2], rows, columns)


def max_pool_backward(args, dz, wrong):
    (x,) = args
    _, columns, windows = windows_of(x)
    gate = jnp.zeros_like(x)
    for at in windows:
        gate = gate.at[at].set(x[at] == x[at].max(axis=(2, 3), keepdims=True))

    dx = jnp.zeros_like(x)
    for number, at in enumerate(windows):
        d = dz[:, :, number // columns, number % columns, None, None]
        won = x[at] == x[at].max(axis=(2, 3), keepdims=True)
        if wrong == "spread evenly":
            won = jnp.full(won.shape, 1 / 9)
        if wrong == "winners of the last window":
            won = gate[at]
        if wrong == "winners assigned":
            dx = dx.at[at].set(jnp.where(won, d, dx[at]))
        else:
            dx = dx.at[at].add(won * d)
        if wrong == "returns inside the loop":
            break
    return (dx,)


def draw_max_pool(rng, size):
    return (normal(rng, *choose(size, (2, 3, 7, 5), (8, 6, 11, 11))),)


MAX_POOL = Layer(
    "max pooling, overlapping windows",
    max_pool,
    max_pool_backward,
    draw_max_pool,
    (
        Mistake(
            "winners assigned",
            ("overwritten",),
            source="https://github.com/FluxML/NNlib.jl/issues/205",
        ),
        Mistake("spread evenly", ("forward", "slope")),
        Mistake(
            "winners of the last window",
            ("overwritten", "residual", "operand", "slope"),
            source="https://github.com/ahrefs/ocannl/issues/512",
        ),
        Mistake(
            "returns inside the loop",
            ("zeros", "masked", "branch", "overwritten"),
            source="https://github.com/riccardoandreoni0/CNN-from-scratch/issues/1",
        ),
    ),
)


# --- Average pooling that does not count its padding, then a dense layer --------------------------


def shares_of(x):
    """The windows of padded (N, C, H, W), and how many entries of x each of them holds."""
    rows, columns, windows = windows_of(padded(x))
    ones = np.pad(np.ones((1, 1, *x.shape[2:])), ((0, 0), (0, 0), (1, 1), (1, 1)))
    return rows, columns, windows, [int(ones[at].sum()) for at in windows]


def padded(x):
    return jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))


def average_pool(x, W, b):
    _, _, windows, counts = shares_of(x)
    x = padded(x)
    means = [x[at].sum(axis=(2, 3)) / count for at, count in zip(windows, counts, strict=True)]
    return jnp.stack(means, axis=2).reshape(x.shape[0], -1) @ W + b


def average_pool_backward(args, dz, wrong):
    x, W, _ = args
    n, c = x.shape[:2]
    rows, columns, windows, counts = shares_of(x)
    x = padded(x)
    means = [x[at].sum(axis=(2, 3)) / count for at, count in zip(windows, counts, strict=True)]

    dW = jnp.stack(means, axis=2).reshape(n, -1).T @ dz
    dflat = dz @ W.T
    if wrong == "unflattened with channels last":
        dpooled = dflat.reshape(n, rows * columns, c).swapaxes(1, 2)
    else:
        dpooled = dflat.reshape(n, c, rows * columns)
    dx = jnp.zeros_like(x)
    for number, (at, count) in enumerate(zip(windows, counts, strict=True)):
        if wrong == "padding counted":
            count = 9
        if wrong == "not divided":
            count = 1
        share = jnp.broadcast_to(dpooled[:, :, number, None, None] / count, dx[at].shape)
        dx = dx.at[at].set(share) if wrong == "windows overwrite" else dx.at[at].add(share)
    return dx[:, :, 1:-1, 1:-1], dW, dz.sum(axis=0)


def draw_average_pool(rng, size):
    n, c, h, w, f = choose(size, (2, 3, 6, 5, 4), (8, 3, 10, 10, 10))
    features = c * ((h - 1) // 2 + 1) * ((w - 1) // 2 + 1)
    return normal(rng, n, c, h, w), normal(rng, features, f) / np.sqrt(features), normal(rng, f)


AVERAGE_POOL = Layer(
    "average pooling and a dense layer",
    average_pool,
    average_pool_backward,
    draw_average_pool,
    (
        Mistake(
            "padding counted",
            ("forward", "slope", "operand", "local factor"),
            source="https://github.com/pytorch/pytorch/issues/198119",
        ),
        Mistake("not divided", ("local factor", "scale", "forward")),
        Mistake("windows overwrite", ("overwritten",)),
        Mistake("unflattened with channels last", ("permuted", "column-major", "transposed")),
    ),
)


# --- Dropout between two dense layers; the mask is closed over ------------------------------------

KEEP = 0.7


def mask_of(shape, seed=7):
    return jnp.asarray(np.random.default_rng(seed).random(shape) < KEEP)


def dropout_network(X, W1, b1, W2):
    h = jnp.tanh(X @ W1 + b1)
    d = h * mask_of(h.shape) / KEEP
    return d @ W2


def dropout_network_backward(args, dz, wrong):
    X, W1, b1, W2 = args
    h = jnp.tanh(X @ W1 + b1)
    mask = mask_of(h.shape)
    d = h * mask / KEEP

    dW2 = (h if wrong == "dW2 from before dropout" else d).T @ dz
    dd = dz @ W2.T
    if wrong == "mask forgotten":
        dh = dd / KEEP
    elif wrong == "1/keep forgotten":
        dh = dd * mask
    elif wrong == "mask drawn again":
        dh = dd * mask_of(h.shape, seed=8) / KEEP
    else:
        dh = dd * mask / KEEP
    dz1 = dh * (1 - (d if wrong == "tanh's slope from after dropout" else h) ** 2)
    return dz1 @ W1.T, X.T @ dz1, dz1.sum(axis=0), dW2


def draw_dropout_network(rng, size):
    n, d, h, f = choose(size, (5, 3, 6, 4), (32, 48, 96, 16))
    W1, W2 = normal(rng, d, h) / np.sqrt(d), normal(rng, h, f) / np.sqrt(h)
    return normal(rng, n, d), W1, normal(rng, h), W2


DROPOUT = Layer(
    "dropout between dense layers",
    dropout_network,
    dropout_network_backward,
    draw_dropout_network,
    (
        Mistake(
            "mask forgotten",
            ("masked", "local factor", "operand", "forward"),
            source="https://github.com/ddbourgin/numpy-ml/issues/94",
        ),
        Mistake(
            "1/keep forgotten",
            ("factor", "local factor", "forward"),
            source="https://stats.stackexchange.com/questions/207481/"
            "dropout-backpropagation-implementation",
        ),
        Mistake(
            "mask drawn again",
            ("masked", "operand", "residual"),
            source="https://github.com/state-spaces/mamba/pull/1023",
        ),
        Mistake("dW2 from before dropout", ("residual", "operand", "masked", "forward")),
        Mistake("tanh's slope from after dropout", ("residual", "output", "slope", "operand")),
    ),
)


# --- Bilinear form x^T A y + b, several outputs ---------------------------------------------------


def bilinear(x, y, A, b):
    return jnp.einsum("ni,kij,nj->nk", x, A, y) + b


def bilinear_backward(args, dz, wrong):
    x, y, A, _ = args
    dx = jnp.einsum("nk,kij,nj->ni", dz, A, y)
    if wrong == "dx without dz":
        dx = jnp.einsum("kij,nj->ni", A, y)
    dy = jnp.zeros_like(y)
    for k in range(A.shape[0]):
        term = dz[:, k, None] * (x @ A[k])
        dy = term if wrong == "dy of the last output" else dy + term
    dA = jnp.einsum("nk,ni,nj->kij", dz, x, y)
    if wrong == "dA without its outputs":
        dA = jnp.einsum("nk,ni,nj->ij", dz, x, y)
    if wrong == "examples summed before the outer product":
        dA = jnp.einsum("nk,ni->ki", dz, x)[:, :, None] * y.sum(axis=0)
    db = dz.mean(axis=0) if wrong == "db averaged" else dz.sum(axis=0)
    return dx, dy, dA, db


def draw_bilinear(rng, size):
    n, i, j, k = choose(size, (5, 3, 4, 2), (32, 24, 40, 12))
    return normal(rng, n, i), normal(rng, n, j), normal(rng, k, i, j) / i, normal(rng, k)


BILINEAR = Layer(
    "bilinear form",
    bilinear,
    bilinear_backward,
    draw_bilinear,
    (
        Mistake("dx without dz", ("upstream",), source="https://github.com/torch/nn/issues/658"),
        Mistake("dy of the last output", ("overwritten", "branch")),
        Mistake(
            "dA without its outputs",
            ("shape",),
            source="https://github.com/pytorch/pytorch/issues/1571",
        ),
        Mistake("examples summed before the outer product", ("batch", "axis", "broadcast")),
        Mistake("db averaged", ("factor",), says=r"1/N|mean|1/5|1/32|examples|batch"),
    ),
)


# --- Quadratic form about a mean: (x - mu)^T P (x - mu) / 2 ---------------------------------------


def quadratic(x, mu, P):
    d = x - mu
    return 0.5 * jnp.sum((d @ P) * d, axis=1)


def quadratic_backward(args, dz, wrong):
    x, mu, P = args
    d = x - mu
    half = 1.0 if wrong == "1/2 forgotten" else 0.5
    if wrong == "2 P d":
        dd = half * dz[:, None] * 2 * (d @ P.T)
    elif wrong == "one of the two paths":
        dd = half * dz[:, None] * (d @ P)
    else:
        dd = half * dz[:, None] * (d @ P + d @ P.T)
    dmu = dd.sum(axis=0) if wrong == "dmu's minus forgotten" else -dd.sum(axis=0)
    dP = half * d.T @ (dz[:, None] * d)
    if wrong == "off-diagonal doubled":
        dP = dP + dP.T - jnp.diag(jnp.diag(dP))
    return dd, dmu, dP


def draw_quadratic(rng, size):
    n, d = choose(size, (5, 3), (64, 48))
    return normal(rng, n, d), normal(rng, d), square(rng, d)


QUADRATIC = Layer(
    "quadratic form about a mean",
    quadratic,
    quadratic_backward,
    draw_quadratic,
    (
        Mistake(
            "2 P d",
            ("symmetric", "transposed", "operand", "branch"),
            source="https://math.stackexchange.com/questions/3222371/"
            "derivative-of-a-quadratic-form-how-to-derive-it",
        ),
        Mistake("one of the two paths", ("branch",)),
        Mistake("1/2 forgotten", ("factor",), says=r"2"),
        Mistake("dmu's minus forgotten", ("sign",)),
        Mistake(
            "off-diagonal doubled",
            ("symmetric", "diagonal", "factor"),
            source="https://github.com/pyro-ppl/pyro/issues/656",
        ),
    ),
)


# --- Inverse of a matrix --------------------------------------------------------------------------


def times_inverse(X, A):
    return X @ jnp.linalg.inv(A)


def times_inverse_backward(args, dz, wrong):
    X, A = args
    B = jnp.linalg.inv(A)
    dX = dz @ B.T
    dB = X.T @ dz
    if wrong == "products element by element":
        dA = -(B.T * dB * B.T)
    elif wrong == "inverse not transposed":
        dA = -(B @ dB @ B)
    elif wrong == "dB forgotten":
        dA = -(B.T @ B.T)
    elif wrong == "minus forgotten":
        dA = B.T @ dB @ B.T
    elif wrong == "inverse on one side only":
        dA = -(B.T @ dB)
    else:
        dA = -(B.T @ dB @ B.T)
    return dX, dA


def draw_times_inverse(rng, size):
    n, d = choose(size, (5, 3), (32, 64))
    return normal(rng, n, d), square(rng, d)


INVERSE = Layer(
    "product with an inverse",
    times_inverse,
    times_inverse_backward,
    draw_times_inverse,
    (
        # None of the names: a matrix product became a product of entries.
        Mistake(
            "products element by element", ("",), source="https://github.com/owlbarn/owl/pull/342"
        ),
        Mistake(
            "inverse not transposed",
            ("transposed",),
            source="https://github.com/pytorch/pytorch.github.io/issues/2135",
        ),
        Mistake(
            "dB forgotten",
            ("upstream",),
            source="https://github.com/google/tangent/pull/36",
        ),
        Mistake("minus forgotten", ("sign",)),
        Mistake("inverse on one side only", ("local factor", "branch", "operand", "scale")),
    ),
)


# --- Linear system A X = B ------------------------------------------------------------------------


def solve(A, B):
    return jnp.linalg.solve(A, B)


def solve_backward(args, dz, wrong):
    A, B = args
    X = jnp.linalg.solve(A, B)
    dB = jnp.linalg.solve(A if wrong == "solved with A again" else A.T, dz)
    if wrong == "dA never written":
        dA = jnp.zeros_like(A)
    elif wrong == "dA transposed":
        dA = -(X @ dB.T)
    elif wrong == "B in place of the solution":
        dA = -(dB @ B.T)
    else:
        dA = -(dB @ X.T)
    return dA, dB


def draw_solve(rng, size):
    d, m = choose(size, (4, 3), (64, 24))
    return square(rng, d), normal(rng, d, m)


SOLVE = Layer(
    "linear system",
    solve,
    solve_backward,
    draw_solve,
    (
        Mistake(
            "dA never written",
            ("zeros",),
            source="https://github.com/tensor4all/tenferro-rs/issues/772",
        ),
        Mistake("solved with A again", ("transposed", "symmetric")),
        Mistake("dA transposed", ("transposed",)),
        Mistake("B in place of the solution", ("residual", "operand", "value")),
    ),
)


# --- Likelihood of a linear flow: its log-determinant ---------------------------------------------


def linear_flow(X, W, b):
    z = X @ W.T + b
    return jnp.mean(-0.5 * jnp.sum(z**2, axis=1)) + jnp.linalg.slogdet(W)[1]


def linear_flow_backward(args, dz, wrong):
    X, W, b = args
    N = X.shape[0]
    z = X @ W.T + b
    dZ = -z * dz / N
    dW = dZ.T @ X
    inverse = jnp.linalg.inv(W)
    if wrong == "inverse not transposed":
        dW += dz * inverse
    elif wrong == "log-determinant averaged too":
        dW += dz * inverse.T / N
    elif wrong == "log-determinant subtracted":
        dW -= dz * inverse.T
    elif wrong == "slope of the determinant":
        dW += dz * jnp.linalg.det(W) * inverse.T
    elif wrong != "log-determinant forgotten":
        dW += dz * inverse.T
    return dZ @ W, dW, dZ.sum(axis=0)


def draw_linear_flow(rng, size):
    n, d = choose(size, (5, 3), (64, 16))
    return normal(rng, n, d), square(rng, d), normal(rng, d)


FLOW = Layer(
    "likelihood of a linear flow",
    linear_flow,
    linear_flow_backward,
    draw_linear_flow,
    (
        Mistake("inverse not transposed", ("transposed", "symmetric")),
        Mistake("log-determinant averaged too", ("factor",), says=r"1/N|mean|examples|batch|1/"),
        Mistake("log-determinant subtracted", ("sign",)),
        Mistake("log-determinant forgotten", ("branch", "forward")),
        Mistake("slope of the determinant", ("local factor", "forward", "slope")),
    ),
)


# --- Gaussian log-density, its covariance given by a Cholesky factor ------------------------------


def factor_of(A):
    """The lower triangle of A with the exponential of its diagonal."""
    return jnp.tril(A, -1) + jnp.diag(jnp.exp(jnp.diag(A)))


def gaussian(x, mu, A):
    y = jax.scipy.linalg.solve_triangular(factor_of(A), (x - mu).T, lower=True)
    normaliser = jnp.diag(A).sum() + 0.5 * x.shape[1] * jnp.log(2 * jnp.pi)
    return -0.5 * jnp.sum(y**2, axis=0) - normaliser


def gaussian_backward(args, dz, wrong):
    x, mu, A = args
    L = factor_of(A)
    y = jax.scipy.linalg.solve_triangular(L, (x - mu).T, lower=True)
    dy = -y * dz
    du = jax.scipy.linalg.solve_triangular(L, dy, lower=True, trans=1)
    dmu = du.sum(axis=1) if wrong == "dmu's minus forgotten" else -du.sum(axis=1)
    dL = -(du @ y.T)
    diagonal = jnp.diag(dL) * (1 if wrong == "exp's slope forgotten" else jnp.diag(L))
    diagonal -= 1.0 if wrong == "normaliser of one example, without dz" else dz.sum()
    dA = (dL if wrong == "upper triangle kept" else jnp.tril(dL)) - jnp.diag(jnp.diag(dL))
    dA += jnp.diag(diagonal)
    return du.T, dmu, -dA if wrong == "covariance's sign flipped" else dA


def draw_gaussian(rng, size):
    n, d = choose(size, (6, 4), (64, 24))
    return normal(rng, n, d), normal(rng, d), 0.6 * normal(rng, d, d) / np.sqrt(d)


GAUSSIAN = Layer(
    "Gaussian log-density by Cholesky factor",
    gaussian,
    gaussian_backward,
    draw_gaussian,
    (
        Mistake(
            "upper triangle kept",
            ("masked", "forward"),
            source="https://github.com/ekzhang/jax-js/issues/84",
        ),
        Mistake("exp's slope forgotten", ("local factor",), says=r"exp|diagonal"),
        Mistake("normaliser of one example, without dz", ("upstream", "batch")),
        Mistake("dmu's minus forgotten", ("sign",)),
        Mistake(
            "covariance's sign flipped",
            ("sign",),
            source="https://github.com/HIPS/autograd/issues/401",
        ),
    ),
)


# --- Gram matrices of feature maps ----------------------------------------------------------------


def gram(X):
    return jnp.einsum("bpi,bpj->bij", X, X) / X.shape[1]


def gram_backward(args, dz, wrong):
    (X,) = args
    P = 1 if wrong == "positions not divided by" else X.shape[1]
    if wrong == "one of the two factors":
        both = dz
    elif wrong == "dz taken as symmetric":
        both = 2 * dz
    else:
        both = dz + dz.swapaxes(1, 2)
    if wrong == "diagonal doubled again":
        both = both * (1 + jnp.eye(X.shape[2]))
    return (X @ both.swapaxes(1, 2) / P,)


def draw_gram(rng, size):
    return (normal(rng, *choose(size, (2, 5, 3), (8, 64, 24))),)


GRAM = Layer(
    "Gram matrices",
    gram,
    gram_backward,
    draw_gram,
    (
        Mistake(
            "one of the two factors",
            ("branch",),
            source="https://github.com/NervanaSystems/neon/issues/169",
        ),
        Mistake("dz taken as symmetric", ("symmetric", "branch", "transposed")),
        Mistake(
            "diagonal doubled again",
            ("diagonal", "symmetric", "factor"),
            source="https://github.com/happynear/caffe-windows/issues/178",
        ),
        Mistake("positions not divided by", ("factor",), says=r"mean|\b5\b|64|positions|N"),
    ),
)


# --- GELU, in its tanh form, after a dense layer --------------------------------------------------

ROOT = np.sqrt(2 / np.pi)


def gelu(X, W, b):
    z = X @ W + b
    return 0.5 * z * (1 + jnp.tanh(ROOT * (z + 0.044715 * z**3)))


def gelu_backward(args, dz, wrong):
    X, W, b = args
    z = X @ W + b
    t = jnp.tanh(ROOT * (z + 0.044715 * z**3))
    cube = 0.044715 if wrong == "3 of the cube forgotten" else 3 * 0.044715
    du = ROOT * (1 + cube * z**2)
    if wrong == "sech for sech^2":
        dt = 0.5 * z * jnp.sqrt(1 - t**2) * du
    elif wrong == "inner slope forgotten":
        dt = 0.5 * z * (1 - t**2)
    elif wrong == "tanh held constant":
        dt = 0.0
    else:
        dt = 0.5 * z * (1 - t**2) * du
    slope = 0.5 * (1 + t) + dt
    if wrong == "slope of the exact form":
        density = jnp.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
        slope = 0.5 * (1 + jax.scipy.special.erf(z / np.sqrt(2))) + z * density
    da = dz * slope
    return da @ W.T, X.T @ da, da.sum(axis=0)


def draw_dense(rng, size):
    n, d, h = choose(size, (5, 3, 4), (32, 48, 96))
    return normal(rng, n, d), normal(rng, d, h) / np.sqrt(d), normal(rng, h)


GELU = Layer(
    "GELU in its tanh form",
    gelu,
    gelu_backward,
    draw_dense,
    (
        Mistake("slope of the exact form", ("forward", "slope"), says=r"erf|exact|form|GELU"),
        Mistake("3 of the cube forgotten", ("local factor", "slope", "factor", "forward")),
        Mistake("sech for sech^2", ("slope", "local factor")),
        Mistake("inner slope forgotten", ("local factor",)),
        Mistake("tanh held constant", ("branch",)),
    ),
)


# --- Swish with a learned beta for each feature ---------------------------------------------------


def swish(x, beta):
    return x * jax.nn.sigmoid(beta * x)


def swish_backward(args, dz, wrong):
    x, beta = args
    s = jax.nn.sigmoid(beta * x)
    y = x * s
    if wrong == "x read for the output":
        slope = beta * x + s * (1 - beta * x)
    elif wrong == "difference for a product":
        slope = s + beta * x * (s - (1 - s))
    elif wrong == "parenthesis forgotten":
        e = jnp.exp(-beta * x)
        slope = 1 + e + beta * x * e / (1 + e) ** 2
    else:
        slope = beta * y + s * (1 - beta * y)
    dbeta = dz * x**2 * s * (1 - s)
    if wrong == "sigmoid's slope left out of dbeta":
        dbeta = dz * x**2
    if wrong == "dbeta one for all features":
        dbeta = jnp.broadcast_to(dbeta.sum(), beta.shape)
    else:
        dbeta = dbeta.sum(axis=0)
    return dz * slope, dbeta


def draw_swish(rng, size):
    n, d = choose(size, (6, 4), (64, 96))
    return normal(rng, n, d), 1 + 0.4 * normal(rng, d)


SWISH = Layer(
    "swish with learned beta",
    swish,
    swish_backward,
    draw_swish,
    (
        Mistake(
            "x read for the output",
            ("operand", "residual", "value", "slope"),
            source="https://github.com/pjreddie/darknet/pull/252",
        ),
        Mistake(
            "difference for a product",
            ("slope",),
            source="https://github.com/sausheong/gonn/issues/8",
        ),
        Mistake(
            "parenthesis forgotten",
            ("slope", "forward"),
            source="https://github.com/chelsea0x3b/dfdx/pull/915",
        ),
        Mistake(
            "sigmoid's slope left out of dbeta",
            ("local factor",),
            source="https://github.com/RubixML/ML/pull/437",
        ),
        Mistake("dbeta one for all features", ("axis", "broadcast")),
    ),
)


# --- ELU after a dense layer ----------------------------------------------------------------------

ALPHA = 0.7


def elu(X, W, b):
    z = X @ W + b
    return jnp.where(z > 0, z, ALPHA * (jnp.exp(jnp.minimum(z, 0)) - 1))


def elu_backward(args, dz, wrong):
    X, W, b = args
    z = X @ W + b
    a = elu(X, W, b)
    if wrong == "1 + a for alpha + a":
        da = dz * jnp.where(a > 0, 1.0, 1 + a)
    elif wrong == "relu's slope":
        da = dz * (z > 0)
    elif wrong == "dz left out below zero":
        da = jnp.where(z > 0, dz, ALPHA + a)
    elif wrong == "sides told by the cotangent":
        da = dz * jnp.where(dz > 0, 1.0, ALPHA + a)
    else:
        da = dz * jnp.where(z > 0, 1.0, ALPHA + a)
    return da @ W.T, X.T @ da, da.sum(axis=0)


ELU = Layer(
    "ELU",
    elu,
    elu_backward,
    draw_dense,
    (
        Mistake(
            "1 + a for alpha + a",
            ("slope", "forward", "factor", "local factor"),
            source="https://github.com/deeplearning4j/deeplearning4j/issues/8178",
        ),
        Mistake(
            "relu's slope",
            ("slope", "forward", "branch", "masked", "zeros"),
            source="https://github.com/scientific-computing/FKB/issues/15",
        ),
        Mistake(
            "dz left out below zero",
            ("upstream",),
            source="https://github.com/SilasMarvin/dnns-from-scratch-in-zig/issues/5",
        ),
        Mistake("sides told by the cotangent", ("slope", "operand", "masked")),
    ),
)


# --- Radial basis functions: squared distances of all pairs ---------------------------------------


def radial_basis(X, Y, log_gamma):
    D = (X**2).sum(axis=1)[:, None] + (Y**2).sum(axis=1) - 2 * X @ Y.T
    return jnp.exp(-jnp.exp(log_gamma) * D)


def radial_basis_backward(args, dz, wrong):
    X, Y, log_gamma = args
    gamma = jnp.exp(log_gamma)
    D = (X**2).sum(axis=1)[:, None] + (Y**2).sum(axis=1) - 2 * X @ Y.T
    K = jnp.exp(-gamma * D)
    dD = -gamma * dz * (1 if wrong == "kernel's slope forgotten" else K)
    if wrong == "paths of the norms forgotten":
        dX = -2 * dD @ Y
        dY = -2 * dD.T @ X
    else:
        two = 1 if wrong == "2 of the square forgotten" else 2
        dX = two * (dD.sum(axis=1)[:, None] * X - dD @ Y)
        dY = two * (dD.sum(axis=0)[:, None] * Y - dD.T @ X)
    if wrong == "dY with dX's sign":
        dY = -dY
    dlog = (dz * -D * K).sum() * (1 if wrong == "slope with respect to gamma" else gamma)
    return dX, dY, dlog


def draw_radial_basis(rng, size):
    n, m, d = choose(size, (5, 4, 3), (48, 32, 16))
    return normal(rng, n, d), normal(rng, m, d), jnp.asarray(rng.normal() * 0.3 - np.log(2 * d))


RADIAL_BASIS = Layer(
    "radial basis functions",
    radial_basis,
    radial_basis_backward,
    draw_radial_basis,
    (
        Mistake("2 of the square forgotten", ("factor", "local factor"), says=r"2|square"),
        Mistake("paths of the norms forgotten", ("branch",)),
        Mistake("kernel's slope forgotten", ("local factor",), says=r"exp"),
        Mistake("dY with dX's sign", ("sign",)),
        Mistake("slope with respect to gamma", ("local factor", "factor")),
    ),
)


# --- Weighted cumulative sum over time ------------------------------------------------------------


def running_sum(x, w):
    return jnp.cumsum(x * w, axis=1)


def running_sum_backward(args, dz, wrong):
    x, w = args
    if wrong == "summed forwards":
        ds = jnp.cumsum(dz, axis=1)
    elif wrong == "not turned back":
        ds = jnp.cumsum(dz[:, ::-1], axis=1)
    elif wrong == "own step left out":
        ds = jnp.cumsum(dz[:, ::-1], axis=1)[:, ::-1] - dz
    elif wrong == "later steps forgotten":
        ds = dz
    elif wrong == "summed over the examples":
        ds = jnp.cumsum(dz[::-1], axis=0)[::-1]
    else:
        ds = jnp.cumsum(dz[:, ::-1], axis=1)[:, ::-1]
    return ds * w, (ds * x).sum(axis=(0, 1))


def draw_running_sum(rng, size):
    n, t, d = choose(size, (3, 5, 4), (16, 32, 24))
    return normal(rng, n, t, d), normal(rng, d)


RUNNING_SUM = Layer(
    "weighted cumulative sum",
    running_sum,
    running_sum_backward,
    draw_running_sum,
    (
        Mistake("summed forwards", ("reversed", "transposed", "forward", "carry")),
        Mistake(
            "not turned back",
            ("reversed", "permuted"),
            source="https://github.com/pytorch/pytorch/pull/1122",
        ),
        Mistake("own step left out", ("shifted", "branch", "diagonal")),
        Mistake("later steps forgotten", ("carry", "branch", "local factor", "diagonal")),
        Mistake("summed over the examples", ("axis",)),
    ),
)


# --- Message passing on a graph: mean over the edges that arrive ----------------------------------


def message_passing(X, W, e, b, source, target):
    messages = e[:, None] * (X @ W)[source]
    total = jax.ops.segment_sum(messages, target, X.shape[0])
    degree = jax.ops.segment_sum(jnp.ones_like(e), target, X.shape[0])
    return total / jnp.maximum(degree, 1)[:, None] + b


def message_passing_backward(args, dz, wrong):
    X, W, e, _, source, target = args
    M = X @ W
    if wrong == "degree of the wrong end":
        degree = jnp.bincount(source, length=X.shape[0])
    else:
        degree = jnp.bincount(target, length=X.shape[0])
    dtotal = dz if wrong == "degree forgotten" else dz / jnp.maximum(degree, 1)[:, None]
    dmessages = dtotal[source if wrong == "gathered at the source" else target]
    de = (dmessages * M[source]).sum(axis=1)
    per_edge = dmessages if wrong == "edge's weight forgotten" else e[:, None] * dmessages
    dM = jnp.zeros_like(M)
    if wrong == "edges of a node overwrite":
        for k in range(len(source)):
            dM = dM.at[source[k]].set(per_edge[k])
    else:
        dM = dM.at[source].add(per_edge)
    return dM @ W.T, X.T @ dM, de, dz.sum(axis=0), None, None


def draw_message_passing(rng, size):
    v, d, h, edges = choose(size, (5, 3, 4, 13), (40, 24, 32, 160))
    source, target = (  # edges leave and reach every node
        jnp.asarray(np.concatenate([rng.permutation(v), rng.integers(v, size=edges - v)]))
        for _ in range(2)
    )
    W = normal(rng, d, h) / np.sqrt(d)
    return normal(rng, v, d), W, normal(rng, edges), normal(rng, h), source, target


MESSAGE_PASSING = Layer(
    "message passing on a graph",
    message_passing,
    message_passing_backward,
    draw_message_passing,
    (
        Mistake("gathered at the source", ("operand", "permuted", "exchanged", "residual")),
        Mistake(
            "edges of a node overwrite",
            ("duplicates", "overwritten"),
            source="https://github.com/apache/mxnet/issues/9172",
        ),
        Mistake(
            "degree of the wrong end",
            ("operand", "residual"),
            source="https://github.com/harvardnlp/botnet-detection/issues/17",
        ),
        Mistake("degree forgotten", ("local factor", "scale", "operand", "forward")),
        Mistake("edge's weight forgotten", ("local factor", "scale", "operand")),
    ),
)


# --- Weights of unit Frobenius norm, with a gain --------------------------------------------------


def normalised_dense(X, V, g):
    return X @ (g * V / jnp.sqrt((V**2).sum()))


def normalised_dense_backward(args, dz, wrong):
    X, V, g = args
    norm = jnp.sqrt((V**2).sum())
    dW = X.T @ dz
    along = (dW * V).sum(axis=0 if wrong == "norms of the columns" else None)
    if wrong == "projection forgotten":
        dV = g / norm * dW
    elif wrong == "as if never normalised":
        dV = dW
    elif wrong == "norm for its square":
        dV = g / norm * (dW - V * along / norm)
    elif wrong == "gain forgotten":
        dV = 1 / norm * (dW - V * along / norm**2)
    else:
        dV = g / norm * (dW - V * along / norm**2)
    return dz @ (g * V / norm).T, dV, (dW * V).sum() / norm


def draw_normalised_dense(rng, size):
    n, d, h = choose(size, (5, 3, 4), (32, 48, 24))
    return normal(rng, n, d), normal(rng, d, h), jnp.asarray(2 + rng.random())


NORMALISED = Layer(
    "weights of unit Frobenius norm",
    normalised_dense,
    normalised_dense_backward,
    draw_normalised_dense,
    (
        Mistake("projection forgotten", ("length path", "branch")),
        Mistake(
            "as if never normalised",
            ("length path", "forward", "local factor", "branch"),
            source="https://github.com/happynear/caffe-windows/issues/265",
        ),
        Mistake("norm for its square", ("length path", "factor", "local factor")),
        Mistake("norms of the columns", ("axis",)),
        Mistake("gain forgotten", ("scale", "local factor", "factor", "operand")),
    ),
)


# --- Causal depthwise convolution over time -------------------------------------------------------


def causal_conv(x, w, b):
    k, t = w.shape[0], x.shape[1]
    past = jnp.pad(x, ((0, 0), (k - 1, 0), (0, 0)))
    return sum(w[i] * past[:, k - 1 - i : k - 1 - i + t] for i in range(k)) + b


def causal_conv_backward(args, dz, wrong):
    x, w, _ = args
    k, (n, t, _) = w.shape[0], x.shape
    past = jnp.pad(x, ((0, 0), (k - 1, 0), (0, 0)))
    future = jnp.pad(dz, ((0, 0), (0, k - 1), (0, 0)))
    dx = jnp.zeros_like(x)
    dw = []
    for i in range(k):
        tap = w[k - 1 - i] if wrong == "taps in the wrong order" else w[i]
        if wrong == "convolved with the past":
            before = jnp.pad(dz, ((0, 0), (k - 1, 0), (0, 0)))
            dx += tap * before[:, k - 1 - i : k - 1 - i + t]
        else:
            dx += tap * future[:, i : i + t]
        seen = past[:, k - 1 - i : k - 1 - i + t]
        if wrong == "all channels for each filter":
            dw.append((dz * seen.sum(axis=2, keepdims=True)).sum(axis=(0, 1)))
        elif wrong == "dw once for each example":
            dw.append(n * (dz * seen).sum(axis=(0, 1)))
        else:
            dw.append((dz * seen).sum(axis=(0, 1)))
    if wrong == "one step late":
        dx = jnp.pad(dx, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return dx, jnp.stack(dw), dz.sum(axis=(0, 1))


def draw_causal_conv(rng, size):
    n, t, d, k = choose(size, (2, 6, 4, 3), (8, 32, 24, 4))
    return normal(rng, n, t, d), normal(rng, k, d), normal(rng, d)


CAUSAL_CONV = Layer(
    "causal depthwise convolution",
    causal_conv,
    causal_conv_backward,
    draw_causal_conv,
    (
        Mistake("convolved with the past", ("reversed", "transposed", "shifted", "forward")),
        Mistake("taps in the wrong order", ("reversed", "permuted", "operand")),
        Mistake("all channels for each filter", ("axis", "broadcast", "operand")),
        Mistake(
            "dw once for each example",
            ("factor",),
            source="https://github.com/fla-org/flash-linear-attention/pull/955",
        ),
        Mistake("one step late", ("shifted",)),
    ),
)


LAYERS = [
    RELU_NETWORK,
    TANH_NETWORK,
    WINDOW_CONV,
    MATRIX_CONV,
    MAX_POOL,
    AVERAGE_POOL,
    DROPOUT,
    BILINEAR,
    QUADRATIC,
    INVERSE,
    SOLVE,
    FLOW,
    GAUSSIAN,
    GRAM,
    GELU,
    SWISH,
    ELU,
    RADIAL_BASIS,
    RUNNING_SUM,
    MESSAGE_PASSING,
    NORMALISED,
    CAUSAL_CONV,
]
