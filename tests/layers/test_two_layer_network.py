"""The two-layer network: what is special to it, and what its list of errata says."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from handgrad import relu

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "07_two_layer_network.ipynb"

RIGHT = {
    "7.1": [
        """
        dz2 = np.array([0.2, 0.3, 0.5]) - np.eye(3)[1]
        a1 = np.array([2, 0, 1, 0])
        W2 = np.array([[1, 2, -1, 0], [0, 1, 3, -2], [2, -1, 1, 4]])
        return dz2, np.outer(dz2, a1), (W2.T @ dz2) * (a1 > 0)
        """,
        """
        dz2 = (0.2, -0.7, 0.5)
        return dz2, [[v * a for a in (2, 0, 1, 0)] for v in dz2], (0.2 + 1, 0, -0.2 - 2.1 + 0.5, 0)
        """,
        "return np.array([0.2, -0.7, 0.5]), np.array([[0.4, 0, 0.2, 0], [-1.4, 0, -0.7, 0], "
        "[1, 0, 0.5, 0]]), jnp.array([1.2, 0, -1.8, 0])",
    ],
    "7.2": [
        """
        x, W1, b1, W2, b2 = map(np.asarray, (x, W1, b1, W2, b2))
        a1 = np.maximum(W1 @ x + b1, 0)
        o = np.exp(W2 @ a1 + b2)
        dz2 = o / o.sum()
        dz2[y] -= 1
        dx = ((dz2 @ W2) * (a1 > 0)) @ W1
        return x + eps * dx / np.sqrt(dx @ dx)
        """,
        """
        _, (a, b, c, d) = hg.softmax_cross_entropy(x, 0), (W1, b1, W2, b2)
        z1, kept1 = hg.linear_fwd(x, a, b)
        a1, kept2 = hg.relu_fwd(z1)
        z2, kept3 = hg.linear_fwd(a1, c, d)
        _, kept4 = hg.softmax_cross_entropy_fwd(z2, y)
        dz2, _ = hg.softmax_cross_entropy_bwd(kept4, jnp.ones(()))
        dx, _, _ = hg.linear_bwd(kept1, *hg.relu_bwd(kept2, hg.linear_bwd(kept3, dz2)[0]))
        length = float((dx * dx).sum()) ** 0.5
        return [float(v) + eps / length * float(u) for v, u in zip(x, dx)]
        """,
        """
        z1, a1, z2, o, l = network(x, W1, b1, W2, b2, y)
        slopes = jnp.where(a1 > 0, 1.0, 0.0)
        dx = jnp.einsum("k,kh,h,hd->d", o - jnp.eye(o.size)[y], W2, slopes, W1)
        return jnp.add(x, dx * (eps / jnp.linalg.norm(dx)))
        """,
    ],
    "7.3": [
        """
        dz_out = np.asarray(hg.softmax(z_out)) - np.eye(z_out.shape[1])[y]
        dz_out = dz_out / x.shape[0]
        dW_out, db_out, da_mid = dz_out.T @ a_mid, dz_out.sum(0), dz_out @ W_out
        dz_mid = da_mid * (1 - np.asarray(a_mid) ** 2)
        dW_mid, db_mid, da_in = dz_mid.T @ a_in, dz_mid.sum(0), dz_mid @ W_mid
        dz_in = da_in * (1 - np.asarray(a_in) ** 2)
        dW_in, db_in = np.einsum("nh,nd->hd", dz_in, x), dz_in.sum(0)
        return {name: v for name, v in locals().items() if name[0] == "d" and name[2] == "_"}
        """,
        """
        l, kept = hg.softmax_cross_entropy_fwd(z_out, y)
        steps = {"dz_out": hg.softmax_cross_entropy_bwd(kept, jnp.ones(len(x)) / len(x))[0]}
        layers = ("out", a_mid, W_out), ("mid", a_in, W_mid), ("in", x, W_in)
        back = steps["dz_out"]
        for (layer, before, W), behind in zip(layers, ("mid", "in", "x")):
            back, steps["dW_" + layer], steps["db_" + layer] = hg.linear_bwd((before, W), back)
            if behind != "x":
                steps["da_" + behind] = back
                back = steps["dz_" + behind] = back - before * before * back
        return steps
        """,
    ],
    "7.4": [
        """
        W, da = np.asarray(W), np.asarray(da)
        dz = [None] * times
        for t in range(times - 1, -1, -1):
            dz[t] = da * (1 - np.asarray(a[t + 1]) ** 2)
            da = dz[t] @ W
        return da, sum(np.outer(u, v) for u, v in zip(dz, a)), sum(dz)
        """,
        """
        collected = []
        for t in range(times)[::-1]:
            (dz,) = hg.tanh_bwd(a[t + 1], da)
            da, dW, db = hg.linear_bwd((a[t], W), dz)
            collected.append((dW, db))
        return da, sum(w for w, _ in collected), sum(b for _, b in collected)
        """,
        """
        def back(da, t):
            if t < 0:
                return da, 0 * W, 0 * da
            dz = da - da * a[t + 1] * a[t + 1]
            da0, dW, db = back(jnp.einsum("ij,i->j", W, dz), t - 1)
            return da0, dW + dz[:, None] * a[t], db + dz

        return back(da, times - 1)
        """,
    ],
}

DEEP = """
    dz_out = (hg.softmax(z_out) - jnp.eye(3)[y]) / {N}
    da_mid, dW_out, db_out = hg.linear_bwd((a_mid, W_out), dz_out)
    (dz_mid,) = hg.tanh_bwd({mid}, da_mid)
    da_in, dW_mid, db_mid = hg.linear_bwd((a_in, W_mid), dz_mid)
    (dz_in,) = hg.tanh_bwd({first}, da_in)
    _, dW_in, db_in = hg.linear_bwd((x, W_in), dz_in)
    return dict(
        dz_out=dz_out, dW_out=dW_out, db_out=db_out, da_mid=da_mid, dz_mid=dz_mid, dW_mid=dW_mid,
        db_mid=db_mid, da_in=da_in, dz_in=dz_in, dW_in=dW_in, db_in=db_in,
    )
