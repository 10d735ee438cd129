"""The README's Python runs as written."""

import re
from pathlib import Path


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    readme = Path(__file__).parents[1] / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, str(readme), "exec"), {})
    assert "853,018 -> 160,450" in capsys.readouterr().out
