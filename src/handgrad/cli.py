"""The command handgrad: prove the rules, accept the notebooks' new outputs, hand them out."""

import argparse
import sys
from inspect import signature
from pathlib import Path

SEEDS = 3


def main(argv=None):
    """Run the command line; the exit status is 0, 1 for a wrong gradient, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="handgrad", description="Gradients by hand, proved.")
    commands = parser.add_subparsers(dest="command")
    proof = commands.add_parser("verify", help="prove every rule of the catalog (the default)")
    proof.add_argument("name", nargs="?", help="a layer or a module: softmax, activations, ...")
    renewal = commands.add_parser("accept", help="re-execute notebooks and store their outputs")
    renewal.add_argument("notebooks", nargs="*", type=Path, help="all of them when none is named")
    lesson = commands.add_parser("handout", help="write notebooks for students or instructors")
    lesson.add_argument("notebooks", nargs="*", type=Path, help="all of them when none is named")
    lesson.add_argument("--edition", choices=["student", "instructor"], default="student")
    lesson.add_argument("--to", choices=["pdf", "html", "ipynb"], default="pdf")
    lesson.add_argument("-o", dest="folder", metavar="DIR", type=Path, default=Path("handouts"))
    lesson.add_argument("--paper", choices=["a4", "letter"], default="a4", help="of the pdf")
    pages = commands.add_parser("site", help="the notebooks as a static site, to open offline")
    pages.add_argument("-o", dest="out", type=Path, default=Path("site"), metavar="DIR")
    card = commands.add_parser("cheatsheet", help="every layer's gradients on two pages of paper")
    card.add_argument("-o", dest="out", type=Path, default=Path("cheatsheet.pdf"), metavar="FILE")
    card.add_argument("--paper", choices=["a4", "letter"], default="a4")
    options = parser.parse_args(argv)
    try:
        if options.command == "accept":
            return accept(options.notebooks)
        if options.command == "handout":
            return hand_out(options)
        if options.command == "site":
            return site(options.out)
        if options.command == "cheatsheet":
            return cheat_sheet(options)
        return verify(getattr(options, "name", None))
    except (OSError, LookupError, RuntimeError, ImportError, ValueError) as problem:
        print(f"handgrad: {problem}", file=sys.stderr)
        return 2


def verify(name=None):
    """Prove the layers of that name, or of the module of that name; all of them without one.

    Raises:
        LookupError: nothing bears the name.

    """
    import jax
    import numpy as np
    from tqdm import tqdm

    from handgrad.catalog import LAYERS
    from handgrad.check import GradientMismatch, prove
    from handgrad.check.report import painted

    jax.config.update("jax_enable_x64", True)
    layers = [layer for layer in LAYERS if name in (None, layer.name, layer.module)]
    if not layers:
        known = ", ".join(sorted({n for layer in LAYERS for n in (layer.module, layer.name)}))
        raise LookupError(f"verify {name}: no such layer; expected one of {known}")
    width = max(len(layer.name) for layer in layers)
    columns = max(len(p) + 1 for layer in layers for p in signature(layer.f).parameters)
    gradients = wrong = 0
    for layer in (progress := tqdm(layers, disable=None, leave=False, unit="rule")):
        verdicts = {}
        rounds = [list(layer.examples(np.random.default_rng(seed))) for seed in range(SEEDS)]
        for examples in zip(*rounds, strict=True):  # the same shape, once a seed
            draws, hyper = [args for args, _ in examples], examples[0][1]
            try:
                proved = prove(layer.f, layer.f_fwd, layer.f_bwd, draws, **hyper)
            except GradientMismatch as mistake:
                progress.close()
                print(f"{layer.name:{width}}  WRONG: {mistake}")
                return 1
            for verdict in proved:
                if verdict.name not in verdicts or verdicts[verdict.name].right:
                    verdicts[verdict.name] = verdict
        for verdict in verdicts.values():
            gradients, wrong = gradients + 1, wrong + (not verdict.right)
            reason = "" if verdict.right else f"WRONG, shape {verdict.shape}: "
            words = painted(reason + verdict.words, verdict.right)
            progress.write(f"{layer.name:{width}}  {verdict.name:{columns}}  {words}")
    if wrong:
        print(f"\n{wrong} of {gradients} gradients of {len(layers)} rules are wrong.")
        return 1
    print(f"\n{gradients} gradients of {len(layers)} rules proved in float64, over {SEEDS} seeds.")
    print("Open the derivations with: jupyter lab notebooks/00_contents.ipynb")
    return 0


def accept(paths=()):
    """Re-execute the notebooks and store their outputs; without a path all, and README's table."""
    from handgrad import notebooks
    from handgrad.catalog import table

    notebooks.accept([path.resolve() for path in paths] or sorted(notebooks.FOLDER.glob("*.ipynb")))
    if not paths:
        readme = notebooks.FOLDER.parent / "README.md"
        before, _, after = readme.read_text("utf-8").split(MARK)
        readme.write_text(f"{before}{MARK}\n\n{table()}\n\n{MARK}{after}", "utf-8")
    return 0


def hand_out(options):
    """Write the handouts that the command line asks for, and print their paths."""
    from handgrad.classroom.handout import handout
    from handgrad.notebooks import FOLDER

    paths = options.notebooks or sorted(FOLDER.glob("*.ipynb"))
    written = handout(paths, options.edition, options.to, options.folder, options.paper)
    print(*written, sep="\n")
    return 0


def site(out):
    """Write the site of all notebooks to the folder `out`, and print where it starts."""
    from handgrad.classroom.site import build
    from handgrad.notebooks import FOLDER

    print(build(FOLDER, out))
    return 0


def cheat_sheet(options):
    """Write the cheat sheet that the command line asks for, and print its path."""
    from handgrad.classroom.cheatsheet import cheatsheet

    print(cheatsheet(options.out, options.paper))
    return 0


MARK = "<!-- the table of layers: made by `handgrad accept` -->"
