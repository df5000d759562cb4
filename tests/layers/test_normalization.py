"""Normalisation: what is special to the topic."""

import jax.numpy as jnp
import numpy as np
import pytest

import handgrad as hg

RIGHT = {
    "11.1": [
        "return [0] * 4, (0.26, -0.32, -0.18, 0.24), (0.26, -0.32, -0.18, 0.24)",
        "xhat = np.array([-7, -1, 1, 7]) / 5\n"
        "P = np.eye(4) - 1 / 4 - np.outer(xhat, xhat) / 4\n"
        "second = P @ np.array([5, 0, 0, 0]) / 5\nreturn np.zeros(4), second, second",
    ],
    "11.2": [
        "n = dz.shape[0]\nP = jnp.einsum('nd,nd->d', xhat, dz) / (n - 1)\n"
        "return (r * (dz - dz.sum(axis=0) / n - P * xhat),)",
        "c = xhat / r\nn = len(dz)\ndc = r * dz - c * r**3 * (c * dz).sum(axis=0) / (n - 1)\n"
        "return (dc - dc.mean(axis=0),)",
    ],
    "11.3": [
        "s = jnp.where(z > 0, 1, -1)\nmean = jnp.einsum('...i,...i->...', z, dz)\n"
        "return (r * (dz - mean[..., None] * s),)",
        "x = z / r\ndr = (x * dz).sum(axis=-1, keepdims=True)\n"
        "return (r * dz - r**2 * dr * jnp.sign(x),)",
    ],
    "11.4": [
        "along = (xhat * dz).sum(axis=-1, keepdims=True)\n"
        "return g * r * (dz - along * xhat), along.sum()",
        "dx, = hg.l2_normalize_bwd((xhat, r), g * dz)\nreturn dx, (xhat * dz).sum()",
    ],
    "11.5": [
        "rho = jnp.einsum('...i,...i->...', xhat, phat) / xhat.shape[-1]\n"
        "dx = phat - xhat * rho[..., None]\nreturn (dx * r * drho[..., None] / xhat.shape[-1],)",
        "d = xhat.shape[-1]\nones = jnp.ones(d)\n"
        "dx, *_ = hg.layer_norm_bwd((xhat, r, ones), phat * drho[..., None] / d)\nreturn (dx,)",
    ],
}

WRONG = {
    "11.1": [
        "return [0] * 4, [1.0, 0, 0, 0], [1.0, 0, 0, 0]",
        "return [0.6] * 4, [0.26, -0.32, -0.18, 0.24], [0.26, -0.32, -0.18, 0.24]",
        "return [0] * 4, [1.3, -1.6, -0.9, 1.2], [1.3, -1.6, -0.9, 1.2]",
        "return [0] * 4, [0.75, -0.25, -0.25, -0.25], [0.75, -0.25, -0.25, -0.25]",
    ],
    "11.2": [
        "return (r * (dz - dz.mean(axis=0) - xhat * (xhat * dz).mean(axis=0)),)",
        "n = len(dz)\n"
        "return (r * (dz - dz.sum(axis=0) / (n - 1) - xhat * (xhat * dz).sum(axis=0) / (n - 1)),)",
        "return (r * (dz - xhat * (xhat * dz).sum(axis=0) / (len(dz) - 1)),)",
        "return (r * dz,)",
    ],
    "11.3": [
        "return (r * (dz - z * (z * dz).sum(axis=-1, keepdims=True)),)",
        "return (r * (dz - z * (jnp.sign(z) * dz).sum(axis=-1, keepdims=True)),)",
        "return (r * (dz - jnp.sign(z) * (z * dz).mean(axis=-1, keepdims=True)),)",
    ],
    "11.4": [
        "return g * r * (dz - xhat * (xhat * dz).mean(axis=-1, keepdims=True)), (xhat * dz).sum()",
        "along = (xhat * dz).sum(axis=-1, keepdims=True)\n"
        "return r * (dz - along * xhat), along.sum()",
        "along = (xhat * dz).sum()\nreturn g * r * (dz - along * xhat), along",
        "along = (xhat * dz).sum(axis=-1, keepdims=True)\n"
        "return g * r * (dz - along * xhat), g * along.sum()",
    ],
    "11.5": [
        "return (r / xhat.shape[-1] * drho[..., None] * phat,)",
        "rho = (xhat * phat).mean(axis=-1, keepdims=True)\n"
        "return (r * drho[..., None] * (phat - rho * xhat),)",
        "rho = (xhat * phat).sum(axis=-1, keepdims=True)\n"
        "return (r / xhat.shape[-1] * drho[..., None] * (phat - rho * xhat),)",
        "rho = (xhat * phat).mean(axis=-1, keepdims=True)\n"
        "return (r / xhat.shape[-1] * drho[..., None] * (phat - rho * phat),)",
    ],
}

