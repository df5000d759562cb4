"""The results: a module a topic, and in it the triples f, f_fwd, f_bwd that its notebook derives.

RULES holds all of them by name. The shapes in their signatures are enforced at run time.
"""

import importlib
import pkgutil

import jax  # before the hook, under which it would take three times as long
from jaxtyping import install_import_hook

from handgrad.signatures import enforced

with install_import_hook(__name__, f"{enforced.__module__}.{enforced.__name__}"):
    TOPICS = {
        topic.name: importlib.import_module(f"{__name__}.{topic.name}")
        for topic in pkgutil.iter_modules(__path__)
    }

RULES = {
    name: rule
    for module in TOPICS.values()
    for name, rule in vars(module).items()
    if getattr(rule, "__module__", None) == module.__name__ and not name.startswith("_")
}
