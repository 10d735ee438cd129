import os

import pytest

from federation.files import replace_file, replace_files


@pytest.mark.parametrize(
    ("private", "umask", "mode"),
    [(False, 0o022, 0o644), (False, 0o002, 0o664), (False, 0o077, 0o600), (True, 0o022, 0o600)],
)
def test_a_file_is_readable_as_the_umask_says_or_by_its_owner_alone(tmp_path, private, umask, mode):
    path = tmp_path / "a"
    before = os.umask(umask)
    try:
        for content in (b"1", b"23"):
            replace_file(path, content, private=private)
            assert path.read_bytes() == content
    finally:
        os.umask(before)
    assert os.stat(path).st_mode & 0o777 == mode
    assert list(tmp_path.iterdir()) == [path]


def test_of_several_files_none_is_replaced_before_all_are_written(tmp_path):
    """As on a disk that is full after the first."""
    first, second = tmp_path / "a", tmp_path / "no such folder" / "b"
    first.write_bytes(b"old")
    with pytest.raises(OSError, match="No such file or directory") as raised:
        replace_files({first: b"new", second: b"new"})
    assert raised.value.filename == str(second)
    assert first.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [first]
