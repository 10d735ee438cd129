"""What studies measured, as JSON, and the pages that show it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federation.files import replace_file

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"


def keep_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    """Write what was measured, whole or not at all; makes the file's folder.

    Without ``indent``, it is one line.
    """
    path.parent.mkdir(exist_ok=True)
    replace_file(path, (json.dumps(content, indent=indent) + "\n").encode())


def fill(found: Mapping[str, str], *pages: Path) -> None:
    """Put tables into pages, between comments that name them.

    Raises:
        ValueError: if there is no place for a table in any page; all are left as they were.
    """
    texts = {page: page.read_text("utf-8") for page in pages}
    for name, table in found.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not any(pattern.search(text) for text in texts.values()):
            names = ", ".join(str(page) for page in pages)
            raise ValueError(f"{names}: no place for {name}; write {begin} and {end} there")
        whole = f"{begin}\n{table}\n{end}".replace("\\", r"\\")
        texts = {page: pattern.sub(whole, text) for page, text in texts.items()}
    for page, text in texts.items():
        replace_file(page, text.encode())
