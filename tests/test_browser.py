"""In a real browser: every page renders, asks no host for anything, and a notebook runs in Lab."""

import html
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from itertools import pairwise
from pathlib import Path

import nbformat
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from test_paper import bare, hidden

from handgrad.classroom import site
from handgrad.classroom.editions import edition
from handgrad.notebooks import FOLDER

NOTEBOOK = "01_gradient.ipynb"  # the one that runs in Lab
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# axe's rules on what is read aloud do not depend on colours
AUDIT = {"resultTypes": ["violations"], "preload": False}
RECOLOURED = AUDIT | {"runOnly": ["color-contrast"]}
# What MathJax makes of a formula that it can't read: an error node, or its source in red.
FAILED = "merror, mjx-merror, [data-mjx-error], [mathcolor=red], [fill=red], [style*='color: red']"
RUN_ALL_CELLS = """async () => {
    const { context } = jupyterapp.shell.currentWidget
    await context.ready
    await context.sessionContext.ready
    const late = (_, fail) => setTimeout(() => fail("no answer from the kernel in time"), 120_000)
    await Promise.race([jupyterapp.commands.execute("notebook:run-all-cells"), new Promise(late)])
}"""
# Run All has no more to say once a cell has failed, though the kernel goes on.
ALL_HAVE_RUN = """() => jupyterapp.shell.currentWidget.content.model.toJSON().cells.every(
    cell => cell.cell_type != "code" || cell.execution_count)"""
PHONE, DESK = ({"width": width, "height": 844} for width in (390, 1400))
# What a reader loses on a screen of this width, or who has the page read to them, or has no mouse.
LOST = """(failed) => {
    window.fit?.()
    const all = (selector) => [...document.querySelectorAll(selector)]
    const text = (node) => node.textContent.trim().slice(0, 40)
    const found = []
    const complain = (words, nodes) => nodes.forEach((node) => found.push(`${words} ${text(node)}`))
    const wide = (node) => node.scrollWidth > node.clientWidth + 1
    const scrolls = (node) => ["auto", "scroll"].includes(getComputedStyle(node).overflowX)
    complain("fails at", all(failed))
    complain("is wider than the screen", [document.documentElement].filter(wide))
    complain("loses", all(".equation .number, .reason:not(:empty)").filter((node) => {
        const column = node.closest("article, main, body").getBoundingClientRect()
        const { left, right } = node.getBoundingClientRect()
        return left < column.left || right > column.right + 1
    }))
    const read = all(":is(article, main) :not(mjx-container *)").filter(wide)
    const still = (node) => node.tabIndex < 0 && !node.querySelector("[tabindex]")
    complain("has no keys to scroll", read.filter((node) => scrolls(node) && still(node)))
    complain("cuts off", read.filter((node) => getComputedStyle(node).overflowX === "hidden"))
    complain("has no bullet at", all("li").filter(scrolls))
    complain("has no words for the image", all("img").filter((i) => !(i.alt || i.ariaLabel)))
    complain("has no name for a link", all("a[href]").filter((a) => !(a.ariaLabel || text(a))))
    return found
}"""
# axe takes a formula for nothing, and one name in the code for all of its colour: most of a page.
THINNED = """() => {
    document.querySelectorAll("mjx-container").forEach((formula) => {
        formula.firstChild.replaceChildren()
        formula.replaceChildren(formula.firstChild)
    })
    const seen = new Set()
    document.querySelectorAll("pre span").forEach((word) => {
        seen.has(word.className) ? word.replaceWith(word.textContent) : seen.add(word.className)
    })
}"""
READABLE = """() => {
    document.querySelectorAll("pre, code").forEach((code) => code.remove())
    return document.body.innerText
}"""
RAW = re.compile(r"\$|\\[A-Za-z]+|\\[()\[\]{}\\]")

