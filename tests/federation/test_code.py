"""Client and server of different code are told apart, and told."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from federation.code import CODE, CodeError, check_code, code_identity

ROOT = Path(__file__).parents[2]
PRINT = "import federation.code as c; print(c.code_identity())"


def _identity_of(folder: Path) -> str:
    command = [sys.executable, "-c", PRINT]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.slow
def test_a_change_of_a_source_makes_it_other_code(tmp_path):
    for package in ("csg_core", "federation"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    assert _identity_of(tmp_path) == code_identity(), "the same code, elsewhere"
    (tmp_path / "csg_core" / "codecs" / "more.py").write_text("")
    assert _identity_of(tmp_path) != code_identity()


def test_other_code_is_refused_by_name():
    check_code({CODE: code_identity()})
    with pytest.raises(CodeError) as caught:
        check_code({CODE: "csg-fl 0.0.9 (0123456789ab)"})
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"this is {code_identity()}, the run needs csg-fl 0.0.9 (0123456789ab)")
    assert "install the same csg-fl" in line
    with pytest.raises(CodeError, match="the run needs csg-fl of before"):
        check_code({})