CENTRED = ("layer_norm", "batch_norm", "group_norm")


def norm(name, x, **hyper):
    """A norm of x with random parameters: z, the residuals, and a function of dz to go back."""
    f_fwd, f_bwd = (getattr(hg, name + suffix) for suffix in ("_fwd", "_bwd"))
    rng, d = np.random.default_rng(3), x.shape[-1]
    hyper |= {"groups": 1} if name == "group_norm" else {}
    count = {"rms_norm": 1, "l2_normalize": 0}.get(name, 2)
    z, residuals = f_fwd(x, *(rng.normal(size=d).astype(x.dtype) for _ in range(count)), **hyper)
    return z, residuals, lambda dz: f_bwd(residuals, dz, **hyper)


def draw(*shape):
    return np.random.default_rng(shape).normal(size=shape)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_the_share_of_the_normalised_direction_that_gets_through_is_eps_over_variance_and_eps(
    name, eps
):
    _, (xhat, r, gamma), back = norm(name, draw(4, 5), eps=eps)
    dx, dxhat = back(draw(4, 6)[:, :5])[0], gamma * draw(4, 6)[:, :5]
    if name == "layer_norm":
        np.testing.assert_allclose(dx.sum(axis=1), 0, atol=1e-13)
    along = eps * r[:, 0] ** 3 * (xhat * dxhat).sum(axis=1)
    np.testing.assert_allclose((xhat * dx).sum(axis=1), along, rtol=1e-11, atol=1e-13)


def test_a_sum_has_no_gradient_behind_a_layer_norm():
    z, residuals = hg.layer_norm_fwd(draw(4, 5), np.ones(5), np.zeros(5))
    dx, _, _ = hg.layer_norm_bwd(residuals, np.ones_like(z))
    np.testing.assert_allclose(dx, 0, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CENTRED)
def test_equal_numbers_have_a_finite_gradient(name, dtype):
    x = jnp.full((4, 3), 0.75, dtype)
    z, (xhat, *_), back = norm(name, x)
    assert not xhat.any()
    cotangents = back(jnp.asarray(draw(4, 3), dtype))
    assert all(d.dtype == dtype and jnp.isfinite(d).all() for d in (z, *cotangents))


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "l2_normalize"])
def test_without_eps_a_row_with_nothing_to_divide_by_is_nan_and_no_other_row_is(name):
    x = draw(3, 4)
    x[1] = 0.5 if name == "layer_norm" else 0
    z, _, back = norm(name, x, eps=0)
    for array in (z, back(draw(4, 3).T)[0]):
        assert np.array_equal(np.isnan(array), [[False] * 4, [True] * 4, [False] * 4])


def test_weights_without_a_direction_are_nan_in_their_row_alone():
    v = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
    W, residuals = hg.weight_norm_fwd(v, np.array([1.0, 2.0]))
    dv, dg = hg.weight_norm_bwd(residuals, np.ones((2, 3)))
    for array in (W, dv, dg):
        assert np.isnan(array[0]).all() and np.isfinite(array[1]).all()
    np.testing.assert_allclose(W[1], [1.2, 0, 1.6])


def test_eps_gives_the_vector_0_a_gradient():
    z, residuals = hg.l2_normalize_fwd(np.zeros(3), eps=0.25)
    (dx,) = hg.l2_normalize_bwd(residuals, np.array([1.0, -2.0, 3.0]), eps=0.25)
    assert not z.any()
    np.testing.assert_allclose(dx, [2, -4, 6])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("batch_norm", (1, 4)),
        ("batch_norm", (4,)),
        ("batch_norm", (0, 4)),
        ("layer_norm", (3, 1)),
        ("layer_norm", (3, 0)),
        ("group_norm", (3, 0, 4)),
        ("group_norm", (3, 1)),
    ],
)
def test_a_mean_needs_two_numbers(name, shape):
    with pytest.raises(ValueError, match="x: expected at least 2 numbers to share a mean"):
        norm(name, np.ones(shape))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layer_norm", (0, 4)),
        ("group_norm", (0, 5, 4)),
        ("rms_norm", (3, 0)),
        ("l2_normalize", (3, 0)),
    ],
)
def test_nothing_in_nothing_out(name, shape):
    z, _, back = norm(name, np.ones(shape))
    dx, *parameters = back(np.ones(shape))
    assert z.shape == dx.shape == shape
    assert not any(np.any(d) for d in parameters)