"""
MENDED = {"N": "len(x)", "first": "a_in", "mid": "a_mid"}

WORST = """
    z1, a1, z2, o, l = network(x, W1, b1, W2, b2, y)
    dz1 = jnp.where(z1 > 0, W2.T @ (o - jnp.eye(len(b2))[y]), 0)
    dx = W1.T @ {dz1}
    return {image}
"""

LOOP = """
    dW, db = jnp.zeros_like(W), jnp.zeros_like(da)
    for t in reversed(range(times)):
        dz = (1 - a[{slope}] ** 2) * da
        dW, db = {dW}, {db}
        da = {da}
    return da, dW, db
"""
REPEATED = {"slope": "t + 1", "dW": "dW + jnp.outer(dz, a[t])", "db": "db + dz", "da": "W.T @ dz"}

WRONG = {
    "7.1": [
        # the sign; labels counted from 1; relu forgotten; transposed
        "return [-0.2, 0.7, -0.5], [[-0.4, 0, -0.2, 0], [1.4, 0, 0.7, 0], [-1, 0, -0.5, 0]], "
        "[-1.2, 0, 1.8, 0]",
        "return [-0.8, 0.3, 0.5], [[-1.6, 0, -0.8, 0], [0.6, 0, 0.3, 0], [1, 0, 0.5, 0]], "
        "[0.2, 0, 2.2, 0]",
        "return [0.2, -0.7, 0.5], [[0.4, 0, 0.2, 0], [-1.4, 0, -0.7, 0], [1, 0, 0.5, 0]], "
        "[1.2, -0.8, -1.8, 3.4]",
        "return [0.2, -0.7, 0.5], [[0.4, -1.4, 1], [0, 0, 0], [0.2, -0.7, 0.5], [0, 0, 0]], "
        "[1.2, 0, -1.8, 0]",
    ],
    "7.2": [
        # downhill; relu forgotten; any length; the sign of every entry; one number too few
        WORST.format(dz1="dz1", image="x - eps * dx / jnp.linalg.norm(dx)"),
        WORST.format(
            dz1="(W2.T @ (o - jnp.eye(len(b2))[y]))", image="x + eps * dx / jnp.linalg.norm(dx)"
        ),
        WORST.format(dz1="dz1", image="x + eps * dx"),
        WORST.format(dz1="dz1", image="x + eps * jnp.sign(dx) / len(dx) ** 0.5"),
        WORST.format(dz1="dz1", image="eps * dx / jnp.linalg.norm(dx)"),
    ],
    "7.3": [
        # as it was found, twice; half mended; at the input; without the mean; nothing
        DEEP.format(**MENDED | {"first": "a_mid", "mid": "a_in"}),
        "return deep_steps_as_found(x, W_in, b_in, W_mid, b_mid, W_out, b_out, y)",
        DEEP.format(**MENDED | {"first": "a_mid"}),
        DEEP.format(**MENDED | {"mid": "z_mid"}),
        DEEP.format(**MENDED | {"N": "1"}),
        "return {}",
    ],
    "7.4": [
        # the last use only; transposed, twice; the wrong slope; fan-out of b forgotten
        LOOP.format(**REPEATED | {"dW": "jnp.outer(dz, a[t])"}),
        LOOP.format(**REPEATED | {"dW": "dW + jnp.outer(a[t], dz)"}),
        LOOP.format(**REPEATED | {"da": "W @ dz"}),
        LOOP.format(**REPEATED | {"slope": "t"}),
        LOOP.format(**REPEATED | {"db": "dz"}),
    ],
}


def post(*wanted):
    """The names that those cells of the notebook define: the blog post's example."""
    names = {"jax": jax, "jnp": jnp, "random": random}
    for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.startswith(tuple(f"def {n}(" for n in wanted)):
            exec(source, names)
    return names


