"""Convolution and pooling: what is special to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad as hg

# Answers to the exercises of notebooks/13_convolution.ipynb.
RIGHT = {
    "13.1": [
        "return (10, 20, -30, 100, 200, -300, 0), (-80, 300, 410)",
        "x = np.array([2.0, 0, 1, -1, 3, 4, 5])[:, None]\n"
        "w = np.array([1.0, 2, -3])[:, None, None]\n"
        "dx, dw, _ = hg.conv1d_bwd((x, w), np.array([[10.0], [100]]), stride=3)\n"
        "return dx.ravel(), dw.ravel()",
        "A = np.zeros((2, 7))\nA[0, 0:3] = A[1, 3:6] = 1, 2, -3\ndz = np.array([10.0, 100])\n"
        "return A.T @ dz, dz @ np.array([[2.0, 0, 1], [-1, 3, 4]])",
    ],
    "13.2": [
        """
        x, w = residuals
        T, K = x.shape[1], len(w)
        A = sum(w[k] * jnp.roll(jnp.eye(T), k, axis=1) for k in range(K))
        rolled = jnp.stack([jnp.roll(x, -k, axis=1) for k in range(K)])
        return dz @ A, jnp.einsum("knt,nt->k", rolled, dz)
        """,
        """
        x, w = residuals
        T, K = x.shape[1], len(w)
        i, k = jnp.arange(T), jnp.arange(K)
        dx = jnp.einsum("k,nik->ni", w, dz[:, (i[:, None] - k) % T])
        return dx, jnp.einsum("ni,nik->k", dz, x[:, (i[:, None] + k) % T])
        """,
    ],
    "13.3": [
        "for n in range(len(x)):\n    for i, t in enumerate(which[n]):\n"
        "        dx[n, t] += dz[n, i]\nreturn (dx,)",
        "hit = which[:, :, None] == np.arange(x.shape[1])\n"
        'return (np.einsum("nit,ni->nt", hit, dz),)',
        "for i in range(dz.shape[1]):\n    dx[np.arange(len(x)), which[:, i]] += dz[:, i]\n"
        "return (dx,)",
    ],
    "13.4": [
        """
        x, z = residuals
        N, T = x.shape
        P = z.shape[1]
        t = stride * np.arange(P)[:, None] + np.arange(window)
        share = jnp.exp(beta * (x[:, t] - z[..., None])) / window
        return (jnp.zeros_like(x).at[:, t].add(share * dz[..., None]),)
        """,
        """
        x, z = residuals
        t = stride * np.arange(z.shape[1])[:, None] + np.arange(window)
        share = hg.softmax(beta * x[:, t]) * dz[..., None]
        back = np.eye(x.shape[1])[t]
        return (jnp.einsum("nik,ikt->nt", share, back),)
        """,
    ],
}
WRONG = {
    "13.1": [
        "return [10.0, 20, -30, 100, 200, -300], [-80.0, 300, 410]",
        "return [-30.0, 20, 10, -300, 200, 100, 0], [-80.0, 300, 410]",
        "return [10.0, 20, -30, 100, 200, -300, 0], [410.0, 300, -80]",
    ],
    "13.2": [
        """
        x, w = residuals
        dx = sum(w[k] * jnp.roll(dz, -k, axis=1) for k in range(len(w)))
        return dx, jnp.stack([jnp.sum(jnp.roll(x, -k, axis=1) * dz) for k in range(len(w))])
        """,
        """
        x, w = residuals
        dx = sum(w[k] * jnp.roll(dz, k, axis=1) for k in range(len(w)))
        return dx, jnp.stack([jnp.sum(jnp.roll(x, k, axis=1) * dz) for k in range(len(w))])
        """,
        """
        x, w = residuals
        dx = sum(w[k] * jnp.roll(dz, k, axis=0) for k in range(len(w)))
        return dx, jnp.stack([jnp.sum(jnp.roll(x, -k, axis=1) * dz) for k in range(len(w))])
        """,
    ],
    "13.3": [
        "dx[np.arange(len(x))[:, None], which] = dz\nreturn (dx,)",
        "dx[np.arange(len(x))[:, None], which] += dz\nreturn (dx,)",
        "np.add.at(dx, (np.arange(len(x))[:, None], which), 1.0)\nreturn (dx,)",
    ],
    "13.4": [
        """
        x, z = residuals
        dx = jnp.zeros_like(x)
        for k in range(window):
            at = np.s_[:, k : k + stride * (z.shape[1] - 1) + 1 : stride]
            dx = dx.at[at].add(jnp.exp(beta * (x[at] - z)) * dz)
        return (dx,)
        """,
        """
        x, z = residuals
        dx = jnp.zeros_like(x)
        for k in range(window):
            at = np.s_[:, k : k + stride * (z.shape[1] - 1) + 1 : stride]
            dx = dx.at[at].set(jnp.exp(beta * (x[at] - z)) / window * dz)
        return (dx,)
        """,
        """
        x, z = residuals
        dx = jnp.zeros_like(x)
        for k in range(window):
            at = np.s_[:, k : k + stride * (z.shape[1] - 1) + 1 : stride]
            dx = dx.at[at].add(beta * jnp.exp(beta * (x[at] - z)) / window * dz)
        return (dx,)
        """,
    ],
}


def draw(*sizes):
    rng = np.random.default_rng(5)
    return [rng.normal(size=size) for size in sizes]


def assert_as_jax(name, args, hyper):
    """The rule's gradients are JAX's, of the plain function, for a random cotangent."""
    f, f_fwd, f_bwd = (getattr(hg, name + suffix) for suffix in ("", "_fwd", "_bwd"))

    @jax.jit
    def both(*args):
        z, residuals = f_fwd(*args, **hyper)
        dz = jnp.sin(jnp.arange(z.size, dtype=z.dtype) + 1).reshape(z.shape)
        return f_bwd(residuals, dz, **hyper), jax.vjp(lambda *a: f(*a, **hyper), *args)[1](dz)

    for mine, its in zip(*both(*args), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-12, atol=1e-12, err_msg=str(hyper))


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    [(1, 4, 1), (2, 5, 2), (5, 0, 1), (3, 1, 3)],  # padding past the reach; strides past the kernel
)
def test_every_stride_padding_and_dilation(stride, padding, dilation):
    hyper = {"stride": stride, "padding": padding, "dilation": dilation}
    assert_as_jax("conv1d", draw((2, 11, 3), (3, 3, 4), 4), hyper)


@pytest.mark.parametrize("padding", [(0, 2), (3, 1)])
def test_a_transposed_convolution_that_cuts_off(padding):
    hyper = {"stride": (2, 3), "padding": padding}
    assert_as_jax("conv2d_transpose", draw((2, 4, 3, 5), (3, 4, 2, 5), 2), hyper)


def test_what_no_window_reaches_gets_zero_in_the_shape_of_x():
    x, W, b = draw((8, 3), (3, 3, 4), 4)
    z, residuals = hg.conv1d_fwd(x, W, b, stride=4)
    dx, _, _ = hg.conv1d_bwd(residuals, np.ones_like(z), stride=4)
    assert dx.shape == x.shape
    np.testing.assert_array_equal((dx == 0).all(axis=1), np.isin(np.arange(8), [3, 7]))
    (image,) = draw((7, 6, 2))
    for name in ("max_pool", "average_pool"):
        z, kept = getattr(hg, name + "_fwd")(image, window=2, stride=3)
        (dx,) = getattr(hg, name + "_bwd")(kept, np.ones_like(z), window=2, stride=3)
        assert dx.shape == image.shape
        assert not np.asarray(dx)[[2, 5, 6]].any() and not np.asarray(dx)[:, [2, 5]].any()


def test_the_transposed_convolution_is_the_adjoint_with_the_same_kernel():
    W, x = draw((3, 2, 4, 5), (2, 4, 6, 5))
    z = hg.conv2d_transpose(x, W, np.zeros(4), stride=2, padding=1)
    assert z.shape == (2, 7, 10, 4)
    (image,) = draw(z.shape)
    down = hg.conv2d(image, W, np.zeros(5), stride=2, padding=1)
    np.testing.assert_allclose(np.vdot(z, image), np.vdot(x, down), rtol=1e-12)


@pytest.mark.parametrize(("window", "stride"), [((2, 3), (1, 2)), (2, 2), (3, 1)])
def test_the_first_of_several_maxima_gets_the_cotangent_as_in_jax(window, stride):
    x = np.random.default_rng(2).integers(3, size=(2, 6, 7, 3)).astype(float)
    assert_as_jax("max_pool", [x], {"window": window, "stride": stride})


def test_at_a_tie_the_shares_of_a_window_add_up_to_its_cotangent():
    x, (dz,) = np.zeros((5, 7, 2)), draw((2, 3, 2))
    (dx,) = hg.max_pool_bwd((x, np.zeros_like(dz)), dz, window=3, stride=2)
    np.testing.assert_array_equal(dx[::2, ::2][:2, :3], dz)
    assert np.count_nonzero(dx) == dz.size


def test_average_pooling_and_upsampling_keep_no_number():
    (x,) = draw((4, 6, 3))
    assert hg.average_pool_fwd(x, window=2, stride=2)[1].size == 0
    assert hg.upsample_fwd(x, factor=2)[1] == ()
    z = hg.upsample(x, factor=(3, 2))
    (dx,) = hg.upsample_bwd((), z, factor=(3, 2))
    np.testing.assert_allclose(dx, 6 * hg.average_pool(z, window=(3, 2), stride=(3, 2)))


def test_a_kernel_of_one_place_is_the_linear_layer():
    x, W, b = draw((1, 1, 4), (1, 1, 4, 3), 3)
    z = hg.linear(x, W[0, 0].T, b)
    np.testing.assert_allclose(hg.conv2d(x, W, b), z, rtol=1e-12)
    turned = W.swapaxes(-1, -2)
    np.testing.assert_allclose(hg.conv2d_transpose(x, turned, b), z, rtol=1e-12)
    np.testing.assert_array_equal(hg.max_pool(x, window=1, stride=1), x)


def test_no_example_no_gradient():
    x, W, b = np.zeros((0, 5, 4, 3)), *draw((2, 3, 3, 4), 4)
    z, kept = hg.conv2d_fwd(x, W, b)
    dx, dW, db = hg.conv2d_bwd(kept, z)
    assert z.shape == (0, 4, 2, 4) and dx.shape == x.shape
    assert not dW.any() and not db.any() and dW.shape == W.shape


IMAGE, KERNEL, BIAS = np.ones((6, 5, 4)), np.ones((2, 3, 4, 3)), np.ones(3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: hg.conv2d(IMAGE, np.ones((7, 3, 4, 3)), BIAS), "W: .*6, 5.*got .7, 3"),
        (lambda: hg.conv2d(IMAGE, KERNEL, BIAS, dilation=3), "W: .*got .2, 3.*dilated to .4, 7"),
        (lambda: hg.conv1d(np.ones((2, 4)), np.ones((5, 4, 3)), BIAS, padding=1), "W: .*4.*got .5"),
        (lambda: hg.depthwise_conv2d(IMAGE, np.ones((7, 3, 4)), np.ones(4)), "W: .*got .7, 3"),
        (lambda: hg.max_pool(IMAGE, window=6, stride=1), "window: .*6, 5.*got .6, 6"),
        (lambda: hg.average_pool(IMAGE, window=(7, 1), stride=1), "window: .*got .7, 1"),
        (lambda: hg.max_pool(IMAGE, window=0, stride=1), "window: .*at least 1.*got 0"),
        (lambda: hg.conv2d(IMAGE, KERNEL, BIAS, stride=0), "stride: .*at least 1.*got 0"),
        (lambda: hg.max_pool(IMAGE, window=2, stride=(1, 0)), r"stride: .*got \(1, 0\)"),
        (lambda: hg.conv2d(IMAGE, KERNEL, BIAS, stride=(1, 2, 3)), "stride: .*or 2 of them"),
        (lambda: hg.conv2d(IMAGE, KERNEL, BIAS, padding=-1), "padding: .*at least 0.*got -1"),
        (lambda: hg.conv2d(IMAGE, KERNEL, BIAS, dilation=0), "dilation: .*at least 1.*got 0"),
        (
            lambda: hg.conv2d_transpose(np.ones((1, 1, 3)), KERNEL, np.ones(4), padding=1),
            r"padding: .*leaves an output; \(1, 1\) leaves \(0, 1\)",
        ),
        (
            lambda: hg.conv2d_transpose(np.ones((1, 1, 3)), KERNEL, np.ones(4), stride=0),
            "stride: .*got 0",
        ),
        (lambda: hg.upsample(IMAGE, factor=0), "factor: .*at least 1.*got 0"),
        (lambda: hg.conv2d_bwd((IMAGE, KERNEL), np.ones((4, 3, 3))), "dz: .*not fit x: .4, 3"),
        (
            lambda: hg.depthwise_conv2d_bwd((IMAGE, KERNEL[..., 0]), np.ones((6, 3, 4))),
            r"dz: .*\(6, 3\) windows read \(7, 5\) entries, not \(6, 5\)",
        ),
        (
            lambda: hg.conv2d_transpose_bwd(
                (np.ones((3, 2, 3)), KERNEL), np.ones((7, 5, 4)), stride=2
            ),
            "dz: .*not fit x",
        ),
        (
            lambda: hg.average_pool_bwd(IMAGE[..., :0], np.ones((3, 3, 4)), window=2, stride=2),
            "dz: .*not fit x",
        ),
    ],
)
def test_bad_input_names_the_argument(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: hg.conv2d(IMAGE, np.ones((2, 3, 5, 3)), BIAS), ["'W'", "[2,3,5,3]"]),
        (lambda: hg.conv2d(IMAGE, KERNEL, np.ones(4)), ["'b'", "[4]"]),
        (lambda: hg.depthwise_conv2d(IMAGE, np.ones((2, 3, 5)), np.ones(5)), ["'W'", "[2,3,5]"]),
        (lambda: hg.conv2d_transpose(IMAGE, KERNEL, np.ones(4)), ["'W'", "[2,3,4,3]"]),
        (lambda: hg.max_pool(np.ones((5, 4)), window=2, stride=1), ["'x'", "[5,4]"]),
        (lambda: hg.conv2d(IMAGE, KERNEL, BIAS, stride=1.5), ["'stride'", "1.5"]),
    ],
)
def test_channels_that_differ_name_the_argument(call, names):
    with pytest.raises(TypeError) as problem:
        call()
    assert all(name in str(problem.value) for name in names)
