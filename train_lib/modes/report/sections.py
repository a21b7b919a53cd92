"""The sections of report.html, as HTML from RunFiles. All text that comes from a run is escaped: class names are a user's."""

import bisect
import shlex
from html import escape

import numpy as np

from train_lib.cli import flags as flags_lib
from train_lib.modes.report import settings as report_settings
from train_lib.modes.report.parts import chart, duration, line, missing, picture, table
from train_lib.records import charts
from train_lib.records.terminal import number, percent

MOST_ROWS = 200  # of the table of epochs
STATUS = {
    "completed": "Completed", "early_stopped": "Stopped early, without gain", "diverged": "Diverged: not finite any more",
    "preempted": "Stopped by a signal; the same command, with its --workdir, goes on",
}


def page(files):
    """(title, body) of the page about RunFiles."""
    values = files.values
    title = escape(f"{values.get('model', 'A network')} on {values.get('dataset', 'its data')}")
    parts = [
        ("curves", "Curves", curves(files)), ("epochs", "Epochs", epochs(files)), ("classes", "Classes", classes(files)),
        ("mistakes", "Most confident mistakes", mistakes(files)), ("kernels", "First-layer kernels", kernels(files)),
        ("batch", "A training batch", batch(files)), ("speed", "Speed", speed(files)),
        ("repeat", "Repeat this run", repeat(files)), ("configuration", "Configuration", report_settings.table(values)),
        ("environment", "Environment", environment(files)),
    ]
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in parts)
    body = f"<header><h1>{title}</h1>{summary(files)}<nav aria-label=\"Sections\"><ul>{links}</ul></nav></header>\n<main>"
    for name, heading, content in parts:
        body += f'\n<section id="{name}" aria-labelledby="{name}-heading"><h2 id="{name}-heading">{heading}</h2>'
        body += f"\n{content}\n</section>"
    return title, body + f"\n</main>\n<footer class=\"soft\"><p>{escape(str(files.path))}, read {files.read_at}</p></footer>"


def summary(files):
    """How the run stands, and its main figures."""
    result = files.result
    last = max(files.metrics, key=lambda record: record["step"])
    of = f" of {files.values['epochs']:g}" if "epochs" in files.values else ""
    status = STATUS.get(result.get("status"), "No result yet: under way, or killed")
    status += f". Step {result.get('steps', last['step']):,}, epoch {result.get('epochs', last['epoch']):.3g}{of}."
    best, test = best_record(files), next(iter(files.records("test")), None)
    train_seconds = sum(record.get("train_seconds", 0) for record in files.timing)
    images = sum(record.get("images", 0) for record in files.timing)
    seconds = result.get("seconds", sum(record["seconds"] for record in files.timing))
    shown = [
        ("Test accuracy", test and percent(test["accuracy"]), test and f"top-5 {percent(test.get('top_5_accuracy'))}"),
        ("Best validation accuracy", best and percent(best["accuracy"]), best and f"step {best['step']:,}"),
        ("Newest training loss", number(newest_train(files.records("train"), last["step"]).get("loss")), ""),
        ("Images per second", f"{images / train_seconds:,.0f}" if train_seconds else None, "of the training steps"),
        ("Time", duration(seconds) if seconds else None, "with evaluations and checkpoints"),
        ("Parameters", f"{files.environment['parameters']:,}" if "parameters" in files.environment else None, ""),
    ]
    figures = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in shown if value)
    return f'<p>{escape(status)}</p><dl class="figures">{figures}</dl>'


def best_record(files):
    """The validation record of the best step, None without any."""
    records = [record for record in files.records("validation") if None not in (record.get("loss"), record.get("accuracy"))]
    step = files.result.get("best_step")
    if any(record["step"] == step for record in records):
        return next(record for record in records if record["step"] == step)
    if files.values.get("early_stopping_monitor") == "validation_loss":
        return min(records, key=lambda record: record["loss"], default=None)
    return max(records, key=lambda record: record["accuracy"], default=None)


def newest_train(train, step):
    """The newest of train records, which are in the order of their steps, up to a step; {} without any."""
    place = bisect.bisect_right(train, step, key=lambda record: record["step"])
    return train[place - 1] if place else {}


