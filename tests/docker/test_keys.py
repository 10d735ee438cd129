"""The command that makes a deployment's certificates and keys."""

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from server.flower_cli import script
from simulations.processes import free_port, listens, wait_until

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


def test_commands_that_overlap_lose_no_client(made):
    def add(name):
        command = [sys.executable, str(KEYS), "--dir", str(made), "add", name]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    adding = [add(f"hospital-{letter}") for letter in "abcdef"]
    assert [done.wait(60) for done in adding] == [0] * 6
    known = json.loads((made / "clients.json").read_text())
    assert sorted(of["partition"] for of in known.values()) == [*range(8)]


def test_more_clients_get_the_lowest_free_partitions(made):
    assert keys(made, "add", "hospital-a").returncode == 0
    known = json.loads((made / "clients.json").read_text())
    assert [of["partition"] for of in known.values()] == [0, 1, 2]
    assert "hospital-a" in keys(made, "list").stdout
    known["client-1"]["revoked"] = True
    (made / "clients.json").write_text(json.dumps(known))
    assert keys(made, "add", "hospital-b", "hospital-c").returncode == 0
    known = json.loads((made / "clients.json").read_text())
    assert (known["hospital-b"]["partition"], known["hospital-c"]["partition"]) == (1, 3)
    assert (made / "clients" / "hospital-b" / "partition").read_text() == "1\n"


@pytest.mark.parametrize("left", [["server"], ["authority"], ["authority", "server", "proxy"]])
def test_what_was_broken_off_or_made_by_compose_is_made_whole(made, left):
    """Before there is a client, nobody trusts an authority; folders may be there and empty."""
    for folder in [*made.iterdir()]:
        if folder.name not in left:
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    if left == ["server"]:
        for file in (made / "server").iterdir():
            file.unlink()
    done = keys(made, "make", "--host", "fl2.example.org", "--clients", "1")
    assert done.returncode == 0, done.stderr
    ca = (made / "authority" / "ca.crt").read_bytes()
    for place in ("server", "proxy", "clients/client-0"):
        assert (made / place / "ca.crt").read_bytes() == ca


@pytest.mark.parametrize("away", [["clients/client-0"], ["clients/client-0", "clients/client-1"]])
def test_a_lost_record_costs_no_authority_that_clients_trust(made, away):
    """Their folders are on their own hosts."""
    for name in away:
        shutil.rmtree(made / name)
    (made / "clients.json").unlink()
    before = _content(made / "authority")
    done = keys(made, "make", "--host", "fl.example.org", "--clients", "1")
    assert (done.returncode == 0) == (len(away) == 2), done.stderr
    assert _content(made / "authority") == before


def test_a_client_that_was_made_and_not_noted_is_taken_as_it_is(made):
    record = made / "clients.json"
    before = record.read_bytes()
    assert keys(made, "add", "hospital-a").returncode == 0
    key = (made / "clients" / "hospital-a" / "key").read_bytes()
    record.write_bytes(before)
    done = keys(made, "add", "hospital-a")
    assert done.returncode == 0, done.stderr
    assert (made / "clients" / "hospital-a" / "key").read_bytes() == key
    assert json.loads(record.read_text())["hospital-a"]["partition"] == 2
    record.write_bytes(before)
    assert keys(made, "add", "b").returncode == 0
    done = keys(made, "add", "hospital-a")
    assert done.returncode == 2
    assert "another client has its partition 2; move it away" in done.stderr


