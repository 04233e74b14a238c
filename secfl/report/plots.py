"""Interactive plots for pages, drawn by Bokeh, whose script the page carries (BSD licence, its notice kept)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

from bokeh.embed import components
from bokeh.models import DataRange1d, FactorRange, FixedTicker, HoverTool, NumeralTickFormatter
from bokeh.plotting import figure
from bokeh.resources import Resources

from secfl.report.facts import RunFacts

__all__ = ["Plot", "Series", "bars", "dots", "embed", "lines", "run_plots", "script_library"]

# Okabe and Ito's colours: told apart by nearly everybody, and clear on light and on dark paper.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a8a8a")
_DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot")
_MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle")
_HEIGHT = 300
_LEGEND_ROWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line, or the bars of one kind.

    Attributes:
        name: In the legend.
        x: Positions, or names of bars.
        y: As many values.
    """

    name: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One plot, and the same figures as a table for those who cannot see it.

    Attributes:
        key: A word that is unique on the page.
        title: What is shown.
        text: A sentence that says what is to be seen.
        model: Bokeh's figure.
        head: Head of the table.
        rows: Its rows.
    """

    key: str
    title: str
    text: str
    model: figure
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def script_library() -> str:
    """Bokeh's script, to be put into a page once."""
    text: str = Resources(mode="inline", components=["bokeh"], minified=True).render_js()
    return text


def embed(plots: Sequence[Plot]) -> tuple[str, Mapping[str, str]]:
    """The script that draws the plots, and the place of each by its key."""
    if not plots:
        return "", {}
    script, places = components({plot.key: plot.model for plot in plots}, wrap_script=True)
    return script, places


def lines(
    key: str, *, title: str, text: str, x: str, y: str, series: Sequence[Series], digits: int = 3
) -> Plot:
    """Lines with markers over numbers."""
    model = _figure(key, x=x, y=y)
    styles = zip(cycle(_COLOURS), cycle(_DASHES), cycle(_MARKERS), strict=False)
    for one, (colour, dash, marker) in zip(series, styles, strict=False):
        data = {"x": list(one.x), "y": list(one.y), "name": [one.name] * len(one.x)}
        drawn = model.line(
            "x", "y", source=data, color=colour, line_dash=dash, line_width=2.5, legend_label=one.name
        )
        points = model.scatter(
            "x", "y", source=data, color=colour, marker=marker, size=7, legend_label=one.name
        )
        drawn.name = points.name = None
    model.add_tools(
        HoverTool(tooltips=[("", "@name"), (x, "@x"), (y, f"@y{{0.{'0' * digits}}}")], mode="mouse")
    )
    _finish(model, key, legend=len(series) > 1)
    places = sorted({place for one in series for place in one.x})
    rows = tuple(
        (
            f"{place:g}",
            *(_at(one, place, digits) for one in series),
        )
        for place in places
    )
    return Plot(
        key=key, title=title, text=text, model=model, head=(x, *(one.name for one in series)), rows=rows
    )


def _at(one: Series, place: float | str, digits: int) -> str:
    return f"{one.y[one.x.index(place)]:.{digits}f}" if place in one.x else "-"


def bars(key: str, *, title: str, text: str, y: str, series: Sequence[Series], digits: int = 1) -> Plot:
    """Horizontal bars, the series stacked, one bar for each name."""
    names = list(series[0].x)
    model = _figure(
        key, x=y, y="", categories=[str(name) for name in reversed(names)], height=90 + 45 * len(names)
    )
    data: dict[str, list[float | str]] = {"bar": [str(name) for name in names]}
    data |= {f"s{number}": list(one.y) for number, one in enumerate(series)}
    drawn = model.hbar_stack(
        [f"s{number}" for number in range(len(series))],
        y="bar",
        height=0.6,
        color=list(_COLOURS[: len(series)]),
        source=data,
        legend_label=[one.name for one in series],
    )
    for number, (one, glyph) in enumerate(zip(series, drawn, strict=True)):
        tips = [("", "@bar"), (one.name, f"@s{number}{{0.{'0' * digits}}}")]
        model.add_tools(HoverTool(tooltips=tips, renderers=[glyph]))
    _finish(model, key, legend=True)
    rows = tuple(
        (str(name), *(f"{one.y[place]:.{digits}f}" for one in series)) for place, name in enumerate(names)
    )
    return Plot(
        key=key, title=title, text=text, model=model, head=("", *(one.name for one in series)), rows=rows
    )


def dots(key: str, *, title: str, text: str, x: str, series: Sequence[Series], digits: int = 3) -> Plot:
    """Markers beside names, one row for each name, one kind of marker for each series."""
    names = list(series[0].x)
    model = _figure(
        key, x=x, y="", categories=[str(name) for name in reversed(names)], height=110 + 26 * len(names)
    )
    model.x_range = DataRange1d()
    for one, colour, marker in zip(series, cycle(_COLOURS), cycle(_MARKERS), strict=False):
        data = {"place": [str(name) for name in one.x], "value": list(one.y), "name": [one.name] * len(one.x)}
        model.scatter(
            "value", "place", source=data, color=colour, marker=marker, size=10, legend_label=one.name
        )
    model.add_tools(HoverTool(tooltips=[("", "@place"), ("@name", f"@value{{0.{'0' * digits}}}")]))
    _finish(model, key, legend=True)
    rows = tuple((str(name), *(_at(one, name, digits) for one in series)) for name in names)
    return Plot(
        key=key, title=title, text=text, model=model, head=("", *(one.name for one in series)), rows=rows
    )


