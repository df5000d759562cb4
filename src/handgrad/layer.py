"""A triple as a layer that any JAX program can use."""

import functools
import inspect

import jax


def as_layer(f, f_fwd, f_bwd):
    """Return f with its hand-written rule: grad, jit, vmap and second derivatives use f_bwd.

    Call it as f is called. Keyword-only arguments are hyperparameters, static under jit; all others
    are f's differentiable (or integer) arguments.
    """
    signature = inspect.signature(f)

    @functools.wraps(f)
    def layer(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        rule, rule_fwd, rule_bwd = (functools.partial(g, **bound.kwargs) for g in (f, f_fwd, f_bwd))
        rule = jax.custom_vjp(rule)
        rule.defvjp(rule_fwd, rule_bwd)
        return rule(*bound.args)

    return layer
