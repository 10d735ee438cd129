"""Fixtures for tests of deployed runs."""

import pytest

from simulations.studies.deployment import SERVER, Deployment
from tests.e2e.deployed import CLIENT_APP


@pytest.fixture
def deploy(tmp_path):
    """Bring up a deployment, with ``CLIENT_APP``; it goes down after the test."""
    up = []

    def bring_up(**options) -> Deployment:
        (tmp_path / "deployed.py").write_text(CLIENT_APP)
        environments = options.pop("environments", {})
        names = [f"client-{number}" for number in range(options.get("clients", 2))]
        for name in [*names, "csg", SERVER]:
            environments[name] = {"APP": str(tmp_path), **environments.get(name, {})}
        up.append(Deployment(tmp_path, environments=environments, **options))
        return up[-1].__enter__()

    yield bring_up
    for deployment in up:
        deployment.__exit__()