# the site's libraries call what the next Sphinx will rename
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:PendingDeprecationWarning")


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium")
    if not path:
        refuse = pytest.fail if os.environ.get("HANDGRAD_NEEDS_CHROMIUM") else pytest.skip
        refuse("no chromium on the path; Debian's package chromium has it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        expect.set_options(timeout=60_000)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return site.build(FOLDER, tmp_path_factory.mktemp("classroom") / "site").parent


def listen(page, own):
    """The list that fills with the page's errors and its requests to anything but `own`."""
    page.set_default_timeout(60_000)
    heard = []

    def on_request(request):
        if not request.url.startswith((own, "data:", "blob:")):
            heard.append(f"asks for {request.url}")

    def on_console(message):
        if message.type in ("error", "warning"):
            heard.append(f"logs {message.text}")

    page.on("request", on_request)
    page.on("requestfailed", lambda request: heard.append(f"doesn't get {request.url}"))
    page.on("console", on_console)
    page.on("pageerror", lambda error: heard.append(f"raises {error}"))
    return heard


def formulas(notebook):
    """How many formulas stand in the notebook's text."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    without_code = re.sub(r"(?s)```.*?```|`[^`]*`", "", text)
    return len(re.findall(r"(?s)\$\$.+?\$\$|\$.+?\$", without_code))


def darkness(screenshot, scheme):
    """Complain about a figure whose paper or whose ink is as in the other scheme."""
    pixels = np.asarray(Image.open(io.BytesIO(screenshot)).convert("L")).astype(int).ravel()
    paper = int(np.median(pixels))
    ink = pixels[abs(pixels - paper).argmax()]
    if paper < 40 and ink > 150 if scheme == "dark" else paper > 220 and ink < 60:
        return []
    return [f"has a figure of {ink} on {paper}, {scheme}"]


@pytest.fixture(scope="module")
def complaints(chromium):
    """A function of a file and its number of formulas: what its readers complain about."""
    page = chromium.new_page(viewport=DESK)
    heard = listen(page, "file:")
    axe = Axe()

    def read(file, expected=0, audited=False):
        heard.clear()
        page.goto(file.as_uri())
        page.evaluate("window.fitted ?? window.MathJax?.startup?.promise")
        page.evaluate("document.querySelectorAll('details').forEach(box => box.open = true)")
        # as wide as the page before was in the end, then as the other: each page is laid out twice
        found = []
        for size in (page.viewport_size, PHONE if page.viewport_size == DESK else DESK):
            page.set_viewport_size(size)
            found += [f"at {size['width']}: {loss}" for loss in page.evaluate(LOST, FAILED)]
        # a rendered formula comes with its MathML, for those who have the page read to them
        if (rendered := page.evaluate("document.querySelectorAll('math').length")) < expected:
            found.append(f"renders {rendered} of {expected} formulas")
        if audited:
            page.evaluate(THINNED)
            violations = axe.run(page, options=AUDIT).response["violations"]
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                if page.locator("figure img").count():
                    found += darkness(page.locator("figure img").first.screenshot(), scheme)
            violations += page.evaluate("(options) => axe.run(options)", RECOLOURED)["violations"]
            page.emulate_media(color_scheme="light")
            found += [f"{v['id']} at {node['html']}" for v in violations for node in v["nodes"]]
        text = page.evaluate(READABLE)
        found += [f"shows raw {text[m.start() :][:40]!r}" for m in RAW.finditer(text)]
        return heard + found

    yield read
    page.close()


CUT = "width: 200px; text-indent: 500px; white-space: nowrap; overflow: "
WHITE = (
    "data:image/svg+xml,<svg xmlns=%22http://www.w3.org/2000/svg%22 width=%2290%22 height=%2290%22>"
    "<path d=%22M0 0h90v90h-90z%22 fill=%22white%22/><path d=%22M30 30h30v30z%22/></svg>"
)
WRONG = {
    "<img src='https://example.org/a.png'>": "asks for https://example.org",
    "<img src='nowhere.png'>": "doesn't get file:",
    "<script>nothing()</script>": "raises nothing is not defined",
    "<script>console.error('no')</script>": "logs no",
    "<math><merror>x</merror></math>": "fails at x",
    "<p>so $x$ is</p>": "shows raw '$x$ is",
    r"<details>by \[ x \]</details>": "shows raw '\\\\[ x",
    "<div style='width: 50em'>wide</div>": "at 390: is wider than the screen",
    f"<p style='{CUT} hidden' class=equation><a class=number href=a>(1.2)</a>": (
        "at 390: loses (1.2)"
    ),
    f"<main><p style='{CUT} hidden'>how far does this go": "at 390: cuts off how far",
    f"<main><p style='{CUT} auto'>and how far this": "at 390: has no keys to scroll and how",
    "<ul><li style='overflow: auto'>a point": "has no bullet at a point",
    "<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>": "has no words for the image",
    "<a href='a'><math></math></a>": "has no name for a link",
    "<p role='heading'>a caption": "aria-required-attr at <p role",
    "<p class=pale>pale<style>.pale {color: #bbb; background: #fff}</style>": (
        'color-contrast at <p class="pale">'
    ),
    "<style>@media (prefers-color-scheme: dark) {.night {background: #333}}</style>"
    "<p class=night>dark": 'color-contrast at <p class="night">',
    f"<figure><img alt='white' src='{WHITE}'></figure>": "has a figure of 0 on 255, dark",
    "<p>a formula is lost</p>": "renders 2 of 3 formulas",
}


def test_a_reader_complains_about_what_is_wrong(complaints, tmp_path):
    page = tmp_path / "page.html"
    body = "\n".join(f"<section>{wrong}</section>" for wrong in WRONG)
    page.write_text(f"<!doctype html><title>A page</title>{body}")
    said = "; ".join(complaints(page, expected=3, audited=True))
    assert [complaint for complaint in WRONG.values() if complaint not in said] == [], said
    page.write_text("<!doctype html><html lang=en><title>A page</title><main><h1>1</h1></main>")
    assert complaints(page, audited=True) == []


def test_every_page_of_the_site_renders_without_a_network(complaints, pages):
    modules = sorted(pages.rglob("layers/*.html"))  # code and nothing else: some stand for all
    files = [file for file in sorted(pages.rglob("*.html")) if file not in modules[1::2]]
    expected = {path.stem: formulas(nbformat.read(path, as_version=4)) for path in NOTEBOOKS}
    assert expected.keys() < {file.stem for file in files}
    # one of a kind stands for all, where the template and the style sheets decide
    audited = "search", "gradient", "04_linear"
    found = {
        file.stem: complaints(file, expected.get(file.stem, 0), file.stem in audited)
        for file in files
    }
    assert {stem: wrong for stem, wrong in found.items() if wrong} == {}


def test_next_leads_through_all_notebooks_and_previous_back(pages):
    def leads(page, way):
        target = re.search(rf'class="{way}-page" href="([^"#]*)', page.read_text("utf-8"))[1]
        return (page.parent / target).resolve()

    books = [pages / "notebooks" / f"{path.stem}.html" for path in NOTEBOOKS]
    for page, following in pairwise([pages / "index.html", *books]):
        assert leads(page, "next") == following
        assert leads(following, "prev") == page


def test_the_search_finds_a_word_in_a_folder(chromium, pages):
    with chromium.new_page() as page:
        heard = listen(page, "file:")
        page.goto((pages / "notebooks" / "00_contents.html").as_uri())
        page.fill("input[name=q]", "cotangents")
        page.press("input[name=q]", "Enter")
        page.locator("#search-results").get_by_role("link", name="3. Compose in reverse").click()
        assert "cotangents add" in page.inner_text("article")
        assert heard == []


def test_an_equation_s_mention_leads_to_the_equation(chromium, pages):
    with chromium.new_page() as page:
        page.goto((pages / "notebooks" / "07_two_layer_network.html").as_uri())
        page.get_by_role("link", name="(6.20)").first.click()
        assert Path(page.url.partition("#")[0]).stem == "06_softmax_cross_entropy"
        expect(page.locator("[id='eq-6.20']:target mjx-container >> nth=0")).to_be_in_viewport()


@pytest.mark.parametrize("path, kind", [(NOTEBOOKS[0], "student"), (NOTEBOOKS[7], "instructor")])
def test_a_handout_renders_without_a_network_and_a_student_s_gives_nothing_away(
    complaints, tmp_path, path, kind
):
    # two stand for all, since the site shows the mathematics of every notebook
    from handgrad.classroom import editions, page

    notebook = nbformat.read(path, as_version=4)
    made = editions.edition(notebook, kind)
    handout = tmp_path / "handout.html"
    handout.write_text(page.html(made, kind), "utf-8")
    assert complaints(handout, formulas(made), kind == "student") == []
    text = re.sub(r"(?s)<script.*?</script>|<[^>]*>", "", handout.read_text("utf-8"))
    text = bare(html.unescape(text))
    assert any(line in text for line in hidden(notebook)) == (kind == "instructor")


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab that knows one notebook, none of it executed, 1.1 not done."""
    notebook = nbformat.read(FOLDER / NOTEBOOK, as_version=4)
    student = edition(notebook, "student")
    opened = False
    for cell, solved in zip(student.cells, notebook.cells, strict=True):
        opened = opened or "Exercise 1.2" in cell.source
        if cell.cell_type == "code":
            source = solved.source if opened else cell.source
            cell.update(execution_count=None, outputs=[], source=source)
    nbformat.write(student, tmp_path / NOTEBOOK)
    kinds = "JUPYTER_CONFIG", "JUPYTER_DATA", "JUPYTER_RUNTIME", "JUPYTERLAB_WORKSPACES"
    folders = {f"{kind}_DIR": str(tmp_path / kind.lower()) for kind in kinds}
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)  # every cell is to be in the page, not only those in sight
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    folders |= {"JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "ServerApp.root_dir": tmp_path,
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "IdentityProvider.token": "secret",
        "LabApp.news_url": "None",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.extension_manager": "readonly",
        "LabApp.expose_app_in_browser": True,
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with (tmp_path / "log").open("w+") as log:
        server = subprocess.Popen(command, env=os.environ | folders, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while not answers(f"{address}/api"):
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                pytest.fail(f"JupyterLab does not start:\n{(tmp_path / 'log').read_text()}")
            time.sleep(0.1)
        yield address
        server.terminate()
        server.wait(60)


def answers(address):
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def test_a_notebook_runs_all_its_cells_in_jupyterlab_though_an_exercise_is_empty(chromium, lab):
    with chromium.new_page(viewport={"width": 1280, "height": 900}) as page:
        heard = listen(page, lab)
        page.goto(f"{lab}/lab/tree/{NOTEBOOK}?token=secret")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.evaluate(RUN_ALL_CELLS)
        page.wait_for_function(ALL_HAVE_RUN)
        cells = page.evaluate("jupyterapp.shell.currentWidget.content.model.toJSON().cells")
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
        (said,) = [o for c in code for o in c["outputs"] if o["output_type"] == "error"]
        assert said["evalue"] == "Exercise 1.1: write dv_by_hand, then check again"
        assert "stream" in {output["output_type"] for output in code[-1]["outputs"]}
        expected = formulas(nbformat.from_dict({"cells": cells}))
        expect(page.locator(".jp-Notebook mjx-container")).to_have_count(expected)
        assert page.locator(FAILED).count() == 0
        assert heard == []
