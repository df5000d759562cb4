// Fits equations to the screen, as screen.css has it, and gives the keys what they can scroll.

const SCROLLERS = "pre, figure, .sourceCode, .output, .table-wrapper, .formula, .left, .right, .wide";

function fit(within = document) {
  const all = (selector) => [...within.querySelectorAll(selector)];
  const wide = (box) => box.scrollWidth > box.clientWidth + 1;
  let derivations = all(".derivation");
  for (const way of ["derivation", "derivation stacked", "derivation folded"]) {
    derivations.forEach((box) => (box.className = way));
    derivations = derivations.filter(wide);
  }
  const lone = all(":is(p, li, dd, h1, h2, h3) .math > mjx-container");
  lone.forEach((formula) => formula.classList.remove("wide"));
  const room = (formula) => formula.closest("p, li, dd, h1, h2, h3").clientWidth;
  lone
    .filter((formula) => formula.offsetWidth > room(formula))
    .forEach((formula) => formula.classList.add("wide"));
  const boxes = all(SCROLLERS);
  const scroll = boxes.map(wide); // all are measured before the first is changed
  boxes.forEach((box, i) => (scroll[i] ? (box.tabIndex = 0) : box.removeAttribute("tabindex")));
}

// No line begins with the full stop after a formula.
function join(formula) {
  const mark = formula.nextSibling?.data?.match(/^\p{P}+/u)?.[0];
  if (mark) {
    const both = new Range();
    both.setStartBefore(formula);
    both.setEnd(formula.nextSibling, mark.length);
    both.surroundContents(Object.assign(document.createElement("span"), { className: "together" }));
  }
}

window.fitted = new Promise((done) => {
  addEventListener("load", async () => {
    await window.MathJax?.startup?.promise;
    // a link is called what its formulas say
    for (const link of document.querySelectorAll("a:has(mjx-container)")) {
      link.setAttribute("aria-label", link.textContent);
    }
    document.querySelectorAll(".math").forEach(join);
    fit();
    document.querySelector(":target")?.scrollIntoView();
    done();
  });
});
addEventListener("resize", () => fit());
addEventListener("toggle", (event) => fit(event.target), true); // it had no width before
