"""Kernels that have imported already what every notebook imports: forked, where a system can fork.

To import it takes longer than most cells do.
"""

import multiprocessing
import os
import time
from multiprocessing import forkserver

INLINE = "module://matplotlib_inline.backend_inline"


def start_importing():
    """Start what forks, in the background; what grades forks from it too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["ipykernel.kernelapp", "matplotlib.pyplot", "handgrad.figures", "handgrad.classroom.judge"]
    )
    forkserver.ensure_running()


class Kernel:
    """A kernel's process, as jupyter_client wants it: with the methods of a subprocess.Popen."""

    stdin = stdout = stderr = None

    def __init__(self, cmd, env, cwd, **_):
        arguments = cmd[cmd.index("-f") + 1 :]
        context = multiprocessing.get_context("forkserver")
        self._process = context.Process(target=_run, args=(arguments, env, cwd))
        self._process.start()
        self.pid = self._process.pid
        while os.getpgid(self.pid) != self.pid:  # whoever kills the kernel kills its group
            time.sleep(0.001)

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        return self.poll()

    def send_signal(self, number):
        os.kill(self.pid, number)

    def terminate(self):
        self._process.terminate()

    def kill(self):
        self._process.kill()


def _run(arguments, env, cwd):
    """The kernel itself, in its own process."""
    os.setsid()
    os.chdir(cwd)
    os.environ |= env | {"JPY_PARENT_PID": str(os.getppid()), "MPLBACKEND": INLINE}
    import jax
    import matplotlib
    from ipykernel.kernelapp import IPKernelApp

    # what these read from the environment when they were imported
    matplotlib.rcParams["backend"] = INLINE
    quickly = env.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "True"
    jax.config.update("jax_disable_most_optimizations", quickly)
    IPKernelApp.launch_instance(["-f", *arguments])
