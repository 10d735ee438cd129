"""The command that makes a deployment's certificates and keys."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

KEYS = Path(__file__).parents[2] / "docker" / "keys.py"


def keys(folder, *arguments):
    command = [sys.executable, str(KEYS), "--dir", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def made(tmp_path):
    done = keys(tmp_path / "keys", "make", "--host", "fl.example.org", "--clients", "2")
    assert done.returncode == 0, done.stderr
    return tmp_path / "keys"


def _content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_only_the_owner_can_read_private_keys(made):
    private = [p for p in made.rglob("*") if p.name in ("key", "tls.key", "ca.key")]
    assert len(private) == 5
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("place", "host", "good"),
    [
        ("proxy", "fl.example.org", True),
        ("proxy", "other.example.org", False),
        ("server", "localhost", True),
        ("server", "fl.example.org", False),
    ],
)
def test_certificates_hold_for_their_hosts_alone(made, place, host, good):
    def read(path):
        return x509.load_pem_x509_certificate((made / path).read_bytes())

    builder = PolicyBuilder().store(Store([read("authority/ca.crt")]))
    verifier = builder.build_server_verifier(x509.DNSName(host))
    if good:
        assert len(verifier.verify(read(f"{place}/tls.crt"), [])) == 2
    else:
        with pytest.raises(VerificationError):
            verifier.verify(read(f"{place}/tls.crt"), [])


def test_a_clients_folder_is_all_that_its_host_needs(made):
    folder = made / "clients" / "client-1"
    assert {path.name for path in folder.iterdir()} == {"key", "key.pub", "partition", "ca.crt"}
    private = load_ssh_private_key((folder / "key").read_bytes(), None)
    public = load_ssh_public_key((folder / "key.pub").read_bytes())
    assert private.public_key() == public
    assert public.curve.name == "secp384r1"
    assert (folder / "partition").read_text() == "1\n"


def test_nothing_is_overwritten(made):
    before = _content(made)
    for arguments in (["make", "--host", "localhost"], ["add", "client-0"]):
        done = keys(made, *arguments)
        assert done.returncode == 2
        assert "exists" in done.stderr
        assert done.stderr.count("\n") == 1
    assert _content(made) == before


def test_more_clients_get_the_next_partitions(made):
    assert keys(made, "add", "hospital-a").returncode == 0
    known = json.loads((made / "clients.json").read_text())
    assert [of["partition"] for of in known.values()] == [0, 1, 2]
    assert "hospital-a" in keys(made, "list").stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["make", "--host", "no host"], "'no host' is neither a name nor an address"),
        (["make", "--host", "a", "--clients=-1"], "--clients: '-1' is no number"),
        (["make", "--host", "a", "--days", "0"], "--days: '0' is no number"),
        (["add", "../up"], "'../up': use letters"),
        (["add", "a"], "has no authority; keys make"),
        (["revoke", "a"], "'a' is unknown; there are none"),
        (["register", "a"], "'a' is unknown; there are none"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(tmp_path, arguments, reason):
    done = keys(tmp_path / "keys", *arguments)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "keys").exists()


def test_a_superlink_that_is_away_is_named(made):
    done = keys(made, "register", "--superlink", "127.0.0.1:9")
    assert done.returncode == 2
    assert "127.0.0.1:9" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "not registered" in keys(made, "list").stdout
