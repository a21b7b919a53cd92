"""Pages whose figures are made: each stands between <!-- name --> and <!-- /name -->, and a test makes it once more."""

import re


def filled(path, texts):
    """The text of a page with each of {name: Markdown} between its markers.

    Raises:
      SystemExit: a name has not exactly one pair of markers.
    """
    page = path.read_text()
    for name, text in texts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        page, count = pattern.subn(lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page)
        if count != 1:
            raise SystemExit(f"{path}: has {count} pairs of the markers <!-- {name} -->, <!-- /{name} -->, not one")
    return page
