"""Softmax and cross-entropy: what is special to the topic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad as hg

RIGHT = {
    "6.1": [
        "return (-0.25, -0.45, 0.7), (2.0, 1.2, -3.2)",
        "o = np.array([0.5, 0.3, 0.2])\n"
        "return [o * (do - o @ do) for do in (np.array([1, 0, 5]), np.array([0, 0, -20]))]",
        "o = jnp.array([0.5, 0.3, 0.2])\nJ = jnp.diag(o) - jnp.outer(o, o)\n"
        "return J @ jnp.array([1.0, 0, 5]), 4 * (o - jnp.eye(3)[2])",
    ],
    "6.2": [
        "dv, = hg.softmax_bwd(o, do)\nreturn (dv / T,)",
        "mean = jnp.einsum('...k,...k->...', o, do)[..., None]\nreturn (o / T * (do - mean),)",
        "J = jnp.eye(o.shape[-1]) * o[..., None] - o[..., None] * o[..., None, :]\n"
        "return (jnp.einsum('...ij,...i->...j', J, do) / T,)",
    ],
    "6.3": [
        "o = jnp.exp(r)\nH = -jnp.einsum('...k,...k->...', o, r)\n"
        "return (-o * (r + H[..., None]) * dH[..., None],)",
        "dr = -jnp.exp(r) * (1 + r) * dH[..., None]\nreturn hg.log_softmax_bwd(r, dr)",
        "o = jnp.exp(r)\nreturn hg.softmax_bwd(o, -(r + 1) * dH[..., None])",
    ],
    "6.4": [
        "o = hg.softmax(z)\nrows = jnp.arange(len(y))\no = o.at[rows, y].set(0)\n"
        "return o.at[rows, y].set(-o.sum(axis=1))",
        "out = np.array(hg.softmax(z))\nfor row, label in zip(out, np.asarray(y)):\n"
        "    row[label] = 0\n    row[label] = -row.sum()\nreturn out",
        "e_y = jnp.eye(z.shape[1], dtype=z.dtype)[y]\nothers = hg.softmax(z) * (1 - e_y)\n"
        "return others - e_y * others.sum(axis=1, keepdims=True)",
    ],
    "6.5": [
        "dz = o - e_y + 2 * weight * s * o\nreturn dz * dl[..., None], None",
        "direct = hg.logsumexp_bwd(z, 2 * weight * s[..., 0] * dl)[0]\n"
        "return direct + (o - e_y) * dl[..., None], None",
        "s = jnp.log(jnp.exp(z).sum(axis=-1))\nds = (1 + 2 * weight * s) * dl\n"
        "return jnp.einsum('...,...k->...k', ds, o) - e_y * dl[..., None], None",
    ],
    "6.6": [
        "return jnp.where(real, hg.softmax_cross_entropy(z, y), 0).sum()",
        "r = jax.nn.log_softmax(z)\nreturn -(r[jnp.arange(len(y)), y] * real).sum()",
        "z = jnp.where(real[:, None], z, 0)\nr = hg.log_softmax(z)\n"
        "return -sum(r[i, y[i]] for i in range(len(y)) if real[i])",
    ],
    "6.7": [
        "x, u, S = residuals\nmean = jnp.einsum('...k,...k->...', u, du)[..., None]\n"
        "return 2 * x * (du - mean) / S, -(mean / S).sum()",
        "x, u, S = residuals\ndw = du / S\ndS = -(u * du / S).sum(axis=-1, keepdims=True)\n"
        "dw += dS\nreturn dw * x + x * dw, jnp.einsum('...->', dS)",
    ],
}

WRONG = {
    "6.1": [
        "return [0.5, 0.0, 1.0], [2.0, 1.2, -3.2]",
        "return [0.25, 0.0, 0.8], [2.0, 1.2, -3.2]",
        "return [-0.25, -0.45, 0.7], [0.5, 0.3, -0.8]",
        "return [-0.25, -0.45, 0.7], [-2.0, -1.2, 3.2]",
    ],
    "6.2": [
        "return hg.softmax_bwd(o, do)",
        "dv, = hg.softmax_bwd(o, do)\nreturn (T * dv,)",
        "return hg.softmax_bwd(hg.softmax(o / T), do)",
    ],
    "6.3": [
        "return (-jnp.exp(r) * (r + 1) * dH[..., None],)",
        "return (-jnp.exp(r) * r * dH[..., None],)",
        "o = jnp.exp(r)\nH = -(o * r).sum(axis=-1, keepdims=True)\n"
        "return (o * (r + H) * dH[..., None],)",
        "o = jnp.exp(r)\nH = -(o * r).sum(keepdims=True)\nreturn (-o * (r + H) * dH[..., None],)",
    ],
    "6.4": [
        "return hg.softmax(z) - jnp.eye(z.shape[1], dtype=z.dtype)[y]",
        "return (hg.softmax(z.astype('float64')) - jnp.eye(z.shape[1])[y]).astype('float32')",
        "o = hg.softmax(z)\nrows = jnp.arange(len(y))\nreturn o.at[rows, y].set(-o.sum(axis=1))",
    ],
    "6.5": [
        "return (o - e_y + 2 * weight * s) * dl[..., None], None",
        "return (o - e_y + 2 * weight * s / z.shape[-1]) * dl[..., None], None",
        "return ((1 + weight * s) * o - e_y) * dl[..., None], None",
        "return ((1 + 2 * weight * s) * (o - e_y)) * dl[..., None], None",
    ],
    "6.6": [
        "return padded_loss(z, y, real)",
        "return jnp.nan_to_num(padded_loss(z, y, real))",
        "return hg.softmax_cross_entropy(z, y).sum()",
        "o = jnp.take_along_axis(hg.softmax(z), y[:, None], axis=1)[:, 0]\n"
        "return jnp.where(real, -jnp.log(jnp.maximum(o, 1e-30)), 0.0).sum()",
        "return jnp.where(real, hg.softmax_cross_entropy(z, y), 0).mean()",
    ],
    "6.7": [
        "x, u, S = residuals\ndS = -(u * du).sum(axis=-1, keepdims=True) / S\n"
        "return 2 * x * du / S, dS.sum()",
        "x, u, S = residuals\ndS = -(u * du).sum(axis=-1, keepdims=True) / S\n"
        "return 2 * x * (du / S + dS), dS",
        "x, u, S = residuals\ndS = -(u * du).sum() / S\nreturn 2 * x * (du / S + dS), dS.sum()",
        "x, u, S = residuals\ndS = -(u * du).sum(axis=-1, keepdims=True) / S\n"
        "return x * (du / S + dS), dS.sum()",
    ],
}

CROSS_ENTROPIES = pytest.mark.parametrize("name", ["cross_entropy", "softmax_cross_entropy"])


def layer(name):
    return hg.as_layer(*(getattr(hg, name + suffix) for suffix in ("", "_fwd", "_bwd")))


def test_a_second_way_back_is_finite_where_another_class_has_probability_0():
    o, y = jnp.array([[0.5, 0.0, 0.5], [0.2, 0.8, 0.0]]), jnp.array([0, 1])

    def twice(f):
        slope = jax.grad(lambda o: (f(o, y) ** 2).sum())
        return jax.grad(lambda o: (slope(o) ** 2).sum())(o)

    assert np.isfinite(twice(layer("cross_entropy"))).all()
    np.testing.assert_allclose(twice(layer("cross_entropy")), twice(hg.cross_entropy))


@CROSS_ENTROPIES
@pytest.mark.parametrize("y", [np.array([-1]), np.array([3]), np.array([200], "uint8")])
def test_a_label_that_names_no_class_gives_nan_to_the_plain_gradient_too(name, y):
    o = hg.softmax(jnp.array([[0.3, -1.0, 0.5]]))
    assert np.isnan(getattr(hg, name)(o, y)).all()
    assert np.isnan(jax.grad(lambda o: getattr(hg, name)(o, y).sum())(o)).any()
    assert np.isnan(jax.grad(lambda o: layer(name)(o, y).sum())(o)).all()


def test_a_class_that_is_masked_out_costs_nothing_unless_the_target_has_a_share_in_it():
    z = np.array([0.5, -np.inf, 1.0])
    assert np.isfinite(hg.softmax_cross_entropy(z, 0))
    assert hg.softmax_cross_entropy(z, 1) == np.inf
    for smoothing in (0.1, 1.0):
        assert hg.softmax_cross_entropy(z, 0, label_smoothing=smoothing) == np.inf


def test_large_logits_lose_no_digits_of_log_softmax():
    z = (np.array([0.0, -1.1, -3.7]) + 1e4).astype("float32")
    exact = hg.log_softmax(z.astype("float64"))
    np.testing.assert_allclose(hg.log_softmax(z), exact, rtol=1e-6)
    for y in range(3):
        np.testing.assert_allclose(hg.softmax_cross_entropy(z, y), -exact[y], rtol=1e-6)
