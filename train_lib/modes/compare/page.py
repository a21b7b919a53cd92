"""The mode `compare`: a table on the terminal, comparison.csv and comparison.html about the runs that --inputs names.

It reads small files of their workdirs and nothing else. So it needs neither TensorFlow nor the data, and disturbs no run.

    runs.py   which folders, and what is read of each
    rows.py   which runs form a row, which rows are comparable, means and intervals
"""

import csv
import io
import pathlib
import sys
import time

from input_pipeline.common.errors import UnusableError, one_line
from train_lib.cli.inputs import printable
from train_lib.modes.compare.rows import compare, count_statuses, difference, summarize
from train_lib.modes.compare.runs import find_folders, read_run
from train_lib.records import charts, pages

NAME = "comparison"
TEMPLATE = pathlib.Path(__file__).with_name("compare.html")
# {figure: (heading, factor, decimals)}
FIGURES = {
    "test_accuracy": ("test accuracy, %", 100, 2), "best_validation_accuracy": ("best validation accuracy, %", 100, 2),
    "images_per_second": ("images/s", 1, 0), "seconds": ("seconds", 1, 0)}
ACCURACIES = ("test_accuracy", "best_validation_accuracy")
MOST_LINES = 10  # in a chart
MOST_CHARTS = 10  # groups that have charts; drawing one takes as long as reading two runs
LONGEST_CELL, LONGEST_LABEL = 24, 100  # characters, on the terminal and on the page


def make_comparison(config, workdir):
    """Compares the runs; returns 0, or 3 if something that --inputs names was left out.

    Raises UnusableError if nothing is left, or a file cannot be written.
    """
    folders, left_out = find_folders(config.modes.inputs)
    runs = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except UnusableError as error:
            left_out.append(f"{printable(str(error))}; left out")
        except OSError as error:
            left_out.append(f"{printable(str(error.filename))}: cannot be read ({error.strerror}); left out")
        except (TypeError, ValueError, LookupError, AttributeError) as error:  # somebody edited the files
            left_out.append(f"{printable(str(folder))}: a record or JSON file is not what a run writes ({error!r}); left out")
    left_out = [one_line(line) for line in left_out]
    if not runs:
        raise UnusableError(f"--inputs={config.modes.inputs}: nothing is left to compare; {'; '.join(left_out) or 'it is empty'}")
    groups = compare(runs)
    workdir.create()
    print(f"{summary_line(runs)}\n\n{terminal_table(groups)}\n")
    for suffix, content in (("csv", csv_file(groups)), ("html", pages.render(TEMPLATE, contents(groups, left_out)))):
        print(f"written: {printable(str(workdir.write_file(f'{NAME}.{suffix}', content)))}")
    for line in left_out:
        print(line, file=sys.stderr)
    return 3 if left_out else 0


def spread(summary, name):
    """The mean of the figure `name` and its standard deviation as text; only the mean if there is one value, a dash if none."""
    _, factor, decimals = FIGURES[name]
    if summary is None:
        return "-"
    mean = f"{factor * summary.mean:.{decimals}f}"
    return mean if summary.sd is None else f"{mean} ± {factor * summary.sd:.{decimals}f}"


def interval(summary, name, sign=""):
    """The 95 % interval of the figure `name` as text; empty if it has none. With sign="+", for a difference."""
    _, factor, decimals = FIGURES[name]
    if summary is None or summary.low is None:
        return ""
    return f"{factor * summary.low:{sign}.{decimals}f} to {factor * summary.high:{sign}.{decimals}f}"


def difference_texts(row, other, name):
    """(difference of `row` and `other` in points, its interval, what that says, the number of pairs), texts; () without pairs."""
    found = difference(row, other, name)
    if found is None:
        return ()
    verdict = "may be chance" if found.low <= 0 <= found.high else "higher" if found.mean > 0 else "lower"
    return f"{100 * found.mean:+.2f}", interval(found, name, "+"), verdict, str(found.n)