@pytest.mark.parametrize("name", [*CENTRED, "rms_norm", "l2_normalize"])
@pytest.mark.parametrize("eps", [-1e-5, float("nan")])
def test_a_negative_eps_is_refused(name, eps):
    with pytest.raises(ValueError, match="eps: expected a number that is not negative"):
        norm(name, np.ones((3, 4)), eps=eps)


def test_a_variance_below_0_gives_nan():
    x, d = np.ones((2, 3)), np.ones(3)
    z = hg.batch_norm_inference(x, d, np.array([1.0, -1.0, 0.0]), d, d)
    assert np.array_equal(np.isnan(z), [[False, True, False]] * 2)
    with pytest.raises(ValueError, match="eps: expected a number"):
        hg.batch_norm_inference(x, d, d, d, d, eps=-1)


@pytest.mark.parametrize("groups", [4, 0, -2, 12])
def test_groups_that_do_not_divide_the_channels_are_refused(groups):
    message = f"groups: expected a divisor of the 6 channels; got {groups}"
    with pytest.raises(ValueError, match=message):
        hg.group_norm(np.ones((3, 5, 6)), np.ones(6), np.ones(6), groups=groups)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: hg.layer_norm(draw(3, 4), np.ones(3), np.ones(4)), "'gamma'"),
        (lambda: hg.batch_norm(draw(3, 4), np.ones(4), np.ones(3)), "'beta'"),
        (lambda: hg.rms_norm(draw(3, 4), np.ones((1, 4))), "'gamma'"),
        (lambda: hg.group_norm(draw(6), np.ones(6), np.ones(6), groups=2), "'x'"),
        (lambda: hg.group_norm(draw(3, 6), np.ones(6), np.ones(6), groups=2.0), "groups"),
        (lambda: hg.weight_norm(draw(3, 4), np.ones(4)), "'g'"),
        (lambda: hg.dynamic_tanh(draw(3, 4), np.ones(4), np.ones(4), np.ones(4)), "'alpha'"),
        (lambda: hg.batch_norm_inference(draw(3, 4), *np.ones((3, 4)), np.ones(3)), "'beta'"),
        (lambda: hg.layer_norm(np.ones((3, 4), int), np.ones(4), np.ones(4)), "'x'"),
    ],
)
def test_channels_that_differ_are_refused_by_name(call, argument):
    with pytest.raises(TypeError, match=argument):
        call()


def test_training_with_statistics_as_given_is_inference_and_their_paths_make_the_projection():
    x, dz, (gamma, beta) = draw(5, 6, 3), draw(6, 5, 3).swapaxes(0, 1), draw(2, 3)
    rows = x.reshape(-1, 3)
    z, trained = hg.batch_norm_fwd(x, gamma, beta)
    same, given = hg.batch_norm_inference_fwd(x, rows.mean(0), rows.var(0), gamma, beta)
    np.testing.assert_allclose(z, same, rtol=1e-12)
    dx, dmean, dvariance, *_ = hg.batch_norm_inference_bwd(given, dz)
    whole = dx + dmean / 30 + dvariance * 2 / 30 * (x - rows.mean(0))
    np.testing.assert_allclose(hg.batch_norm_bwd(trained, dz)[0], whole, rtol=1e-11, atol=1e-14)


def test_group_norm_has_layer_norm_and_instance_norm_at_its_ends():
    x, (gamma, beta) = draw(3, 5, 4), draw(2, 4)
    one = hg.group_norm(x[:, 0], gamma, beta, groups=1)
    np.testing.assert_allclose(one, hg.layer_norm(x[:, 0], gamma, beta), rtol=1e-12)
    instance = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    each = hg.group_norm(x, gamma, beta, groups=4)
    np.testing.assert_allclose(each, gamma * instance + beta, rtol=1e-12)


def test_nothing_but_the_normalised_input_and_the_inverse_deviation_is_new_among_the_residuals():
    x = draw(3, 4)
    for name, of_means in (("layer_norm", (3, 1)), ("batch_norm", (1, 4)), ("rms_norm", (3, 1))):
        _, (xhat, r, gamma), _ = norm(name, x)
        assert (xhat.shape, r.shape, gamma.shape) == ((3, 4), of_means, (4,))
    z, (kept, r), _ = norm("l2_normalize", x)
    assert kept is z and r.shape == (3, 1)
