"""Draws what benchmark.json says."""

import textwrap

from input_pipeline.common.small_files import unusable
from train_lib.modes.benchmark.rows import INPUTS

COLOURS = {True: "#4477aa", False: "#ee7733"}  # whether a row draws batches only; told apart by colour-blind readers too
CAPTION_WIDTH = 108  # characters


def draw(result, path):
    """Writes a bar chart of the rows as PNG: medians, their spread over the rounds, and below them the ratios and the verdict.

    Args:
      result: the content of benchmark.json.
      path: of the file; an older one is replaced.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, caption = result["rows"][::-1], _caption(result)  # the first row stands on top
    chart_inches, caption_inches = 0.8 + 0.36 * len(rows), 0.2 + 0.16 * len(caption)
    figure, axes = plt.subplots(figsize=(9, chart_inches + caption_inches))
    medians = [row["images_per_second"] for row in rows]
    spread = [[row["images_per_second"] - row["low"] for row in rows], [row["high"] - row["images_per_second"] for row in rows]]
    colours = [COLOURS[row["name"] in INPUTS] for row in rows]
    axes.barh([row["name"] for row in rows], medians, xerr=spread, color=colours, height=0.7, capsize=3)
    # Input and training lie decades apart: on a linear scale one of them would be a line of no length.
    axes.set_xscale("log")
    axes.set_xlim(min(row["low"] for row in rows) / 3, 6 * max(row["high"] for row in rows))
    for index, row in enumerate(rows):
        axes.annotate(f"{row['images_per_second']:,.0f}", (row["high"], index), (6, 0), textcoords="offset points", va="center")
    axes.set_xlabel("images/s, logarithmic; bar: median of the rounds, line: lowest to highest")
    axes.set_title(_title(result["environment"]), fontsize=10)
    axes.legend(
        handles=[plt.Rectangle((0, 0), 1, 1, color=COLOURS[True]), plt.Rectangle((0, 0), 1, 1, color=COLOURS[False])],
        labels=["batches drawn, no training", "training"], fontsize=8, loc="lower right")
    figure.text(0.02, 0.12 / (chart_inches + caption_inches), "\n".join(caption), fontsize=8.5, va="bottom", family="monospace")
    figure.tight_layout(rect=(0, caption_inches / (chart_inches + caption_inches), 1, 1))
    with unusable(path):
        figure.savefig(path, dpi=120)
    plt.close(figure)


def _title(environment):
    height, width, _ = environment["image_shape"]
    return (f"{environment['model']}, {environment['dataset']} {height} x {width}, batches of "
            f"{environment['global_batch_size']}, {environment['devices']}, {environment['cores']} cores")


def _caption(result):
    """Lines of text: ratios in columns, the share of waiting, the verdict."""
    ratios = [f"{name:<31} {value:9.3f}" for name, value in result["ratios"].items()]
    half = (len(ratios) + 1) // 2
    lines = [f"{left}    {right}".rstrip() for left, right in zip(ratios[:half], [*ratios[half:], ""], strict=False)]
    if result["data_wait_share"] is not None:
        lines.append(f"waiting for data: {100 * result['data_wait_share']:.2f} % of the compiled loop's time")
    verdict = f"{result['verdict'] or 'no verdict'}: {result['advice']}"
    return [*lines, *textwrap.wrap(verdict, CAPTION_WIDTH)]
