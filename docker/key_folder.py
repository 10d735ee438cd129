"""The folder of a deployment's keys, and which clients its SuperLink lets in: see keys.py."""

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import certificates
from superlink import KeyInUseError, SuperLink

from federation.files import replace_file
from federation.locks import take_lock

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_INSIDE = ["server", "localhost", "127.0.0.1"]  # as the proxy and the server's own side call it
_AUTHORITY_DAYS = 3650
_PATIENCE_S = 90.0  # with another command; the SuperLink is waited for 60 s


class KeysError(ValueError):
    """What was asked for cannot be done; the message says why."""


class KeyFolder:
    """The folder of a deployment's keys: ``authority``, ``server``, ``proxy``, ``clients``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = path / "clients.json"  # by name: partition, node id, whether revoked

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands from changing the folder; each reads what the last has written.

        Raises:
            KeysError: if another command is at it for 90 s.
        """
        try:
            folder = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:  # in which nothing can be lost
            yield
            return
        try:
            until = time.monotonic() + _PATIENCE_S
            while not take_lock(folder):
                if time.monotonic() > until:
                    raise KeysError(f"{self.path}: another keys command is at it; wait for its end")
                time.sleep(0.1)
            yield
        finally:
            os.close(folder)

    def make(self, hosts: Sequence[str], clients: int, days: int) -> None:
        """A new authority, the certificates of server and proxy, and clients ``client-0`` and on.

        What was broken off before there was a client is made whole, by the same authority.

        Raises:
            KeysError: if there are clients already, or a host can be none.
        """
        trusted = self.path / "authority"
        made = [of for place in ("clients", "revoked") for of in (self.path / place).glob("*/key")]
        if self.clients() or made:
            raise KeysError(
                f"{trusted}: exists, and clients trust it; keys add makes more "
                "clients, another --dir another deployment"
            )
        for host in hosts:
            certificates.alternative(host)  # refused before anything is written
        if _filled(trusted):
            authority = self._authority()
            _check_days(days, authority)
        else:
            authority = certificates.authority("csg-fl authority", _AUTHORITY_DAYS)
            _check_days(days, authority)
            with _whole(trusted) as folder:
                _write(folder / "ca.key", authority.key, 0o600)
                _write(folder / "ca.crt", authority.certificate, 0o644)
        for place, names in (("server", _INSIDE), ("proxy", hosts)):
            signed = certificates.signed(f"csg-fl {place}", names, authority, days)
            if _filled(self.path / place):
                shutil.rmtree(self.path / place)
            with _whole(self.path / place) as folder:
                _write(folder / "tls.key", signed.key, 0o600)
                _write(folder / "tls.crt", signed.certificate, 0o644)
                _write(folder / "ca.crt", authority.certificate, 0o644)
        self.add([f"client-{number}" for number in range(clients)])

    def renew(self, hosts: Sequence[str], days: int) -> None:
        """New keys and certificates of server and proxy, by the authority that clients trust.

        Args:
            hosts: of the proxy; none: those of its certificate so far.
            days: for which they hold.

        Raises:
            KeysError: if the authority's key or a certificate is not there, or the authority
                ends before.
            ValueError: if a host can be none.
        """
        authority = self._authority()
        _check_days(days, authority)
        proxy = hosts or certificates.hosts_of(self._certificate("proxy"))
        made = {
            place: certificates.signed(f"csg-fl {place}", names, authority, days)
            for place, names in (("server", _INSIDE), ("proxy", proxy))
        }
        for place, signed in made.items():
            replace_file(self.path / place / "tls.key", signed.key, private=True)
            replace_file(self.path / place / "tls.crt", signed.certificate)

    def ends(self) -> datetime:
        """When the first of the certificates of server and proxy ends.

        Raises:
            KeysError: if there is none.
        """
        return min(certificates.end_of(self._certificate(place)) for place in ("server", "proxy"))

    def add(self, names: Sequence[str]) -> None:
        """Keys of more clients, each with the lowest partition that no client has.

        That of a revoked client is free again. A folder that is there and was not noted, as the
        command that made it was broken off, is taken as it is.

        Raises:
            KeysError: if a name is taken or can be none, or there is no authority.
        """
        known = self.clients()
        for name in names:
            if not _NAME.fullmatch(name):
                raise KeysError(f"client {name!r}: use letters, digits and hyphens, as hospital-a")
            if name in known:
                raise KeysError(f"client {name!r} exists or did; choose another name")
            authority = self._of_authority("ca.crt")
            held = {of["partition"] for of in known.values() if not of["revoked"]}
            partition = min(set(range(len(held) + 1)) - held)
            place = self.path / "clients" / name
            if _filled(place):
                partition = self._unnoted(place, held)
            else:
                with _whole(place) as folder:
                    private, public = certificates.client_key()
                    _write(folder / "key", private, 0o600)
                    _write(folder / "key.pub", public, 0o644)
                    _write(folder / "partition", f"{partition}\n".encode(), 0o644)
                    _write(folder / "ca.crt", authority, 0o644)
            known[name] = {"partition": partition, "node": None, "revoked": False}
            self._remember(known)

    def register(self, names: Sequence[str], superlink: str) -> list[str]:
        """Let clients in; if none is named, all whom the SuperLink does not know; their names.

        It forgets all of them with its database. One whom it knows, but whose node id was not
        noted here, as the answer was lost, has the one node id that is no other client's.

        Raises:
            KeysError: if there is no such client, or it was revoked.
            SuperLinkError: if the SuperLink cannot be reached, or refuses.
        """
        known = self.clients()
        for name in names:
            if self._client(known, name)["revoked"]:
                raise KeysError(f"client {name!r} was revoked; keys add makes a new one")
        asked = self._superlink(superlink)
        nodes = asked.nodes()
        wanted = names or [
            name for name, of in known.items() if not of["revoked"] and of["node"] not in nodes
        ]
        for name in wanted:
            try:
                node = asked.register(self.path / "clients" / name / "key.pub", name)
            except KeyInUseError:
                others = nodes - {of["node"] for of in known.values()}
                if len(others) != 1:
                    raise
                (node,) = others
            known[name]["node"] = node
            self._remember(known)
        return list(wanted)

    def revoke(self, name: str, superlink: str) -> None:
        """Turn a client away, now and whenever it comes back.

        It is noted first, so that whatever comes in between can be revoked again.

        Raises:
            KeysError: if there is no such client, or it is not let in.
            SuperLinkError: if the SuperLink cannot be reached, or refuses.
        """
        known = self.clients()
        client = self._client(known, name)
        asked = self._superlink(superlink)
        let_in = client["node"] is not None and client["node"] in asked.nodes()
        if not let_in and (client["revoked"] or client["node"] is None):
            raise KeysError(f"client {name!r} is not registered; there is nothing to revoke")
        known[name] = {**client, "revoked": True}
        self._remember(known)
        place = self.path / "clients" / name
        if place.exists():  # so that no client of this host takes it up again
            (self.path / "revoked").mkdir(mode=0o700, exist_ok=True)
            place.rename(self.path / "revoked" / name)
        if let_in:
            asked.unregister(client["node"])

    def clients(self) -> dict[str, dict[str, Any]]:
        """What is known of the clients, by name.

        Raises:
            KeysError: if the record is damaged.
        """
        try:
            found: dict[str, dict[str, Any]] = json.loads(self._known.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise KeysError(f"{self._known}: is damaged ({error}); restore it") from error
        return found

    def _client(self, known: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
        if name not in known:
            there = ", ".join(known) or "none"
            raise KeysError(f"client {name!r} is unknown; there are {there}")
        return known[name]

    def _remember(self, known: dict[str, dict[str, Any]]) -> None:
        replace_file(self._known, json.dumps(known, indent=1).encode() + b"\n")

    def _unnoted(self, place: Path, held: set[int]) -> int:
        """The partition of a client's folder which the record does not have."""
        try:
            partition = int((place / "partition").read_text())
        except (OSError, ValueError) as error:
            raise KeysError(f"{place}: exists, and is no client's folder; move it away") from error
        if partition in held:
            raise KeysError(
                f"{place}: exists, and another client has its partition {partition}; move it away"
            )
        return partition

    def _superlink(self, address: str) -> SuperLink:
        self._of_authority("ca.crt")  # else nothing proves the SuperLink
        return SuperLink(address, self.path / "server" / "ca.crt")

    def _authority(self) -> certificates.Certified:
        return certificates.Certified(self._of_authority("ca.key"), self._of_authority("ca.crt"))

    def _of_authority(self, name: str) -> bytes:
        folder = self.path / "authority"
        if not folder.exists():
            raise KeysError(f"{self.path}: has no authority; keys make --host NAME makes one")
        try:
            return (folder / name).read_bytes()
        except FileNotFoundError as error:
            raise KeysError(f"{folder / name}: is not there; bring it back for this") from error

    def _certificate(self, place: str) -> bytes:
        path = self.path / place / "tls.crt"
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise KeysError(f"{path}: is not there; keys make --host NAME makes it") from error


def _check_days(days: int, authority: certificates.Certified) -> None:
    end = certificates.end_of(authority.certificate)
    if datetime.now(UTC) + timedelta(days=days) > end:
        raise KeysError(f"--days {days}: the authority ends on {end:%Y-%m-%d}; give fewer")


def _write(path: Path, content: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(content)


def _filled(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A new folder that only its owner can open, there with all its files or not at all."""
    if _filled(folder):
        raise KeysError(f"{folder}: exists; nothing is overwritten")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))  # its mode is 0700
    try:
        yield partial
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
