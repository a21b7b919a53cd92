"""Draws the content of benchmark.json."""

import textwrap

import matplotlib.figure

from input_pipeline.common.small_files import unusable
from train_lib.modes.benchmark.rows import INPUTS

# {legend: (rows that only draw batches?, colour)}. Colour-blind readers can tell the colours apart too.
KINDS = {"batches drawn, no training": (True, "#4477aa"), "training": (False, "#ee7733")}
CAPTION_WIDTH = 108  # characters


def draw(result, path):
    """Writes a PNG file with a bar for each row, its spread over the rounds, and below them the ratios and the verdict.

    Args:
      result: the content of benchmark.json.
      path: of the file; an older one is replaced.
    """
    rows, caption = result["rows"][::-1], _caption(result)  # the first row is at the top
    chart_inches, caption_inches = 0.8 + 0.36 * len(rows), 0.2 + 0.16 * len(caption)
    inches = chart_inches + caption_inches
    figure = matplotlib.figure.Figure(figsize=(9, inches))
    axes = figure.subplots()
    for legend, (draws_only, colour) in KINDS.items():
        for place, row in enumerate(rows):
            if (row["name"] in INPUTS) == draws_only:
                middle, low, high = row["images_per_second"], row["low"], row["high"]
                axes.barh(place, middle, 0.7, xerr=[[middle - low], [high - middle]], color=colour, capsize=3, label=legend)
                axes.annotate(f"{middle:,.0f}", (high, place), (6, 0), textcoords="offset points", va="center")
                legend = None  # one entry is enough
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_xscale("log")  # input and training are decades apart: on a linear scale, some bars would be too short to see
    axes.set_xlim(min(row["low"] for row in rows) / 3, 6 * max(row["high"] for row in rows))
    axes.set_xlabel("images/s, logarithmic; bar: median of the rounds, line: lowest to highest")
    axes.set_title(_title(result["environment"]), fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    figure.text(0.02, 0.12 / inches, "\n".join(caption), fontsize=8.5, va="bottom", family="monospace")
    figure.tight_layout(rect=(0, caption_inches / inches, 1, 1))
    with unusable(path):
        figure.savefig(path, dpi=120)


def _title(environment):
    height, width, _ = environment["image_shape"]
    return (f"{environment['model']}, {environment['dataset']} {height} x {width}, batches of "
            f"{environment['global_batch_size']}, {environment['devices']}, {environment['cores']} cores")


def _caption(result):
    """Lines of text: the ratios in two columns, the share of waiting, the verdict."""
    ratios = [f"{name:<31} {value:9.3f}" for name, value in result["ratios"].items()]
    half = (len(ratios) + 1) // 2
    lines = [f"{left}    {right}".rstrip() for left, right in zip(ratios[:half], [*ratios[half:], ""], strict=False)]
    if result["data_wait_share"] is not None:
        lines.append(f"waiting for data: {100 * result['data_wait_share']:.2f} % of the compiled loop's time")
    verdict = f"{result['verdict'] or 'no verdict'}: {result['advice']}"
    return [*lines, *textwrap.wrap(verdict, CAPTION_WIDTH)]
