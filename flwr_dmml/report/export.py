"""Figures as PDF, SVG or PNG files, drawn by kaleido in a Chrome without a window."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..base.libraries import CHROME, needed
from .parts import Figure, Section
from .reading import ReportError
from .theme import resolve

NEEDS_CHROME = f"figures as files need Chrome or Chromium: {CHROME}"
WIDTH, SCALE = 720, 2  # pixels of a figure, and how many of a PNG's for each


def export_figures(
    sections: Sequence[Section], folder: Path, form: Literal["pdf", "svg", "png"]
) -> int:
    """Write the figures of a report in the light theme, and return how many there were.

    Parameters
    ----------
    sections : sequence of Section
        From :func:`.run_sections.report_sections` or :func:`.comparison_page.comparison_sections`.
    folder : Path
        Made if need be; a figure's name is its file's.
    form : {"pdf", "svg", "png"}
        PDF and SVG for print, PNG at twice the pixels.

    Raises
    ------
    LibraryError
        Kaleido is missing or does not load.
    ReportError
        There is no Chrome.
    """
    with needed("kaleido"):
        import kaleido
        from choreographer.errors import ChromeNotFoundError
    figures = [part for section in sections for part in section.parts if isinstance(part, Figure)]
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        {
            "fig": resolve(figure.to_plotly(), "light"),
            "path": str(folder / f"{_file_name(figure.name)}.{form}"),
            "opts": {"format": form, "width": WIDTH, "height": figure.height, "scale": SCALE},
        }
        for figure in figures
    ]
    try:
        # MathJax would come from the network, and no figure has formulas
        kaleido.write_fig_from_object_sync(jobs, kopts={"mathjax": False}, cancel_on_error=True)
    except ChromeNotFoundError as error:
        raise ReportError(NEEDS_CHROME) from error
    return len(jobs)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
