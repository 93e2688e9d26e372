"""The page: sections of paragraphs, figures, tables and notes, rendered by Jinja into one file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

TEMPLATES = Path(__file__).resolve().parents[2] / "report"


@dataclass
class Paragraph:
    """Running text; a Markup keeps its tags, a str is escaped."""

    text: str
    kind: str = "paragraph"


@dataclass
class Note:
    """Why something is absent or needs care."""

    text: str
    kind: str = "note"


@dataclass
class Heading:
    """A heading inside a section."""

    text: str
    kind: str = "heading"


@dataclass
class Picture:
    """A numbered figure; a second source makes it a flicker pair.

    Parameters
    ----------
    sources
        One data URI, or two that are shown in turn.
    alt
        What a reader who cannot see the figure needs to know.
    title, caption
        The caption says what is shown, in which units, and n.
    labels
        Names of the two images of a flicker pair.
    """

    sources: Sequence[str]
    alt: str
    title: str
    caption: str
    labels: Sequence[str] = ("first", "second")
    narrow: bool = False
    number: int = 0
    kind: str = "picture"


@dataclass
class Table:
    """A numbered table; columns whose cells are all numbers are set right.

    Words are broken only where `wrap` says so: for paths and other text of any length.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    collapsed: bool = False
    wrap: bool = False
    number: int = 0
    kind: str = "table"

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers only."""
        return [
            column > 0 and bool(self.rows) and all(_is_number(row[column]) for row in self.rows)
            for column in range(len(self.header))
        ]


@dataclass
class Section:
    """A part of the page with its own anchor."""

    anchor: str
    title: str
    blocks: list[Any] = field(default_factory=list)


def _is_number(cell: Any) -> bool:
    text = str(cell).strip().replace("−", "-").rstrip("%")
    if text in ("", "n/a", "–"):
        return True
    text = text.split(" [")[0].split(" – ")[0].lstrip("<= ")
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True


def number(value: float, digits: int = 2) -> str:
    """Write a number with a true minus sign; "n/a" where it is not finite."""
    if value is None or not np.isfinite(value):
        return "n/a"
    text = f"{float(value):.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def interval(low: float, high: float, digits: int = 2) -> str:
    """Write an interval in brackets, or "no interval" where it could not be computed."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return "no interval"
    return f"[{number(low, digits)}, {number(high, digits)}]"


def p_value(value: float) -> str:
    """Write a p-value with three digits, "< 0.001" below that, "n/a" where there is none."""
    if not np.isfinite(value):
        return "n/a"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def equals(p: float) -> str:
    """Write a p-value after the letter p: "= 0.031", "< 0.001", "n/a"."""
    text = p_value(p)
    text = text if text.startswith(("<", "n")) else f"= {text}"
    return text.replace(" ", "\u00a0")


def percent(value: float, digits: int = 0) -> str:
    """Write a fraction in percent."""
    return f"{number(100 * value, digits)}%" if np.isfinite(value) else "n/a"


def join(words: Sequence[str]) -> str:
    """Join words as in a sentence: "a", "a and b", "a, b and c"."""
    words = [str(word) for word in words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def capital(text: str) -> str:
    """Write the first letter large and leave the rest."""
    return f"{text[:1].upper()}{text[1:]}"


def count(n: int, noun: str) -> str:
    """Write a count with its noun in the right number."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def render(
    out: Path | str,
    *,
    title: str,
    subtitle: str,
    facts: Mapping[str, str],
    sections: Sequence[Section],
) -> Path:
    """Number figures and tables, render the page and put it in place in one step.

    Parameters
    ----------
    out
        HTML file to write.
    title, subtitle
        Head of the page.
    facts
        Short facts under the title (term and value).
    sections
        Content in reading order.
    """
    figures = tables = 0
    for section in sections:
        for block in section.blocks:
            if block.kind == "picture":
                figures += 1
                block.number = figures
            elif block.kind == "table":
                tables += 1
                block.number = tables
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html.j2").render(
        title=title,
        subtitle=subtitle,
        facts=facts,
        sections=sections,
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "flicker.js").read_text(encoding="utf-8")),
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.part")
    temporary.write_text(html, encoding="utf-8")
    os.replace(temporary, out)
    return out
