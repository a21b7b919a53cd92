"""Pages with generated parts: each part is between <!-- name --> and <!-- /name -->, and a test checks that it is up to date."""

import re


def filled(path, texts):
    """Returns the text of a page with new parts between its markers.

    Args:
      path: file of the page.
      texts: {name: Markdown}.

    Raises:
      SystemExit: the page does not have exactly one pair of markers for a name.
    """
    page = path.read_text()
    for name, text in texts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        page, count = pattern.subn(lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page)
        if count != 1:
            raise SystemExit(f"{path}: has {count} pairs of the markers <!-- {name} -->, <!-- /{name} -->, not one")
    return page
