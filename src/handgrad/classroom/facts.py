"""What the code itself tells of a rule: its equations, what it keeps, and what it costs.

Sizes are read off a trace whose axes are all different primes: a count of 2 * 11 * 13 is 2 N k.
"""

import ast
import inspect
import itertools
import math
import re
from collections import Counter
from fractions import Fraction
from functools import cache, partial, reduce
from operator import and_
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43)
UNITS = {  # what is counted, and as what; additions and comparisons are cheap beside these
    **dict.fromkeys(("mul", "div", "integer_pow", "square", "sqrt", "rsqrt"), ""),
    **dict.fromkeys(("dot_general", "conv_general_dilated"), ""),
    **dict.fromkeys(("lu", "cholesky", "triangular_solve"), ""),
    **dict.fromkeys(("exp", "exp2", "expm1", "tanh", "logistic", "erf", "erfc", "pow"), "exp"),
    **dict.fromkeys(("log", "log1p"), "log"),
    "select_n": "selections",
}


def statement(row):
    """The lines of the row's module that make its f_bwd: a function, or one line for a pair."""
    module = inspect.getmodule(inspect.unwrap(row.f))
    source, nodes = _parsed(module)
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            made = [node.name]
        else:
            made = [target.id for target in node.targets[0].elts] if is_pair(node) else []
        if f"{row.name}_bwd" in made:
            return "".join(source.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno])
    raise ValueError(f"{row.name}: no {row.name}_bwd in {module.__name__}")


@cache
def _parsed(module):
    source = inspect.getsource(module)
    return source, ast.parse(source).body


def is_pair(node):
    """Whether a statement reads f_fwd, f_bwd = from_output(...), which makes both at once."""
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)


def equations(row):
    """The number of the equation of each argument's gradient, in the order of the arguments."""
    names, lines = list(inspect.signature(row.f).parameters), statement(row)
    if is_pair(ast.parse(lines).body[0]):
        return dict(zip(names, re.findall(r"# \((\d+\.\d+)\)", lines), strict=False))
    found = {n: re.search(rf"(?m)^ +d{n} = .*# \((\d+\.\d+)\)$", lines) for n in names}
    return {name: match[1] for name, match in found.items() if match}


def cost(row):
    """What the way forward takes and the way back, as words with LaTeX between dollars."""
    args, hyper, letters = _generic(row)
    forward = jax.make_jaxpr(partial(row.f, **hyper))(*args)
    z, residuals = jax.eval_shape(partial(row.f_fwd, **hyper), *args)
    back = jax.make_jaxpr(partial(row.f_bwd, **hyper))(residuals, z)
    counts = (counted(way.jaxpr, letters) for way in (forward, back))
    return tuple(_words(_proportional(total, letters)) for total in counts)


def kept(row):
    """What the rule keeps for the way back: a symbol in LaTeX, and how many entries, for each."""
    args, hyper, letters = _generic(row)
    # the output's letter or an argument's, where a residual is one of them; else the rule's name
    program, (_, residuals) = jax.make_jaxpr(partial(row.f_fwd, **hyper), return_shape=True)(*args)
    first, *variables = program.jaxpr.outvars
    known = {first: re.match(r"\w", row.formula)[0]}
    names = inspect.signature(row.f).parameters
    for name, variable in zip(names, program.jaxpr.invars, strict=False):
        left = row.gradients.get(name, f"d{name} = ")
        known.setdefault(variable, re.match(r"d(.*?)(_[ijnt])? = ", left)[1])  # dx_t: all of x
    leaves = zip(jax.tree.leaves(residuals), variables, strict=True)
    leaves = [(leaf.size, variable) for leaf, variable in leaves if leaf.size]  # else it is a shape
    unpacked = _unpacked(row, residuals)
    found = {}
    for i, (size, variable) in enumerate(leaves):
        name = unpacked[i] if i < len(unpacked) else f"r{i}"
        hat = re.fullmatch("([a-z])hat", name)
        name = rf"\hat {hat[1]}" if hat else name if len(name) == 1 else rf"\mathrm{{{name}}}"
        found[known.get(variable, name)] = tex(*factored(size, letters))
    return found


def axes(row):
    """The names of the axes of each argument: [["N", "d"], ["n", "n"]]."""
    return _axes(row)[:-1]


def _axes(row):
    # of the arguments and of what is made of them
    args, _ = row.examples(np.random.default_rng(0))["typical"]
    signature = inspect.signature(row.f)
    parameters = [*signature.parameters.values()][: len(args)]
    annotations = [*(p.annotation for p in parameters), signature.return_annotation]
    return [(get_args(a) or [a])[0].dim_str.split() for a in annotations]


