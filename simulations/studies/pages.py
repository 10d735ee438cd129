"""Pages that show what studies measured."""

import re
from collections.abc import Mapping
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def fill(page: Path, found: Mapping[str, str]) -> None:
    """Put tables into a page, between comments that name them."""
    text = page.read_text()
    for name, table in found.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        text = pattern.sub(f"{begin}\n{table}\n{end}".replace("\\", r"\\"), text)
    page.write_text(text)
