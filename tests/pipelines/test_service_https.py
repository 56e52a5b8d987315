"""`clipmill serve` over TLS, and the command line speaking to it."""

import ipaddress
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.pipelines.service_rig import free_port

pytestmark = pytest.mark.timeout(300)


def certify(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "clipmill")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, form, plain))
    return folder / "cert.pem", folder / "key.pem"


def clipmill(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)


@dataclass(frozen=True)
class Server:
    address: str
    certificate: Path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    certificate, key = certify(tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(tmp_path / "data"), "--port", str(port)]
    command += ["--certificate", str(certificate), "--key", str(key), "--address", "http://127.0.0.1:9"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"https://127.0.0.1:{port}/api/health", verify=str(certificate))
                break
            except httpx.TransportError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)
        yield Server(f"https://127.0.0.1:{port}", certificate)
    finally:
        process.kill()
        process.wait()


def test_the_command_line_trusts_the_certificates_it_is_told_of(server: Server, tmp_path: Path) -> None:
    assert f"{server.address}/ " in (tmp_path / "log").read_text()
    refused = clipmill("list", CLIPMILL_ADDRESS=server.address, SSL_CERT_FILE="")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "its certificate is not trusted (self-signed certificate); set SSL_CERT_FILE to the PEM" in refused.stderr
    told = clipmill("list", CLIPMILL_ADDRESS=server.address, SSL_CERT_FILE=str(server.certificate))
    assert (told.returncode, told.stderr) == (0, "")
    gone = clipmill("status", "nosuchjob", CLIPMILL_ADDRESS=server.address, SSL_CERT_FILE=str(server.certificate))
    assert "no job is called 'nosuchjob'" in gone.stderr
    plain = clipmill("list", CLIPMILL_ADDRESS=server.address.replace("https", "http"))
    assert plain.returncode == 2, "nothing is said in the clear"


def test_a_certificate_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    certificate, key = certify(tmp_path)
    key.write_text("no key")
    done = clipmill("serve", tmp_path / "data", "--port", 0, "--certificate", certificate, "--key", key)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "key.pem" in done.stderr
    alone = clipmill("serve", tmp_path / "data", "--port", 0, "--certificate", certificate)
    assert "--certificate and --key go together" in alone.stderr
