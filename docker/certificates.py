"""Certificates for TLS, and the keys by which clients prove who they are."""

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
_PEM = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class Certified:
    """A private key and its certificate, both PEM."""

    key: bytes
    certificate: bytes


def authority(name: str, days: int) -> Certified:
    """A certificate that signs others, and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(key, name, [], key, None, days)
    return Certified(_private(key), certificate.public_bytes(_PEM))


def signed(name: str, hosts: Sequence[str], by: Certified, days: int) -> Certified:
    """A server's certificate for ``hosts``, names and addresses, signed by an authority.

    Raises:
        ValueError: if a host can be none.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    signer = serialization.load_pem_private_key(by.key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    above = x509.load_pem_x509_certificate(by.certificate)
    names = [alternative(host) for host in hosts]
    certificate = _certificate(key, name, names, signer, above, days)
    return Certified(_private(key), certificate.public_bytes(_PEM))


def hosts_of(certificate: bytes) -> list[str]:
    """Names and addresses that a server's certificate is for."""
    extensions = x509.load_pem_x509_certificate(certificate).extensions
    named = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(one.value) for one in named]


def end_of(certificate: bytes) -> datetime.datetime:
    """When a certificate ends, in UTC."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def client_key() -> tuple[bytes, bytes]:
    """A client's private and public key, P-384 in OpenSSH's formats, as Flower takes them."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return _private(key, serialization.PrivateFormat.OpenSSH), public + b"\n"


def alternative(host: str) -> x509.GeneralName:
    """A host as certificates name it.

    Raises:
        ValueError: if it is neither a name nor an address.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not all(_LABEL.fullmatch(label) for label in host.split(".")):
            raise ValueError(
                f"host {host!r} is neither a name nor an address; give what clients call the "
                "server, as fl.example.org or 192.0.2.7"
            ) from None
        return x509.DNSName(host)


def _certificate(
    key: ec.EllipticCurvePrivateKey,
    name: str,
    alternatives: Sequence[x509.GeneralName],
    signer: ec.EllipticCurvePrivateKey,
    above: x509.Certificate | None,
    days: int,
) -> x509.Certificate:
    """A certificate of ``key``; without ``above``, one that signs others."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above.subject if above else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # of clocks that are behind
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=above is None, path_length=None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
        )
        .add_extension(_usage(signs=above is None), True)
    )
    if above is not None:
        server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), False)
        builder = builder.add_extension(server, False)
    return builder.sign(signer, hashes.SHA256())


def _usage(*, signs: bool) -> x509.KeyUsage:
    no = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    ways = {"encipher_only": False, "decipher_only": False}
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, **no, **ways
    )


def _private(
    key: ec.EllipticCurvePrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> bytes:
    return key.private_bytes(_PEM, form, serialization.NoEncryption())
