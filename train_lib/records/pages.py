"""HTML pages that refer to no other file. Does not import TensorFlow."""

import pathlib

import jinja2

from train_lib.records.terminal import number, percent


def render(template, variables):
    """Returns a page as bytes: a jinja template, which may include page.css, with all text of `variables` escaped."""
    folders = [template.parent, pathlib.Path(__file__).parent]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(folders))
    environment.filters |= {"number": number, "percent": percent}
    # A class is named after a folder, whose name may contain any bytes.
    return environment.get_template(template.name).render(variables).encode(errors="backslashreplace")
