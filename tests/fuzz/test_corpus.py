"""What the fuzzer begins with, and what it ever found, goes through the doors without it."""

from pathlib import Path

import pytest

from tests.fuzz import seed
from tests.fuzz.__main__ import HERE, NAMES
from tests.fuzz.doors import DOORS

CORPUS = HERE / "corpus"


@pytest.mark.parametrize("door", NAMES)
def test_every_input_gives_a_sound_result_or_a_refusal(door: str) -> None:
    files = sorted((CORPUS / door).iterdir())
    assert files
    for file in files:
        try:
            DOORS[door](file.read_bytes())
        except BaseException as error:
            raise AssertionError(f"{file.name}: {error!r}") from error


def test_the_seeds_are_those_of_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a change of a format leaves a corpus behind that no longer gets past the header."""
    monkeypatch.setattr(seed, "HERE", tmp_path)
    seed.main()
    for door in NAMES:
        written = {file.name: file.read_bytes() for file in (tmp_path / "corpus" / door).iterdir()}
        kept = {file.name: file.read_bytes() for file in (CORPUS / door).glob("seed-*")}
        assert kept == written
    assert sum(len(file.read_bytes()) for file in CORPUS.rglob("*") if file.is_file()) < 300_000
