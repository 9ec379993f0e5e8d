"""An authority of our own, with certificates for a server on loopback and for clients."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.registry import _certificate, _usage


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files in PEM.

    Attributes:
        cert: the certificate.
        key: its key.
    """

    cert: Path
    key: Path


class Authority:
    """Issues certificates.

    Args:
        folder: where its files are put; one authority each.

    Attributes:
        file: its own certificate.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority of {folder.name}")])
        own = (
            _certificate(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        )
        self.file = folder / "authority.pem"
        self.file.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def server(self) -> Pair:
        """Issue one for ``127.0.0.1`` and ``localhost``."""
        return self._issue(["127.0.0.1"], ExtendedKeyUsageOID.SERVER_AUTH)

    def client(self, *names: str) -> Pair:
        """Issue one for a client with these common names: mostly one."""
        return self._issue(names, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(self, names: tuple[str, ...] | list[str], use: x509.ObjectIdentifier) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
        places = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        built = (
            _certificate(subject, self._name, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(key_cert_sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName(places), critical=False)
        )
        stem = f"{len(list(self._folder.iterdir()))}"
        pair = Pair(self._folder / f"{stem}.cert.pem", self._folder / f"{stem}.key.pem")
        pair.cert.write_bytes(built.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        pair.key.touch(mode=0o600)
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair
