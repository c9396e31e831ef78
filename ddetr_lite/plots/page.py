"""One HTML page that needs nothing else: styles inside, figures as data, no script, no address.

Every piece of text goes through `html.escape` here, and nowhere else: callers give plain text and put pieces together.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddetr_lite.plots.style import COLOURS, INK, MUTED, PAPER, png


@dataclass(frozen=True)
class Html:
    """A piece of a page, safe to put in as it is."""

    text: str

    def __add__(self, other: "Html") -> "Html":
        return Html(f"{self.text}\n{other.text}")


NOTHING = Html("")

CSS = f"""
:root {{ color-scheme: light; }}
body {{ margin: 0; background: #F4F6FA; color: {INK}; font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }}
header {{ background: {INK}; color: {PAPER}; padding: 28px 0 22px; }}
header h1 {{ margin: 0 0 4px; font-size: 28px; overflow-wrap: anywhere; }}
header p {{ margin: 2px 0; color: #CBD5E6; overflow-wrap: anywhere; }}
header > div, main {{ max-width: 900px; margin: 0 auto; padding: 0 20px; }}
nav a {{ color: {PAPER}; margin-right: 16px; font-size: 14px; display: inline-block; }}
nav {{ margin-top: 10px; }}
section {{ background: {PAPER}; border: 1px solid #E3E7EE; border-radius: 10px; padding: 18px 24px 22px; margin: 18px 0; }}
h2 {{ font-size: 20px; margin: 0 0 8px; }}
h3 {{ font-size: 15px; margin: 20px 0 4px; }}
p {{ margin: 6px 0 10px; max-width: 72ch; overflow-wrap: anywhere; }}
p.missing {{ color: #5A6577; background: #F4F6FA; border-left: 4px solid #C3CBD8; padding: 8px 12px; }}
figure {{ margin: 10px 0; }}
figure img {{ max-width: 100%; height: auto; display: block; }}
figcaption {{ color: #5A6577; font-size: 13.5px; margin-top: 4px; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 10px; margin: 12px 0; }}
.tile {{ background: #F4F6FA; border-radius: 8px; padding: 9px 12px; }}
.tile b {{ display: block; font-size: 20px; line-height: 1.3; color: {COLOURS[0]}; }}
.tile span {{ font-size: 13px; color: #5A6577; }}
.gallery {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 14px; align-items: start; }}
.gallery figure {{ margin: 0; }}
.gallery img {{ width: 100%; border-radius: 4px; }}
table {{ border-collapse: collapse; font-size: 14.5px; }}
th, td {{ text-align: left; padding: 4px 18px 4px 0; border-bottom: 1px solid #E3E7EE; vertical-align: top;
  overflow-wrap: anywhere; }}
th {{ font-weight: 600; }}
.swatch {{ display: inline-block; width: 13px; height: 13px; border-radius: 3px; margin-right: 8px; vertical-align: -1px; }}
.dashed {{ background: none !important; border: 2px dashed; box-sizing: border-box; }}
pre {{ background: #F4F6FA; border-radius: 6px; padding: 12px 14px; font-size: 13px; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; }}
summary {{ cursor: pointer; font-weight: 600; }}
footer {{ color: {MUTED}; font-size: 13px; text-align: center; padding: 4px 0 30px; }}
@media print {{ body {{ background: none; }} section {{ break-inside: avoid; }} }}
"""


def page(title: str, under_title: Sequence[str], sections: Sequence[tuple[str, str, Html]], end: str) -> str:
    """A whole document. sections: (id, heading, content), each with a link at the top; end: the last line."""
    links = " ".join(f'<a href="#{escape(name)}">{escape(heading)}</a>' for name, heading, _ in sections)
    lines = "\n".join(f"<p>{escape(line)}</p>" for line in under_title)
    body = "\n".join(
        f'<section id="{escape(name)}">\n<h2>{escape(heading)}</h2>\n{content.text}\n</section>'
        for name, heading, content in sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n<header><div>\n<h1>{escape(title)}</h1>\n{lines}\n<nav>{links}</nav>\n</div></header>\n"
        f"<main>\n{body}\n</main>\n<footer>{escape(end)}</footer>\n</body>\n</html>\n"
    )


def paragraph(text: str) -> Html:
    """A paragraph."""
    return Html(f"<p>{escape(text)}</p>")


def missing(text: str) -> Html:
    """A sentence in the place of what a run has no data for."""
    return Html(f'<p class="missing">{escape(text)}</p>')


def heading(text: str) -> Html:
    """A heading within a section."""
    return Html(f"<h3>{escape(text)}</h3>")


def picture(drawn: Figure | Axes, alt: str, caption: str = "") -> Html:
    """A figure with its description for those who do not see it. Raises ValueError where that says too little."""
    if len(alt.split()) < 5:
        raise ValueError(f"alt={alt!r} says too little: describe in a sentence what the figure shows")
    data = base64.b64encode(png(drawn)).decode()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Html(f'<figure><img src="data:image/png;base64,{data}" alt="{escape(alt)}">{below}</figure>')


def gallery(pictures: Sequence[Html]) -> Html:
    """Pictures side by side, as many in a row as there is room for."""
    return Html('<div class="gallery">\n' + "\n".join(p.text for p in pictures) + "\n</div>")


def tiles(values: Mapping[str, str]) -> Html:
    """Numbers in large letters: {what it is: value}."""
    cells = (f'<div class="tile"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for k, v in values.items())
    return Html('<div class="tiles">\n' + "\n".join(cells) + "\n</div>")


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> Html:
    """Rows of cells."""
    top = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>\n" if head else ""
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return Html(f"<table>\n{top}{body}\n</table>")


def legend(entries: Sequence[tuple[str, str, str, bool]]) -> Html:
    """What colours mean: (colour, name, meaning, dashed)."""
    rows = (
        f'<tr><td><span class="swatch{" dashed" if dashed else ""}" style="background: {escape(colour)}; border-color: '
        f'{escape(colour)}"></span>{escape(name)}</td><td>{escape(meaning)}</td></tr>'
        for colour, name, meaning, dashed in entries
    )
    return Html("<table>\n" + "\n".join(rows) + "\n</table>")


def code(text: str) -> Html:
    """Text as it is, in letters of one width."""
    return Html(f"<pre>{escape(text)}</pre>")


def folded(summary: str, content: Html) -> Html:
    """What opens at a click."""
    return Html(f"<details><summary>{escape(summary)}</summary>\n{content.text}\n</details>")
