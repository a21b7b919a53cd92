"""Figures, drawn by matplotlib without a display and without its global state. Does not import TensorFlow.

A dollar sign in a class name or title does not begin a formula, and a user's matplotlibrc has no effect.
"""

import base64
import contextlib
import html
import io
import re
import warnings

import matplotlib
import matplotlib.figure
import matplotlib.image
import numpy as np

MOST_CLASSES_WITH_FIGURES = 20
MOST_CLASSES_WITH_NAMES = 50
LONGEST_NAME = 24
# Both stand out from white and from near black, so a figure can lie on either.
BLUE, ORANGE = "#2f7fd6", "#d9730d"
# Colours that readers with any colour vision tell apart (Okabe and Ito 2008), without the yellow, which white hides. Black
# becomes the text colour of the page. The dash patterns are lengths of dashes and gaps, in line widths.
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ((), (5, 2), (1.5, 1.5))
_STYLE = {**matplotlib.rcParamsDefault, "text.parse_math": False, "svg.fonttype": "none", "font.size": 9.5}
_STYLE = {name: value for name, value in _STYLE.items() if not name.startswith(("backend", "interactive"))}


@contextlib.contextmanager
def our_style():
    """Context manager, and decorator, in which matplotlib has its own defaults and draws text as it is."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a class name may have such letters
        yield


@our_style()
def confusion_matrix(class_names, confusion, title="", inches=None):
    """A confusion matrix as a Figure: `confusion`, int [true class, predicted class], each row in per cent of its true class."""
    confusion = np.asarray(confusion)
    count = len(class_names)
    share = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    inches = inches or min(6 + 0.25 * count, 20)
    figure = matplotlib.figure.Figure(figsize=(inches, inches * 0.9), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, vmin=0, vmax=100, cmap="Blues")
    axes.set(title=title, xlabel="predicted class", ylabel="true class, each row in %")
    if count <= MOST_CLASSES_WITH_NAMES:
        names = [_short(name) for name in class_names]
        axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), names)
    if count <= MOST_CLASSES_WITH_FIGURES:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.5:
                color = "#ffffff" if value > 50 else "#111111"  # not pure black, which `to_svg` replaces
                # Without in_layout=False the layout engine would measure each of these texts for nothing.
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, in_layout=False)
    else:
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


@our_style()
def mistakes(entries, title=""):
    """Images with their five most probable classes as bars, the true class in orange (the paper's figure 4), as a Figure.

    `entries` are one or more entries of mistakes.json. All share one Axes, because two Axes per image take several times as long.
    """
    columns = min(4, len(entries))
    rows = -(-len(entries) // columns)
    bars = max(len(entry["predictions"]) for entry in entries)
    cell = 1.2 + 0.13 * bars
    height = 2.2 * rows * cell
    figure = matplotlib.figure.Figure(figsize=(2.2 * columns, height + 0.4))
    axes = figure.add_axes((0, 0, 1, height / (height + 0.4)))
    for index, entry in enumerate(entries):
        left, top = 0.06 + index % columns, -(index // columns) * cell
        image = matplotlib.image.imread(io.BytesIO(base64.b64decode(entry["image"])))
        axes.imshow(image, extent=(left, left + 0.88, top - 0.94, top - 0.06))
        axes.text(left + 0.44, top - 1.03, _short(entry["true_class"]), ha="center", va="center", weight="bold")
        places = [top - 1.17 - 0.13 * number for number in range(len(entry["predictions"]))]
        colors = [ORANGE if p["class"] == entry["true_class"] else BLUE for p in entry["predictions"]]
        axes.barh(places, [0.88 * p["probability"] for p in entry["predictions"]], 0.11, left=left, color=colors, alpha=0.45)
        for place, prediction in zip(places, entry["predictions"], strict=True):
            axes.text(left + 0.02, place, _short(prediction["class"]), va="center", fontsize=8)
            axes.text(left + 0.88, place, f"{100 * prediction['probability']:.0f} %", va="center", ha="right", fontsize=8)
    axes.set(xlim=(0, columns), ylim=(-rows * cell, 0), title=title, aspect="equal")
    axes.axis("off")
    return figure


@our_style()
def curves(series, ylabel, xlabel="epoch", inches=(4.8, 2.8)):
    """Lines over time, as a Figure: `series` is [(label, x, y)], the first in blue, the second in orange. None in y is a gap."""
    figure = matplotlib.figure.Figure(figsize=inches, layout="constrained")
    axes = figure.subplots()
    for (label, x, y), color, marker in zip(series, (BLUE, ORANGE), ("", "o"), strict=False):
        values = np.array(y, float)  # None becomes NaN
        axes.plot(x, values, label=label, color=color, marker=marker if len(x) > 1 else "o", markersize=3.5, linewidth=1.6)
    if len(series) > 1:
        axes.legend(frameon=False)
    axes.grid(color="#888888", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure


def line_style(index):
    """(colour, dash pattern) of the line with this index, for up to 21 different lines."""
    return OKABE_ITO[index % len(OKABE_ITO)], DASHES[index // len(OKABE_ITO) % len(DASHES)]


@our_style()
def bands(series, ylabel, xlabel="epoch", inches=(4.8, 3.2)):
    """Lines over time with a band around each, as a Figure: `series` is {index for `line_style`: (x, y, low, high)}."""
    figure = matplotlib.figure.Figure(figsize=inches, layout="constrained")
    axes = figure.subplots()
    for index, (x, y, low, high) in series.items():
        color, dashes = line_style(index)
        axes.plot(x, y, color=color, linestyle=(0, dashes), linewidth=1.6, marker="" if len(x) > 1 else "o", markersize=3.5)
        if np.any(low < high):
            axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
    axes.grid(color="#888888", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure


def _short(name):
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")  # a folder name may contain any bytes
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


@our_style()
def to_png(figure):
    """A Figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return file.getvalue()


@our_style()
def to_svg(figure, name, label):
    """A Figure as an <svg> element for a page: transparent, without addresses, with the page's text colour in place of black.

    Its ids begin with `name`, which is unique in the page. `label` is for readers who cannot see it.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = file.getvalue()
    inside = svg[svg.index(">", svg.index("<svg")) + 1 :].replace("xlink:href=", "href=").replace("#000000", "currentColor")
    inside = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", inside)
    width, height = (72 * inches for inches in figure.get_size_inches())
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(label)}">{inside}'
