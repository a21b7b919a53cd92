"""Turns measured rounds into figures, a verdict, a table and a chart."""

import textwrap
from statistics import mean, median

import matplotlib.figure
import numpy as np

from alexnet import names
from input_pipeline.common.small_files import unusable
from train_lib.config import BENCHMARK_ROWS
from train_lib.modes.benchmark.rows import INPUTS, OF_A_STREAM

# Each row is divided by the other.
RATIOS = (
    ("input", "canonical"), ("input", "tutorial"), ("input", "numpy_gather"), ("input", "decode_crop"),
    ("read_decode", "read"), ("read_decode_augment", "read_decode"), ("input", "step"), ("step", "one_device"),
    ("loop", "step"), ("loop", "loop_constant"), ("loop", "model_fit"), ("loop", "model_fit_default"),
)
SECONDS_PER_ROW = 2.5  # mean length of a round over the rows; shorter rounds measure the hiccups of the machine
MOST_SECONDS = 100.0  # for all rounds together
MOST_ROUNDS, FEWEST_ROUNDS = 5, 3
INPUT_MARGIN, LOOP_MARGIN = 1.1, 0.9
LARGE_SHARE = 0.05  # of the loop's time; a part of the bookkeeping that takes more is what to change first
# {legend: (rows that only draw batches?, colour)}. Colour-blind readers can tell the colours apart too.
KINDS = {"batches drawn, no training": (True, "#4477aa"), "training": (False, "#ee7733")}
CAPTION_WIDTH = 108  # characters
FIGURES = ("images_per_second", "low", "high")  # of a row


def choose_length(seconds_per_step, steps_per_loop):
    """Returns how many steps a round of every row has, a multiple of `steps_per_loop`, and how many rounds to measure.

    `seconds_per_step` has one value per row that trains, measured after its first call.
    """
    if not seconds_per_step:
        return steps_per_loop, MOST_ROUNDS
    loops = max(1, round(SECONDS_PER_ROW / (mean(seconds_per_step) * steps_per_loop)))
    steps = loops * steps_per_loop
    rounds = int(MOST_SECONDS / (steps * sum(seconds_per_step)))
    return steps, min(MOST_ROUNDS, max(FEWEST_ROUNDS, rounds))


def row_figures(rounds):
    """The "rows" of benchmark.json, from {row: [images/s of each round]}."""
    return [{"name": name, "images_per_second": median(values), "low": min(values), "high": max(values), "rounds": len(values),
             "images_per_second_by_round": values} for name, values in rounds.items()]


def ratio_figures(rounds):
    """The "ratios": {"a/b": median over the rounds of a's images/s divided by b's in the same round}, if both were measured."""
    return {
        f"{above}/{below}": median(a / b for a, b in zip(rounds[above], rounds[below], strict=True))
        for above, below in RATIOS if above in rounds and below in rounds
    }


def decide(rounds, bookkeeping, config, on_gpu):
    """Returns a verdict, None if its rows were not measured, and a line with the reason for it and what to try next."""
    if not {"step", "loop"} <= rounds.keys():
        return None, "a verdict needs the rows step and loop, and preferably input"
    ratios = ratio_figures(rounds)
    share, margin = ratios["loop/step"], ratios.get("input/step", INPUT_MARGIN)
    if margin < INPUT_MARGIN:
        return "input-bound", f"the input alone reaches {margin:.2f} of the step's speed; try {_lighter_input(config, rounds)}"
    if share >= LOOP_MARGIN:
        smaller = "--model_options=width=0.5" if "width" in names.OPTIONS[config.network.model] else "--model=alexnet_mini"
        remedy = "--precision=bfloat16" if on_gpu else f"a smaller network, such as {smaller}, or more cores"
        return "compute-bound", f"the loop reaches {share:.2f} of the bare step's speed; to go faster try {remedy}"
    return "loop-bound", f"the loop reaches {share:.2f} of the bare step's speed; try {_less_bookkeeping(config, bookkeeping)}"


def _lighter_input(config, rounds):
    if rounds.keys() & set(OF_A_STREAM) or config.data.input == "stream":
        if "read" in rounds and median(rounds["read"]) < INPUT_MARGIN * median(rounds["step"]):
            return "--input=memory, or a faster disk: reading alone is too slow"
        return "--input=memory, or more cores"
    return "--augment=none" if config.data.augmentations else "a smaller --image_size, or more cores"