def _generic(row):
    # arguments to trace with, the hyperparameters, and the letter that each size stands for
    args, hyper = row.examples(np.random.default_rng(0))["typical"]
    *axes, made = _axes(row)
    parameters = inspect.signature(row.f).parameters.values()
    needed = {p.name for p in parameters if p.default is p.empty}
    names = dict.fromkeys(_letter(axis, axes) for of in axes for axis in of)
    primes = dict(zip(names, reversed(PRIMES), strict=False))  # data first: a kernel fits in it
    times = {axis: _times(axis) for of in axes for axis in of}
    plain = {name: value for name, value in hyper.items() if name in needed}
    # a prime is no multiple of two groups; one group costs the same
    single = {name: 1 if type(value) is int else value for name, value in plain.items()}
    # nor can it be halved, nor shared among others
    primes_or_multiples = [primes] + [
        {name: primes[name] * factor} | {other: primes[other] for other in primes if other != name}
        for name in primes
        for factor in (2, *(primes[other] for other in primes if other != name))
    ]
    for sizes, simpler in itertools.product(primes_or_multiples, (plain, single)):
        specs = [
            jax.ShapeDtypeStruct(
                [times[axis] * sizes[_letter(axis, axes)] for axis in of], jnp.asarray(arg).dtype
            )
            for of, arg in zip(axes, args, strict=True)
        ]
        try:
            z = jax.eval_shape(partial(row.f, **simpler), *specs)
        except (TypeError, ValueError):
            continue
        last = min(len(made), z.ndim)  # a batch of no axis or many stands before
        names = [_letter(axis, axes) for axis in made[len(made) - last :]]
        made_sizes = zip(names, z.shape[z.ndim - last :], strict=True)
        new = {size: name for name, size in made_sizes if name not in primes}
        # new ones and multiples first, since such a size may be a product of others
        return specs, simpler, new | {size: name for name, size in sizes.items()}
    # a shape or a list of axes holds for the example's own shapes alone
    sizes = {np.size(arg) for arg in args if np.asarray(arg).dtype.kind == "f"}
    return args, hyper, dict(zip(sorted(sizes, reverse=True), "nm", strict=False))


def _letter(axis, axes):
    # a batch counts its examples, N; where nothing but leading axes is there, its entries, n
    if axis == "*space":
        return "S"
    if axis.startswith("*"):
        return "n" if all(len(of) == 1 for of in axes if of) and axis == "*shape" else "N"
    axis = axis.removeprefix("two_").rpartition("*")[2]
    return axis if len(axis) == 1 else f"{axis[0]}_{axis[1:]}"


def _times(axis):
    # two_d is twice d, and 4*h four times h
    number, star, _ = axis.partition("*")
    return 2 if axis.startswith("two_") else int(number) if star and number else 1


def counted(jaxpr, letters, times=1):
    """How many operations of each unit a traced function does: {("exp", ("N", "k")): 2}."""
    total = Counter()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        rounds = equation.params["length"] if name == "scan" else 1
        for inner in jaxprs_in_params(equation.params):
            total += counted(inner, letters, times * rounds)
        if name in UNITS:
            size = times * math.prod(equation.outvars[0].aval.shape)
            if name == "dot_general":
                ((contracted, _), _) = equation.params["dimension_numbers"]
                size *= math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            if name in ("lu", "cholesky", "triangular_solve"):  # some share of a row for each entry
                size *= equation.invars[0].aval.shape[-1]
            if name == "conv_general_dilated":  # each output reads one kernel
                kernel = equation.invars[1].aval.shape
                size *= (
                    math.prod(kernel) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]
                )
            number, monomial = factored(size, letters)
            total[UNITS[name], monomial] += number
    return total


def factored(size, letters):
    """A size as a number times letters: 286 is (2, ("N", "k")). Half of a letter counts too."""
    found = []
    for length, letter in letters.items():
        while size and length > 1 and size % length == 0:
            size, found = size // length, [*found, letter]
    for length, letter in letters.items():
        if size > 1 and length % 2 == 0 and size % (length // 2) == 0:
            size, found = Fraction(size, length), [*found, letter]
    return size, tuple(sorted(found, key=lambda letter: letter != "N"))  # examples are named first


def _proportional(total, letters):
    # a scan by halves does some two products a step, and so more than there are steps
    found = Counter()
    for (unit, monomial), number in total.items():
        steps = [size for size, letter in letters.items() if letter == "T" and size < number]
        if steps and "T" not in monomial:
            # in the order of all others: as if there were that many products for each step
            number, rest = round(number / steps[0]), math.prod(_sizes(monomial, letters))
            _, monomial = factored(steps[0] * rest, letters)
        found[unit, monomial] += number
    return found


def _sizes(monomial, letters):
    return [size for letter in monomial for size, other in letters.items() if other == letter]


def _words(total):
    total = {key: n for key, n in total.items() if n}
    if any(unit != "selections" for unit, _ in total):
        total = {key: n for key, n in total.items() if key[0] != "selections"}
    # what grows slower than something else in the list goes without saying
    large = [
        key for key in total if not any(Counter(key[1]) < Counter(other[1]) for other in total)
    ]
    units = dict.fromkeys(sorted((unit for unit, _ in large), key=list(UNITS.values()).index))
    parts = []
    for unit in units:
        terms = [(total[key], Counter(key[1])) for key in large if key[0] == unit]
        common = reduce(and_, (letters for _, letters in terms)) if terms[1:] else Counter()
        rest = " + ".join(tex(n, (letters - common).elements()) for n, letters in terms)
        product = f"{tex(1, common.elements())} ({rest})" if common else rest
        parts.append(f"${product}$ {unit}".strip())
    return " + ".join(parts) or "nothing"


def tex(number, letters):
    """A monomial in LaTeX: 2 N k, or N k, or 1."""
    letters = [*letters]
    return " ".join(([str(number)] if number != 1 or not letters else []) + letters)


def _unpacked(row, residuals):
    # x, W = residuals; or the name of the one residual: a name for each leaf
    (function,) = ast.parse(statement(row)).body
    if not isinstance(function, ast.FunctionDef):
        return []
    given = function.args.args[0].arg
    for node in function.body:
        if is_pair(node) and ast.unparse(node.value) == given:
            return [*_names(node.targets[0], residuals)]
    return [given]


def _names(target, residuals):
    if isinstance(target, ast.Tuple):
        for part, residual in zip(target.elts, residuals, strict=False):
            yield from _names(part, residual)
    else:
        yield from (target.id for _ in jax.tree.leaves(residuals))
