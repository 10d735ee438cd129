import os

import pytest

from federation.files import replace_file


@pytest.mark.parametrize(("private", "mode"), [(False, 0o644), (True, 0o600)])
def test_a_file_is_readable_by_all_or_by_its_owner_alone(tmp_path, private, mode):
    path = tmp_path / "a"
    for content in (b"1", b"23"):
        replace_file(path, content, private=private)
        assert path.read_bytes() == content
    assert os.stat(path).st_mode & 0o777 == mode
    assert list(tmp_path.iterdir()) == [path]
