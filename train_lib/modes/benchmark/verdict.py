"""Turns measured rounds into figures, a verdict and a table. Pure functions."""

from statistics import mean, median

from alexnet import names
from train_lib.config import BENCHMARK_ROWS
from train_lib.modes.benchmark.rows import OF_A_STREAM, RATIOS

SECONDS_PER_ROW = 2.5  # mean length of a round over the rows; shorter rounds measure the hiccups of the machine
MOST_SECONDS = 100.0  # for all rounds together
MOST_ROUNDS, FEWEST_ROUNDS = 5, 3
INPUT_MARGIN, LOOP_MARGIN = 1.1, 0.9
LARGE_SHARE = 0.05  # of the loop's time; a part of the bookkeeping that takes more is what to change first


def choose_length(seconds_per_step, steps_per_loop):
    """Returns how many steps a round has, which is the same for every row, and how many rounds to measure.

    Args:
      seconds_per_step: one value per row that trains, measured after its first call.
      steps_per_loop: the steps of a round are a multiple of this.
    """
    if not seconds_per_step:
        return steps_per_loop, MOST_ROUNDS
    loops = max(1, round(SECONDS_PER_ROW / (mean(seconds_per_step) * steps_per_loop)))
    steps = loops * steps_per_loop
    rounds = int(MOST_SECONDS / (steps * sum(seconds_per_step)))
    return steps, min(MOST_ROUNDS, max(FEWEST_ROUNDS, rounds))


def row_figures(rounds):
    """The "rows" of benchmark.json, from {row: [images/s of each round]}."""
    return [
        {"name": name, "images_per_second": median(values), "low": min(values), "high": max(values), "rounds": len(values),
         "images_per_second_by_round": values}
        for name, values in rounds.items()
    ]


def ratio_figures(rounds):
    """{"a/b": median over the rounds of a's images/s divided by b's in the same round}, if both were measured."""
    return {
        f"{above}/{below}": median(a / b for a, b in zip(rounds[above], rounds[below], strict=True))
        for above, below in RATIOS if above in rounds and below in rounds
    }


def bookkeeping_figures(seconds, every_steps, seconds_per_step):
    """The share of the loop's time that each part of its bookkeeping takes.

    Args:
      seconds: {part: mean seconds of one call}.
      every_steps: {part: steps between two calls in a real run}.
      seconds_per_step: of the whole loop, bookkeeping included.

    Returns:
      {"share", "seconds_per_step", "parts": {part: {"seconds", "every_steps", "share"}}}.
    """
    parts = {
        part: {"seconds": cost, "every_steps": every_steps[part], "share": cost / every_steps[part] / seconds_per_step}
        for part, cost in seconds.items()
    }
    return {"share": sum(part["share"] for part in parts.values()), "seconds_per_step": seconds_per_step, "parts": parts}


def decide(rounds, bookkeeping, config, on_gpu):
    """Returns a verdict, None if its rows were not measured, and a line with the reason for it and what to try next."""
    if not {"step", "loop"} <= rounds.keys():
        return None, "a verdict needs the rows step and loop, and preferably input"
    share = ratio_figures(rounds)["loop/step"]
    if "input" in rounds:
        margin = median(a / b for a, b in zip(rounds["input"], rounds["step"], strict=True))
        if margin < INPUT_MARGIN:
            remedy = _lighter_input(config, rounds)
            return "input-bound", f"the input alone reaches {margin:.2f} of the step's speed; try {remedy}"
    if share >= LOOP_MARGIN:
        remedy = "--precision=bfloat16" if on_gpu else _smaller_network(config)
        return "compute-bound", f"the loop reaches {share:.2f} of the bare step's speed; to go faster try {remedy}"
    return "loop-bound", f"the loop reaches {share:.2f} of the bare step's speed; try {_less_bookkeeping(config, bookkeeping)}"


def _smaller_network(config):
    has_width = "width" in names.OPTIONS[config.network.model]
    return f"a smaller network, such as {'--model_options=width=0.5' if has_width else '--model=alexnet_mini'}, or more cores"


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
        figures = "".join(f" {row[name]:>10,.0f}" for name in ("images_per_second", "low", "high"))
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
