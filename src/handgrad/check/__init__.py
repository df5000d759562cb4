"""Compare hand-written gradients with JAX, and name the mistake in a wrong one.

check_rule proves a layer's rule, check_steps judges each step of a derivation by itself, and
check_gradient takes anybody's numbers. Each shows one line per gradient, returns a Report,
and raises GradientMismatch when one is wrong. How to use it: notebooks/08_checking.ipynb
How it works: notebooks/32_checker.ipynb

rule, gradient and steps hold the three; compare judges two arrays; mistakes and variants find out
what was done to get a wrong one; jaxpr looks inside the program; report shows what was found.
"""

from handgrad.check.gradient import check_gradient
from handgrad.check.report import GradientMismatch, Report, Verdict
from handgrad.check.rule import check_rule, prove
from handgrad.check.steps import check_steps, tap
