"""Every test runs in float64, as the proofs do, and compiles nothing twice."""

import os
import tempfile
import uuid
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import nbval.kernel
import pytest
from jupyter_client import KernelManager
from jupyter_client.provisioning import local_provisioner
from nbformat.v4 import new_code_cell
from nbval.plugin import IPyNbCell

# Shared by the kernels of the notebooks and by the command; jax reads it when it is imported.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # each worker has a core
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # nobody reads where an operation came from
os.environ["PYTHONSTARTUP"] = str(Path(__file__).with_name("quick.py"))  # a kernel runs it first
# Most of the time goes into compiling what runs once. Older emitters take two thirds of it.
if version("jax") < "0.11":
    os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"

import forked
import jax
import quick  # noqa: F401

jax.config.update("jax_enable_x64", True)
# What the tests themselves compile is compiled once, and would be written in vain,
jax.config.update("jax_enable_compilation_cache", False)
# and runs for less time than it takes to be made fast.
jax.config.update("jax_disable_most_optimizations", True)


POSIX = os.name == "posix"


def _kernel_manager(**options):
    # A port is chosen because it is free, and taken when the kernel has started: where somebody
    # else was faster, the kernel dies. A socket that is a file has a name of its own.
    if POSIX:
        socket = Path(tempfile.gettempdir()) / f"kernel-{uuid.uuid4().hex}"
        options |= {"transport": "ipc", "ip": str(socket)}
    return KernelManager(**options)


nbval.kernel.KernelManager = _kernel_manager
if POSIX:
    local_provisioner.launch_kernel = forked.Kernel

# These alone are compiled as well as can be: one shows the last digits of a tanh, and the other
# trains for longer than it takes to be made fast.
OPTIMISED = "05_activations.ipynb", "13_convolution.ipynb"

AGAIN = (
    "a_section_may_be_run_again",
    "a_cell_may_be_run_again_and_blames_no_other_gradient",
    "right_answers_are_accepted_and_wrong_ones_refused",
)


class Again(IPyNbCell):
    """A function of again.py, run in a notebook's kernel after the notebook's own cells."""

    def __init__(self, name, parent):
        code = f"""import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import again
again.{name}(Path({str(parent.path)!r}))"""
        options = defaultdict(bool, check=True)
        super().__init__(name, parent, 0, new_code_cell(code), options)

    def runtest(self):
        cells = sum(cell.cell_type == "code" for cell in self.parent.nb.cells)
        here = [item for item in self.session.items if item.parent is self.parent]
        if sum(not isinstance(item, Again) for item in here) < cells:
            pytest.skip("not all cells of its notebook are run")
        super().runtest()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Tell a notebook's kernel, which starts with its first cell, how well to compile."""
    if isinstance(item, IPyNbCell):
        optimised = item.path.name in OPTIMISED
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(not optimised)


def pytest_collection_modifyitems(items):
    """Let each notebook's last cell be followed by what is run again."""
    last = {item.parent: item for item in items if isinstance(item, IPyNbCell)}
    if last and POSIX:
        forked.start_importing()
    for notebook, item in last.items():
        where = items.index(item) + 1
        items[where:where] = [Again.from_parent(notebook, name=name) for name in AGAIN]
