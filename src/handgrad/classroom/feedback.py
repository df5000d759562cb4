"""A student's page: what is right in the notebook that she handed in, what is not, and why."""

import re
from html import escape
from pathlib import Path

STYLE = """
section { margin: 2em 0; padding: .1em 1.2em 1em; border-left: 5px solid var(--line); }
section.right { border-color: var(--green); }
section.wrong { border-left: 5px dotted var(--red); }
section.error { border-left: 5px dashed var(--red); }
h2 { margin: .6em 0; padding: 0; border: 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
pre.code { padding: .7em 1em; background: var(--code); }
"""
MARKS = {"right": "✓ right", "wrong": "✗ wrong", "empty": "still empty", "error": "! error"}
ADVICE = {
    "right": "The check accepts your answer.",
    "wrong": "The check says:",
    "empty": "The cell is as it was handed out.",
    "error": "Your answer could not be judged:",
}


def page(graded):
    """What was found in a file, as the text of one HTML file that needs nothing else."""
    found = [result for _, result, _ in graded.rows()]
    counts = ", ".join(f"{found.count(result)} {result}" for result in MARKS if result in found)
    body = [f"<h1>{_text(graded.title or 'Not graded')}</h1>"]
    body.append(f"<p><code>{_text(graded.file)}</code>: {_text(graded.problem or counts)}.</p>")
    if graded.written:
        numbers = ", ".join(graded.written)
        body.append(f"<p>Answers in words are for your teacher to read: Exercises {numbers}.</p>")
    if graded.remarks:
        items = "".join(f"<li>{_text(remark)}</li>" for remark in graded.remarks)
        body.append(f"<p>What was noticed:</p>\n<ul>{items}</ul>")
    body += [
        _section(exercise, *said, graded.answers.get(exercise))
        for exercise, said in graded.results.items()
    ]
    house = (Path(__file__).with_name("page.html")).read_text("utf-8")
    style = re.search(r"(?s)<style>(.*?)</style>", house)[1] + STYLE
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(graded.title or graded.file)} – feedback</title>
<style>{style}</style>
</head>
<body>
<header>handgrad · feedback</header>
<main>
{"".join(body)}
</main>
</body>
</html>
"""


def _section(exercise, result, words, answer):
    parts = [f"<h2>Exercise {_text(exercise)}: {MARKS[result]}</h2>", f"<p>{ADVICE[result]}</p>"]
    if words:
        parts.append(f"<pre>{_text(words)}</pre>")
    if answer and result != "empty":
        parts.append(f'<p>Your answer:</p>\n<pre class="code"><code>{_text(answer)}</code></pre>')
    return f'<section class="{result}">\n' + "\n".join(parts) + "\n</section>\n"


def _text(text):
    return escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text))
