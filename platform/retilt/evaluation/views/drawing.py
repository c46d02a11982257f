"""How figures look: their size in pixels, axes, grid and legend."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from retilt.evaluation.plot import INK
from retilt.evaluation.views.methods import method

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID, MUTED = "#e4e7eb", "#52606d"


def figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    # Imported here: it takes half a second, which the rest of the platform need not pay.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def png(figure: Figure) -> bytes:
    """The picture; the same bytes for the same figure."""
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=140, metadata={"Software": None})
    return written.getvalue()


def plain(axes: Axes, x: str, y: str, grid: str = "both") -> None:
    """Name the axes, and leave of frame and ticks what is needed; ``grid``: lines across ``x``, ``y`` or ``both``."""
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)
    axes.tick_params(labelsize=9, colors=MUTED, length=0)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("bottom", "left"))
        spine.set_color("#cbd2d9")


def legend(figure: Figure, axes: Axes, columns: int = 6) -> None:
    """Below the figure, what ``axes`` labels."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), frameon=False, fontsize=9
    )


def style(arm: str, size: float = 6) -> dict[str, Any]:
    """How an arm is drawn: filled marks on a line, open ones on a dashed line."""
    look = method(arm)
    face = "white" if look.dashed else look.colour
    return {"color": look.colour, "marker": look.marker, "markersize": size, "markerfacecolor": face}