@pytest.mark.parametrize("x64", [True, False])
def test_the_post_s_example_holds_in_either_precision(x64):
    with jax.enable_x64(x64):
        post("compute_loss", "blog_post")["blog_post"]()


def test_the_post_s_input_does_not_fit_its_weights():
    W1 = jnp.ones((5, 3))
    with pytest.raises(TypeError):
        W1 @ jnp.ones(5)


def test_the_post_s_sizes_let_one_matrix_stand_for_another():
    W1, W2, dz1, dz2, a1, x = map(jnp.ones, [(5, 3), (3, 5), 5, 3, 5, 3])
    assert W1.shape == W2.T.shape and (W1 @ dz2).shape == (W2.T @ dz2).shape
    assert jnp.outer(a1, dz2).shape != W2.shape and jnp.outer(x, dz1).shape != W1.shape


def test_the_post_s_mask_of_integers_does_no_harm():
    z1, da1 = np.random.default_rng(0).normal(size=(2, 5)).astype("float32")
    masked = (jnp.asarray(z1) > 0).astype(jnp.int16) * da1
    assert masked.dtype == "float32" and jnp.array_equal(masked, jnp.where(z1 > 0, da1, 0))


def test_gpt2_s_jacobian_is_rounded():
    assert f"{768 * (4 * 768) ** 2:.2e}" == "7.25e+09"


@pytest.mark.parametrize(("da", "is_one"), [(-1.0, False), (0.0, True), (1.0, True)])
def test_0_is_a_subgradient_only_where_the_loss_bends_upwards(da, is_one):
    # the loss da relu(z) near z = 0: 0 is a subgradient if it nowhere falls below its value there
    z = jnp.linspace(-1, 1, 9)
    assert bool((da * relu(z) >= 0).all()) == is_one
    assert jax.grad(lambda z: da * relu(z))(0.0) == 0