def shortened(text, longest):
    """A text of at most `longest` characters: the middle of a longer one is left out."""
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[1 - longest + longest // 2 :]}"


def summary_line(runs):
    """How many runs there are, by their status."""
    return f"{len(runs)} run{'s' * (len(runs) > 1)}: {count_statuses(runs)}"


def label(cells, longest=LONGEST_LABEL):
    """{name: text} on one line."""
    return shortened(", ".join(f"{name}={shortened(text, LONGEST_LABEL // 2)}" for name, text in cells.items()), longest)


def terminal_table(groups):
    """The rows as plain text. Groups that are not comparable are apart."""
    lines = []
    for group in groups:
        reference, lines = group.best if len(group.rows) > 1 else None, lines + _headings(group, groups)
        compared = next((name for name in ACCURACIES if reference and reference.values(name)), "test_accuracy")
        first, *others = (heading for heading, *_ in FIGURES.values())
        head = ["", *group.columns, "n", first, "95 % interval", *others, "runs"]
        table = [[*head, *([f"{FIGURES[compared][0]}, against row {reference.number}"] if reference else [])]]
        for row in group.rows:
            summaries = {name: row.summary(name) for name in FIGURES}
            texts = {name: spread(summary, name) for name, summary in summaries.items()}
            test = texts.pop("test_accuracy"), interval(summaries["test_accuracy"], "test_accuracy") or "-"
            found = difference_texts(row, reference, compared) if reference and row is not reference else ()
            against = [f"{found[0]} ({found[1]}), {found[2]}" if found else "-"] if reference else []
            cells = (shortened(row.cells[name], LONGEST_CELL) for name in group.columns)
            table.append([str(row.number), *cells, str(len(row.seeds)), *test, *texts.values(), row.status, *against])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
    return "\n".join(lines).strip("\n")


def _headings(group, groups):
    lines = ["", f"not comparable with the other rows, because the data differ: {label(group.data)}"] if len(groups) > 1 else []
    return lines + ([f"all with {label(group.common)}"] if group.common else [])


def csv_file(groups):
    """comparison.csv as bytes: a line per row, with all means, intervals and differences in full precision."""
    lines = []
    for number, group in enumerate(groups, 1):
        for row in group.rows:
            line = {"row": row.number, "group": number, **{f"setting_{name}": text for name, text in row.cells.items()}}
            line |= {"runs": len(row.runs), "status": row.status, "n": len(row.seeds), "seeds": " ".join(map(str, row.seeds))}
            for name in FIGURES:
                line |= _numbers(name, row.summary(name))
            for reference, word in zip((group.best, group.first), ("best", "first"), strict=True):
                for name in ACCURACIES:
                    found = difference(row, reference, name) if reference not in (None, row) else None
                    line |= _numbers(f"{name}_minus_{word}", found)
            lines.append(line | {"folders": ";".join(run.name for run in row.runs)})
    file = io.StringIO()
    writer = csv.DictWriter(file, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue().encode(errors="backslashreplace")


def _numbers(name, summary):
    fields = ("n", "mean", "sd", "low", "high")
    return {f"{name}_{field}": getattr(summary, field, None) for field in fields}


def contents(groups, left_out):
    """The variables of the template. Charts are SVG text; everything else is plain text."""
    rows = [row for group in groups for row in group.rows]
    runs = [(row, run) for row in rows for run in row.runs]
    shown = [_group(group, str(index) if index < MOST_CHARTS else None) for index, group in enumerate(groups)]
    return {
        "summary": summary_line([run for _, run in runs]), "rows": len(rows),
        "headings": [heading for heading, *_ in FIGURES.values()], "groups": shown, "left_out": left_out,
        "most_lines": MOST_LINES, "most_charts": MOST_CHARTS, "read_at": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "intervals": sum(bool(cells) for group in shown for table in group["differences"] for _, *both in table["rows"]
                         for cells in both),
        "runs": [(run.name, row.number, run.seed, run.status, f"{run.step:,}", _figures(run))
                 for row, run in runs],
    }


def _figures(run):
    """The figures of one run as texts. An unfinished run has none but the best validation accuracy so far."""
    texts = {name: spread(summarize([value] if value is not None else []), name) for name, value in run.figures.items()}
    if not run.is_finished and len(accuracies := run.validation[1]):
        texts["best_validation_accuracy"] = f"{100 * max(accuracies):.2f} so far"
    return list(texts.values())


def _group(group, name):
    """What the template shows of a Group. `name` is that of its charts, None for no charts."""
    drawn = group.rows[:MOST_LINES]
    styles = {row.number: charts.line_style(index) for index, row in enumerate(drawn)}
    references = dict.fromkeys(row for row in (group.best, group.first) if row and len(row.seeds) > 1)
    return {
        "data": label(group.data), "common": label(group.common, 5 * LONGEST_LABEL), "columns": group.columns, "styles": styles,
        "curves": [] if name is None else _curves(drawn, name),
        "labels": {row.number: label({name: row.cells[name] for name in group.columns}) for row in group.rows},
        "rows": [(row, [(spread(summary, figure), interval(summary, figure), summary.n if summary else 0)
                        for figure in FIGURES for summary in [row.summary(figure)]]) for row in group.rows],
        "differences": [{
            "reference": reference, "is_best": reference is group.best,
            "rows": [(row, *(difference_texts(row, reference, figure) for figure in ACCURACIES))
                     for row in group.rows if row is not reference],
        } for reference in references if len(group.rows) > 1],
    }


def _curves(rows, group):
    """The charts of a group, whose ids begin with `group`: [SVG text]."""
    shown = []
    for kind, factor, heading in (("validation", 100, "validation accuracy in %"), ("training", 1, "training loss")):
        found = {index: curve for index, row in enumerate(rows) if (curve := row.curve(kind))}
        series = {index: (x, *(factor * line for line in lines)) for index, (x, *lines) in found.items()}
        if series:
            ends = ", ".join(f"row {rows[index].number} ends at {y[-1]:.4g}" for index, (_, y, *_) in series.items())
            label = f"{heading.capitalize()} over the epochs: {ends}"
            shown.append(charts.to_svg(charts.bands(series, heading), f"{kind}-{group}", label))
    return shown
