"""The small parts that the sections of report.html are made of: tables, charts, pictures, numbers in words."""

import base64
from html import escape

import numpy as np

from train_lib.records import charts

MOST_POINTS = 400  # of a line; of more, neighbours are averaged


def line(records, name, factor=1.0):
    """(epochs, values times `factor`) of a value in records, None as NaN; two float64 arrays of at most 400 points."""
    x = np.array([record["epoch"] for record in records], float)
    y = factor * np.array([np.nan if record.get(name) is None else record[name] for record in records], float)
    if len(x) <= MOST_POINTS:
        return x, y
    groups = np.array_split(np.arange(len(x)), MOST_POINTS)
    known = [group[~np.isnan(y[group])] for group in groups]
    return (np.array([x[group].mean() for group in groups]),
            np.array([y[group].mean() if group.size else np.nan for group in known]))


def chart(name, text, series, unit):
    """A <figure> with lines over the epochs: [(label, x, y)]."""
    return f'<figure class="card">{charts.to_svg(charts.curves(series, unit), name, text)}</figure>'


def picture(png, text):
    """A <figure> with a PNG file."""
    text, source = escape(text), base64.b64encode(png).decode()
    return f'<figure><figcaption>{text}</figcaption><img alt="{text}" src="data:image/png;base64,{source}"></figure>'


def table(headings, rows):
    """A <table> that scrolls where it is larger than its place; `rows` is HTML."""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def missing(text):
    """A line in place of what is not there; `text` is HTML."""
    return f'<p class="missing">{text}</p>'


def duration(seconds):
    """Seconds in words."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
