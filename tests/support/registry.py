"""A real registry (Debian's docker-registry) on a free loopback port, optionally with Basic auth or TLS."""

import ctypes
import ctypes.util
import datetime as dt
import ipaddress
import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support import parts, procs

_LISTENING = re.compile(rb"listening on 127\.0\.0\.1:(\d+)")


@dataclass
class Registry:
    """A running registry; use it in a `with` block or call `stop`.

    Attributes:
        host: `127.0.0.1:PORT`, as it stands in references.
        url: base URL, with its scheme.
        storage: the folder that holds the registry's blobs, for tests that damage or count them.
        ca_path: the authority to trust, None without TLS.
        credentials: (user, password), None without auth.
        proc: the process; its log holds one line for each request.

    """

    host: str
    url: str
    storage: Path
    ca_path: Path | None
    credentials: tuple[str, str] | None
    proc: procs.Proc

    def stop(self) -> None:
        """End the registry; may be called again."""
        self.proc.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def start_registry(tmp_path: Path, *, htpasswd: tuple[str, str] | None = None, tls: bool = False) -> Registry:
    """Start a registry that allows deletes and keeps its data below `tmp_path/registry`.

    Args:
        tmp_path: a folder of the caller's; one registry each.
        htpasswd: (user, password) to demand by Basic auth.
        tls: serve HTTPS for 127.0.0.1 and localhost with a certificate of an authority made for it.

    """
    home = tmp_path / "registry"
    home.mkdir()
    http: dict[str, object] = {"addr": "127.0.0.1:0", "secret": secrets.token_hex(16)}
    config: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {
            "filesystem": {"rootdirectory": str(home / "data")},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": http,
    }
    ca_path = None
    if tls:
        ca_path, certificate, key = _make_certificates(home)
        http["tls"] = {"certificate": str(certificate), "key": str(key)}
    if htpasswd:
        users = home / "htpasswd"
        users.write_text(f"{htpasswd[0]}:{_bcrypt(htpasswd[1])}\n")
        config["auth"] = {"htpasswd": {"realm": "registry", "path": str(users)}}
    config_file = home / "config.yml"
    config_file.write_text(json.dumps(config))  # JSON is YAML
    log = home / "log"
    proc = procs.start([parts.find("docker-registry"), "serve", config_file], log=log, env=parts.env())
    try:
        proc.wait_until(lambda: _LISTENING.search(log.read_bytes()) is not None)
        found = _LISTENING.search(log.read_bytes())
        assert found
        port = int(found[1])
        proc.wait_until(lambda: procs.accepts(("127.0.0.1", port)))
    except BaseException:
        proc.end()
        raise
    host = f"127.0.0.1:{port}"
    scheme = "https" if tls else "http"
    return Registry(host, f"{scheme}://{host}", home / "data", ca_path, htpasswd, proc)


def _bcrypt(password: str) -> str:
    """Hash with libcrypt: the registry takes bcrypt only, and Python's own `crypt` is gone after 3.12."""
    library = ctypes.CDLL(ctypes.util.find_library("crypt") or "libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    # A constant salt is fine for a test's password; cost 4 is bcrypt's lowest, and each request pays it.
    hashed = library.crypt(password.encode(), b"$2b$04$abcdefghijklmnopqrstuu")
    assert isinstance(hashed, bytes)
    return hashed.decode()


def _make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Write an authority, a certificate it signed and its key; return the three paths."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pluginsvc test authority")])
    ca_file, cert_file, key_file = (folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
    ca_use = _usage(key_cert_sign=True)
    ca = (
        _certificate(ca_name, ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(ca_use, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
    certificate = (
        _certificate(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")]), ca_name, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(key_cert_sign=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .add_extension(names, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return ca_file, cert_file, key_file


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=2))
    )


def _usage(*, key_cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not key_cert_sign,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
