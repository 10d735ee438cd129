"""Keys and certificates for a deployment on one machine, by openssl and ssh-keygen."""

import subprocess
import sys
from pathlib import Path


def make_ca(path: Path) -> None:
    """A certificate authority: ``path`` with ``.key`` and ``.crt``."""
    _run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384",
         "-nodes", "-days", "30", "-subj", f"/CN={path.name}",
         "-keyout", f"{path}.key", "-out", f"{path}.crt")  # fmt: skip


def make_certificate(path: Path, ca: Path, addresses: list[str]) -> None:
    """A server's certificate for IP addresses, signed by ``ca``."""
    names = ",".join(f"IP:{address}" for address in addresses)
    _run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384",
         "-nodes", "-days", "30", "-subj", f"/CN={path.name}", "-CA", f"{ca}.crt",
         "-CAkey", f"{ca}.key", "-addext", f"subjectAltName={names}",
         "-addext", "basicConstraints=critical,CA:FALSE",
         "-keyout", f"{path}.key", "-out", f"{path}.crt")  # fmt: skip


def make_key(path: Path) -> Path:
    """A client's key, if it has none yet; the file of its public half."""
    public = path.with_name(f"{path.name}.pub")
    if not path.exists():
        _run("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(path))
    return public


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        sys.exit(f"keys: {command[0]}: {reason.strip()} (it needs openssl and ssh-keygen)")