def curves(files):
    """Loss, accuracy and learning rate over the epochs."""
    train, validation = files.records("train"), files.records("validation")
    shown = []
    for name in ("loss", "accuracy", "learning_rate"):
        factor = 100 if name == "accuracy" else 1
        both = [("training", train), ("validation", validation)] if name != "learning_rate" else [("training", train)]
        series = [(kind, *line(records, name, factor)) for kind, records in both if records]
        unit = name.replace("_", " ") + (" in %" if name == "accuracy" else "")
        ends = ", ".join(f"{kind} ends at {y[-1]:.4g}" for kind, _, y in series if y[-1] == y[-1])
        shown.append(chart(name, f"{unit.capitalize()} over the epochs: {ends}", series, unit))
    note = "" if validation else missing("No validation record.")
    return f'<div class="charts">{"".join(shown)}</div>{note}'


def epochs(files):
    """A row for each evaluation; without a validation split, for each epoch."""
    rows, train_records = files.records("validation"), files.records("train")
    if not rows:
        ends = {int(record["epoch"] - 1e-9): record for record in train_records}
        rows = [{"step": record["step"], "epoch": record["epoch"]} for record in ends.values()]
    best = best_record(files)
    kept = {round(place) for place in np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS))}
    names = ("Epoch", "Step", "Training loss", "Training accuracy", "Validation loss", "Validation accuracy", "Top-5",
             "Learning rate")
    body = ""
    for index, row in enumerate(rows):
        is_best = row is best
        if index not in kept and not is_best:
            continue
        train = newest_train(train_records, row["step"])
        cells = [f"{row['step']:,}", number(train.get("loss")), percent(train.get("accuracy")), number(row.get("loss")),
                 percent(row.get("accuracy")), percent(row.get("top_5_accuracy")), _rate(train.get("learning_rate"))]
        mark = ' class="best"' if is_best else ""
        body += f'<tr{mark}><th scope="row">{row["epoch"]:.3g}{" (best)" if is_best else ""}</th>'
        body += "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    left_out = f"{len(kept)} of {len(rows)} rows, evenly chosen, and the best." if len(kept) < len(rows) else ""
    return table(names, body) + f'<p class="soft">{left_out}</p>'


def classes(files):
    """Accuracy per class and the confusion matrix of the newest tracker."""
    found = files.evaluation
    if not found:
        return missing(f"Nothing was judged class by class yet{_how(files)}")
    names, confusion = found["class_names"], np.array(found["confusion_matrix"])
    rows = ""
    for name, accuracy in sorted(found["accuracy_per_class"].items(), key=lambda pair: (pair[1] is None, pair[1])):
        bar = f'<span class="bar" aria-hidden="true"><i style="width:{100 * (accuracy or 0):.1f}%"></i></span>'
        rows += f'<tr><th scope="row">{escape(name)}</th><td>{bar}<span>{percent(accuracy)}</span></td></tr>'
    off = confusion - np.diag(np.diagonal(confusion))
    top = [divmod(int(place), len(names)) for place in np.argsort(-off, axis=None, kind="stable")[:5]]
    pairs = [f"{names[true]} for {names[taken]} ({off[true, taken]})" for true, taken in top if off[true, taken]]
    text = f"Taken for another most often: {', '.join(pairs)}." if pairs else "Nothing was taken for another class."
    inches = 4.6 + 0.3 * max(0, min(len(names), 25) - 10)
    matrix = charts.to_svg(charts.confusion_matrix(names, confusion, inches=inches), "confusion", f"Confusion matrix. {text}")
    return (f'<p>{_evaluation_image(found)}: accuracy {percent(found["accuracy"])}, top-5 {percent(found["top_5_accuracy"])}, '
            f'loss {number(found["loss"])}.</p><div class="halves"><div>{table(("Class, worst first", "Accuracy"), rows)}</div>'
            f'<figure class="card">{matrix}<figcaption>{escape(text)}</figcaption></figure></div>')


