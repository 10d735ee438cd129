"""What tests of clients share."""

import pytest

from tests.client.proxied import Proxied


@pytest.fixture
def proxied(tmp_path, request):
    proxied = Proxied(tmp_path, getattr(request, "param", {}))
    try:
        proxied.start()
        yield proxied
    finally:
        proxied.close()
