"""How figures for papers look. Matplotlib draws them, which needs no browser.

Plotly's static export runs one: it takes five seconds a picture, and servers have none.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN = 3.35  # inches: one column of the usual two-column papers (85 mm)
DPI = 300  # of PNG files
STYLE = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib, so that all machines draw the same picture
    "font.size": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "svg.hashsalt": "nasspace",  # the ids in an SVG are random otherwise
}


def saved(figure: Figure, kind: str, metadata: dict[str, Any], dpi: int = DPI) -> bytes:
    """A figure as a file of this kind."""
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=dpi, metadata=metadata)
    return content.getvalue()


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Matplotlib's own defaults and those of these figures, whatever the user's matplotlibrc says."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)  # without a writable home folder it logs where it keeps its list of fonts
    try:
        import matplotlib

        with matplotlib.rc_context(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks is drawn as boxes
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            yield
    finally:
        log.setLevel(level)
