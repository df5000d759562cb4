"""Makes JAX's own Python cheaper, and changes no result: in a worker, and in each kernel it starts.

Half of what the tests cost is tracing and lowering programs that run once.
"""

import atexit
import functools
import gc

from jax._src import api
from jax._src.interpreters import mlir

# A context costs 10 ms, and each compilation makes its own: a tenth of all.
mlir.make_ir_context = functools.cache(mlir.make_ir_context)
# Tracing makes many small objects that live on; looking for garbage among them is in vain.
gc.set_threshold(100_000, 20, 20)
# At its end a process would empty some thousand caches, one by one.
atexit.unregister(api.clean_up)

del api, atexit, functools, gc, mlir  # a kernel runs this among the notebook's own names