def _less_bookkeeping(config, bookkeeping):
    """The flag whose larger value saves most of the loop's overhead."""
    part, figures = max(bookkeeping["parts"].items(), key=lambda item: item[1]["share"])
    if part == "checkpoint" and figures["share"] >= LARGE_SHARE:
        return "fewer checkpoints: a larger --eval_every_epochs or --checkpoint_every_steps, or a larger --train_split"
    size, log_every = config.device.steps_per_loop, config.cadence.log_every_steps
    if log_every <= size or (part == "record" and figures["share"] >= LARGE_SHARE):
        return f"--log_every_steps={max(2 * log_every, 5 * size)} --steps_per_loop={5 * size}"
    return f"--steps_per_loop={5 * size}"


def table(result):
    """The content of benchmark.json as text for the terminal."""
    ratios, bookkeeping, stalls = result["ratios"], result["bookkeeping"], result["model_fit_default_stall_seconds"]
    lines = [f"{'row':<19} {'images/s':>10} {'low':>10} {'high':>10} {'rounds':>7}"]
    for row in result["rows"]:
        figures = "".join(f" {row[name]:>10,.0f}" for name in FIGURES)
        lines.append(f"{row['name']:<19}{figures} {row['rounds']:>7}   {BENCHMARK_ROWS[row['name']]}")
    lines += ["", *(f"{name:<31} {value:.3f}" for name, value in ratios.items())] if ratios else []
    if result["data_wait_share"] is not None:
        line = f"data_wait_share, of the compiled loop's time: {100 * result['data_wait_share']:.2f} %"
        if (floor := result["data_wait_share_of_a_constant_batch"]) is not None:
            line += f" (with a constant batch {100 * floor:.2f} %)"
        lines += ["", line]
    if bookkeeping:
        parts = ", ".join(
            f"{name} {100 * part['share']:.2f} % ({1000 * part['seconds']:.2f} ms every {part['every_steps']:.6g} steps)"
            for name, part in bookkeeping["parts"].items())
        lines += ["", f"bookkeeping, of the loop's time: {100 * bookkeeping['share']:.2f} %: {parts}"]
    if first := result["first_epoch"]:
        what = "the first pass over the files" if first["complete"] else "a part of the first pass over the files"
        lines += ["", f"{what}: {first['images_per_second']:,.0f} images/s read; not part of any row"]
    if stalls:
        lines += ["", f"model_fit_default waits after its last step: {median(stalls):.2f} s (median), {max(stalls):.2f} s (most)"]
    return "\n".join(lines)


def draw(result, path):
    """Writes benchmark.png: a bar for each row with its spread over the rounds, and below them the ratios and the verdict."""
    ratios = [f"{name:<31} {value:9.3f}" for name, value in result["ratios"].items()]
    half = (len(ratios) + 1) // 2  # two columns
    caption = [f"{left}    {right}".rstrip() for left, right in zip(ratios[:half], [*ratios[half:], ""], strict=False)]
    if result["data_wait_share"] is not None:
        caption.append(f"waiting for data: {100 * result['data_wait_share']:.2f} % of the compiled loop's time")
    caption += textwrap.wrap(f"{result['verdict'] or 'no verdict'}: {result['advice']}", CAPTION_WIDTH)
    rows = result["rows"][::-1]  # the first row is at the top
    chart_inches, caption_inches = 0.8 + 0.36 * len(rows), 0.2 + 0.16 * len(caption)
    inches = chart_inches + caption_inches
    figure = matplotlib.figure.Figure(figsize=(9, inches))
    axes = figure.subplots()
    for legend, (draws_only, colour) in KINDS.items():
        places = [place for place, row in enumerate(rows) if (row["name"] in INPUTS) == draws_only]
        if places:
            middle, low, high = (np.array([rows[place][name] for place in places]) for name in FIGURES)
            bars = axes.barh(places, middle, 0.7, xerr=[middle - low, high - middle], color=colour, capsize=3, label=legend)
            axes.bar_label(bars, fmt="{:,.0f}", padding=6)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_xscale("log")  # input and training are decades apart: on a linear scale, some bars would be too short to see
    axes.set_xlim(min(row["low"] for row in rows) / 3, 6 * max(row["high"] for row in rows))
    axes.set_xlabel("images/s, logarithmic; bar: median of the rounds, line: lowest to highest")
    about, (height, width, _) = result["environment"], result["environment"]["image_shape"]
    axes.set_title(f"{about['model']}, {about['dataset']} {height} x {width}, batches of {about['global_batch_size']}, "
                   f"{about['devices']}, {about['cores']} cores", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    figure.text(0.02, 0.12 / inches, "\n".join(caption), fontsize=8.5, va="bottom", family="monospace")
    figure.tight_layout(rect=(0, caption_inches / inches, 1, 1))
    with unusable(path):
        figure.savefig(path, dpi=120)