@pytest.fixture
def superlink(made):
    """A real one of these keys; its address."""
    port, own = free_port(), made / "server"
    command = [script("flower-superlink"), "--host", "127.0.0.1", "--port", str(port),
               "--isolation", "process", "--enable-supernode-auth",
               "--ssl-ca-certfile", own / "ca.crt", "--ssl-certfile", own / "tls.crt",
               "--ssl-keyfile", own / "tls.key"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: listens(process.pid, port), "the SuperLink does not listen")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_what_the_superlink_did_and_was_not_noted_is_made_up_for(made, superlink):
    """As when its answer comes too late, or the disk is full."""

    def do(*arguments, status=0):
        done = keys(made, *arguments, "--superlink", superlink)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    record, place = made / "clients.json", made / "clients" / "client-1"
    assert do("register", "client-0") == "registered client-0\n"
    before = record.read_bytes()
    do("register", "client-1")
    noted = record.read_bytes()
    record.write_bytes(before)
    assert do("register") == "registered client-1\n"
    assert record.read_bytes() == noted
    do("revoke", "client-1")
    revoked = record.read_bytes()
    record.write_bytes(noted)
    do("revoke", "client-1")
    assert record.read_bytes() == revoked
    assert not place.exists()
    assert "nothing to revoke" in do("revoke", "client-1", status=2)
    assert do("register") == "registered none: all are\n"


@pytest.mark.parametrize("hosts", [[], ["fl2.example.org", "192.0.2.7"]])
def test_renewed_certificates_are_of_the_same_authority(made, hosts):
    before = _content(made)
    options = [part for host in hosts for part in ("--host", host)]
    done = keys(made, "renew", "--days", "30", *options)
    assert done.returncode == 0, done.stderr
    until = done.stdout.split("until ")[1].split(";")[0]
    assert f"hold until {until}" in keys(made, "list").stdout
    after = _content(made)
    changed = {str(path.relative_to(made)) for path in after if after[path] != before.get(path)}
    assert changed == {f"{place}/tls.{kind}" for place in ("server", "proxy")
                       for kind in ("key", "crt")}  # fmt: skip
    store = Store([x509.load_pem_x509_certificate((made / "authority/ca.crt").read_bytes())])
    verifier = PolicyBuilder().store(store).build_server_verifier
    proxy = x509.load_pem_x509_certificate((made / "proxy/tls.crt").read_bytes())
    assert proxy.not_valid_after_utc.strftime("%Y-%m-%d") == until
    assert len(verifier(x509.DNSName((hosts or ["fl.example.org"])[0])).verify(proxy, [])) == 2
    for place in ("server", "proxy"):
        key = (made / place / "tls.key").read_bytes()
        assert stat.S_IMODE((made / place / "tls.key").stat().st_mode) == 0o600
        certificate = x509.load_pem_x509_certificate((made / place / "tls.crt").read_bytes())
        assert load_pem_private_key(key, None).public_key() == certificate.public_key()


def test_without_the_authoritys_key_nothing_is_renewed(made):
    (made / "authority" / "ca.key").unlink()
    before = _content(made)
    done = keys(made, "renew")
    assert done.returncode == 2
    assert "ca.key: is not there; bring it back" in done.stderr
    assert _content(made) == before
    assert keys(made, "add", "hospital-a").returncode == 0, "the key is not needed for clients"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["make", "--host", "no host"], "'no host' is neither a name nor an address"),
        (["make", "--host", "a", "--clients=-1"], "--clients: '-1' is no number"),
        (["make", "--host", "a", "--days", "0"], "--days: '0' is no number"),
        (["add", "../up"], "'../up': use letters"),
        (["add", "a"], "has no authority; keys make"),
        (["renew"], "has no authority; keys make"),
        (["make", "--host", "a", "--days", "4000"], "--days 4000: the authority ends on 20"),
        (["renew", "--days", "0"], "--days: '0' is no number"),
        (["revoke", "a"], "'a' is unknown; there are none"),
        (["register", "a"], "'a' is unknown; there are none"),
        (["register"], "has no authority; keys make"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(tmp_path, arguments, reason):
    done = keys(tmp_path / "keys", *arguments)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "keys").exists()


@pytest.mark.slow
def test_a_superlink_that_is_away_is_named(made):
    done = keys(made, "register", "--superlink", "127.0.0.1:9")
    assert done.returncode == 2
    assert "127.0.0.1:9" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "not registered" in keys(made, "list").stdout