def mistakes(files):
    """The images that the network got wrong and was most certain of, each with its five most probable classes."""
    if not files.evaluation:
        return missing(f"None is known yet{_how(files)}")
    if not files.mistakes:
        return missing("None was noted.")
    shown = ""
    for entry in files.mistakes:
        items = ""
        for prediction in entry["predictions"]:
            share = f"{100 * prediction['probability']:.0f} %"
            mark = ' class="true"' if prediction["class"] == entry["true_class"] else ""
            items += (f'<li{mark} style="--share:{100 * prediction["probability"]:.1f}%">'
                      f'<span>{escape(prediction["class"])}</span><span>{share}</span></li>')
        alt = f"{entry['true_class']}, taken for {entry['predictions'][0]['class']}"
        shown += (f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{escape(entry["image"])}">'
                  f'<figcaption>{escape(entry["true_class"])}<ol>{items}</ol></figcaption></figure>')
    text = "The true class stands below each image, and in orange where it is among the five most probable."
    return f'<p>{_evaluation_image(files.evaluation)}. {text}</p><div class="mistakes">{shown}</div>'


def kernels(files):
    """The kernels after the first and the last evaluation."""
    found = files.pictures.get("kernels", [])
    text = "Each kernel is scaled by its own largest weight; a weight of 0 is grey."
    if not found:
        return missing("Drawn at the first evaluation, of a first convolution over three channels.")
    shown = "".join(picture(png, f"First-layer kernels, step {step:,}") for step, png in reversed(found))
    return f'<p>{text}</p><div class="halves">{shown}</div>'


def batch(files):
    """A batch as the network sees it."""
    found = files.pictures.get("batch", [])
    if not found:
        return missing("Not there.")
    step, png = found[0]
    augment = files.values.get("augment") or "none"
    return picture(png, f"The first images of the batch of step {step:,}, after augmentation ({augment})")


def speed(files):
    """Throughput, and the share of time waiting for data, over the run."""
    if not files.timing:
        return missing("No record in timing.jsonl.")
    per_step = files.metrics[0]["epoch"] / max(files.metrics[0]["step"], 1)
    records = [record | {"epoch": record["step"] * per_step} for record in files.timing]
    throughput = line(records, "images_per_second")
    waiting = line(records, "data_wait_share", 100)
    shown = ""
    for name, (x, y), unit in (("throughput", throughput, "images/s"), ("waiting", waiting, "waiting for data in % of the time")):
        if not np.isnan(y).all():
            shown += chart(name, f"{unit} over the epochs: median {np.nanmedian(y):,.3g}", [("training", x, y)], unit)
    return f'<div class="charts">{shown}</div>'


def repeat(files):
    """The commands that do the same once more."""
    arguments = flags_lib.repeat_arguments(files.values)
    shown = "" if arguments or files.has_flagfile else missing("Neither config.json nor run.flags is there.")
    if files.has_flagfile:
        flagfile = shlex.quote(f"--flagfile={files.path / 'run.flags'}")
        shown = f"<h3>With this folder at hand</h3><pre>python main.py {escape(flagfile)} --workdir=NEW_FOLDER</pre>"
    if arguments:
        command = " \\\n  ".join(["python main.py", *map(shlex.quote, arguments)])
        shown = f"<h3>Anywhere</h3><pre>{escape(command)}</pre>" + shown
    return shown + f"<h3>Judge it again</h3><pre>{escape(_evaluate_command(files))}</pre>"


def environment(files):
    """What the run was computed with and on."""
    if not files.environment:
        return missing("Not noted.")
    rows = ""
    for name, value in files.environment.items():
        text = (" x " if name == "image_shape" else ", ").join(map(str, value)) if isinstance(value, list) else str(value)
        rows += f'<tr><th scope="row">{escape(name.replace("_", " "))}</th><td>{escape(text) or "none"}</td></tr>'
    return f'<div class="scroll"><table class="text"><tbody>{rows}</tbody></table></div>'


def _evaluation_image(evaluation):
    """What the newest judgement was made on, as HTML."""
    crops = evaluation.get("test_crops", 1)
    views = f", mean of {crops} views" if crops > 1 else ""
    return f"Judged on <code>{escape(evaluation['split'])}</code>, {evaluation['examples']:,} examples, " \
           f"by the weights of step {evaluation['step']:,}{views}"


def _how(files):
    return f": a run does it when it evaluates its validation split, and so does <code>{escape(_evaluate_command(files))}</code>."


def _evaluate_command(files):
    return f"python main.py --mode=evaluate --workdir={shlex.quote(str(files.path))}"


def _rate(value):
    return "-" if value is None else f"{value:.3g}"