def _figure(
    key: str, *, x: str, y: str, categories: list[str] | None = None, height: int = _HEIGHT
) -> figure:
    model = figure(
        height=height,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,reset,save",
        toolbar_location="right",
        x_axis_label=x,
        y_axis_label=y,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        **(
            {}
            if categories is None
            else {"y_range": FactorRange(*categories), "x_range": DataRange1d(start=0)}
        ),
    )
    model.toolbar.logo = None
    model.toolbar.autohide = True
    model.xaxis.name = f"{key}-x"
    model.yaxis.name = f"{key}-y"
    return model


def _finish(model: figure, key: str, *, legend: bool) -> None:
    """What the page's script colours for light and dark has a name."""
    for grid in model.grid:
        grid.grid_line_color = "#8a8a8a"
        grid.grid_line_alpha = 0.25
    for axis in model.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "13px"
    if not legend:
        model.legend.visible = False
        return
    shown = model.legend[0]
    shown.name = f"{key}-legend"
    shown.background_fill_alpha = 0.0
    shown.border_line_color = None
    shown.label_text_font_size = "13px"
    shown.click_policy = "hide"
    model.add_layout(shown, "below")
    shown.orientation = "horizontal"
    shown.ncols = 1 if max(len(item.label.value or "") for item in shown.items) > 40 else 4
    shown.nrows = "auto"


def run_plots(facts: RunFacts) -> list[Plot]:
    """The plots of a run, those for which there are figures."""
    return [
        plot
        for plot in (_dice(facts), _epsilon(facts), _seconds(facts), _megabytes(facts))
        if plot is not None
    ]


def _dice(facts: RunFacts) -> Plot | None:
    rows = [
        (row["round"] + 1, row["evaluation_only"]["dice"]["per_site"])
        for row in facts.metrics
        if row.get("evaluation_only")
    ]
    if not rows:
        return None
    series = [
        Series(
            name=site,
            x=tuple(number for number, per_site in rows if site in per_site),
            y=tuple(per_site[site] for _, per_site in rows if site in per_site),
        )
        for site in facts.sites
    ]
    last = rows[-1][1]
    worst = min(last, key=lambda site: last[site])
    plot = lines(
        "dice",
        title="Dice on each site's test images",
        text=f"After round {rows[-1][0]} the lowest is {last[worst]:.3f} at {worst}, "
        f"the highest {max(last.values()):.3f}.",
        x="round",
        y="Dice",
        series=series,
    )
    _whole_numbers(plot, [number for number, _ in rows])
    return plot


def _epsilon(facts: RunFacts) -> Plot | None:
    history = facts.history
    if history is None or not history.lines:
        return None
    series = [Series(name=name, x=history.rounds, y=values) for name, values in history.lines.items()]
    highest = max(series, key=lambda one: one.y[-1])
    plot = lines(
        "epsilon",
        title="ε of each adversary over the rounds",
        text=f"Computed from the ledger's entries at {len(history.rounds)} points; "
        f"at the end the largest is {highest.y[-1]:.2f} ({highest.name}).",
        x="released rounds",
        y="ε",
        series=series,
        digits=2,
    )
    plot.model.y_range.start = 0
    _whole_numbers(plot, list(history.rounds))
    return plot


def _seconds(facts: RunFacts) -> Plot | None:
    if not facts.metrics:
        return None
    parts = [
        part for part in ("train", "protect", "aggregate", "open") if part in facts.metrics[0]["seconds"]
    ]
    total = {part: sum(row["seconds"][part] for row in facts.metrics) for part in parts}
    protection = sum(total.values()) - total.get("train", 0.0)
    share = protection / max(sum(total.values()), 1e-12)
    return bars(
        "seconds",
        title="Where the time went",
        text=f"Protecting, adding and opening took {share:.1%} of the {sum(total.values()):.1f} s of work.",
        y="seconds",
        series=[Series(name=part, x=("all rounds",), y=(round(value, 4),)) for part, value in total.items()],
        digits=2,
    )


def _megabytes(facts: RunFacts) -> Plot | None:
    if not facts.metrics:
        return None
    sums = {
        way: tuple(
            round(sum(row[way].get(site, 0) for row in facts.metrics) / 1e6, 4) for site in facts.sites
        )
        for way in ("bytes_up", "bytes_down")
    }
    return bars(
        "megabytes",
        title="What each site sent and received",
        text=f"All sites together sent {sum(sums['bytes_up']):.1f} MB and received {sum(sums['bytes_down']):.1f} MB "
        "of protocol messages (1 MB is 1,000,000 bytes; the model itself goes by the engine).",
        y="MB",
        series=[
            Series(name="sent", x=facts.sites, y=sums["bytes_up"]),
            Series(name="received", x=facts.sites, y=sums["bytes_down"]),
        ],
        digits=2,
    )


def _whole_numbers(plot: Plot, numbers: Sequence[int]) -> None:
    step = max(1, len(numbers) // 10)
    plot.model.xaxis.ticker = FixedTicker(ticks=list(numbers[::step]))
    plot.model.xaxis.formatter = NumeralTickFormatter(format="0")


def themed(plots: Sequence[Plot]) -> str:
    """Names of what the page's script colours, as JSON."""
    return json.dumps([f"{plot.key}-{part}" for plot in plots for part in ("x", "y", "legend")])
