"""The files of an evaluated split: evaluation.json, mistakes.json, and pictures that are drawn from both.

`--mode=evaluate` writes them into the workdir, training into the folder of its pictures.
"""

import base64
import json

import tensorflow as tf

from train_lib.records import charts

FILES = EVALUATION, MISTAKES = "evaluation.json", "mistakes.json"


def write(workdir, folder, evaluator, step, split_name, class_names, test_crops=1):
    """Writes the newest results of a SplitEvaluator for the weights of `step`; returns the path of evaluation.json.

    `folder` is the name of a folder in the workdir, "." for the workdir itself.
    """
    about = {"checkpoint": f"step-{step:08d}", "step": step, "split": split_name, "test_crops": test_crops}
    totals = evaluator.totals
    mistakes = [{
        "true_class": class_names[mistake.label],
        "predictions": [{"class": class_names[index], "probability": float(probability)}
                        for index, probability in zip(mistake.classes, mistake.probabilities, strict=True)],
        "image": base64.b64encode(tf.io.encode_png(mistake.image).numpy()).decode(),
    } for mistake in evaluator.mistakes.worst]
    workdir.write_json(f"{folder}/{MISTAKES}", about | {"mistakes": mistakes})
    return workdir.write_json(f"{folder}/{EVALUATION}", {
        **about,
        **totals.summary(),
        "accuracy_per_class": dict(zip(class_names, totals.accuracy_per_class(), strict=True)),
        "class_names": list(class_names),
        "confusion_matrix": totals.confusion.tolist(),
    })


def draw(folder):
    """Draws the files of a folder: {"confusion_matrix": bytes of a PNG file, "mistakes": the same, if there were any}."""
    evaluation, mistakes = (json.loads((folder / name).read_text()) for name in FILES)
    title = f"{evaluation['split']}, step {evaluation['step']}"
    figures = {"confusion_matrix": charts.confusion_matrix(evaluation["class_names"], evaluation["confusion_matrix"], title)}
    if mistakes["mistakes"]:
        figures["mistakes"] = charts.mistakes(mistakes["mistakes"], f"most confident mistakes, {title}")
    return {name: charts.to_png(figure) for name, figure in figures.items()}
