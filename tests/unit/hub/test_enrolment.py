"""Enrolment against a real server: a refusal of any kind leaves the node as it was."""

import datetime
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent.errors import (
    AlreadyEnrolledError,
    CodeRefusedError,
    HubCertificateError,
    HubProtocolError,
    HubUnreachableError,
    InsecureUrlError,
    NameTakenError,
    OutstationError,
    StorageError,
)
from agent.hub.enrolment import enroll
from agent.hub.fake import FakeHub
from agent.identity import load_identity
from agent.paths import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(state=tmp_path / "new" / "state", runtime=tmp_path / "run")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str, str]:
    """A self-made certificate for 127.0.0.1: server context, PEM text, SHA-256 fingerprint."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "portal")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(__import__("ipaddress").ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    (folder / "cert.pem").write_bytes(pem)
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context, pem.decode(), made.fingerprint(hashes.SHA256()).hex(":")


async def test_good_code_stores_an_identity_that_only_its_owner_can_read(paths: Paths) -> None:
    async with FakeHub() as hub:
        identity = await enroll(paths, hub.url, code=" GOOD-CODE ", name="greenhouse")
    assert load_identity(paths) == identity
    assert identity.node_name == "greenhouse"
    assert paths.identity.stat().st_mode & 0o777 == 0o600
    assert identity.private_key not in repr(identity)
    assert [path.name for path in paths.state.iterdir()] == ["identity.json"]


async def test_name_is_made_by_the_portal_when_none_is_given(paths: Paths) -> None:
    async with FakeHub() as hub:
        identity = await enroll(paths, hub.url, code="GOOD-CODE")
    assert identity.node_name == f"{socket.gethostname()}-1"


async def test_second_enrolment_is_refused_and_changes_nothing(paths: Paths) -> None:
    async with FakeHub() as hub:
        first = await enroll(paths, hub.url, code="GOOD-CODE", name="a")
        with pytest.raises(AlreadyEnrolledError, match="enrolled already, as a at"):
            await enroll(paths, hub.url, code="GOOD-CODE", name="b")
    assert load_identity(paths) == first


class TestRefusals:
    @pytest.fixture(autouse=True)
    def nothing_is_left(self, paths: Paths) -> Iterator[None]:
        yield
        assert not paths.state.parent.exists(), "a refused enrolment left something behind"

    async def test_wrong_code(self, paths: Paths) -> None:
        async with FakeHub() as hub:
            with pytest.raises(CodeRefusedError, match="refused the code WRONG.*Get a new one"):
                await enroll(paths, hub.url, code="WRONG", name="a")

    async def test_taken_name(self, paths: Paths) -> None:
        async with FakeHub() as hub:
            hub.taken_names.add("a")
            with pytest.raises(NameTakenError, match="a node named a already.*--name"):
                await enroll(paths, hub.url, code="GOOD-CODE", name="a")

    async def test_nobody_listens(self, paths: Paths) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(HubUnreachableError, match="cannot be reached.*Check the address"):
            await enroll(paths, f"http://127.0.0.1:{port}", code="GOOD-CODE")

    async def test_portal_with_a_fault(self, paths: Paths) -> None:
        async with FakeHub() as hub:
            hub.status = 503
            with pytest.raises(HubUnreachableError, match="answered 503"):
                await enroll(paths, hub.url, code="GOOD-CODE")

    async def test_something_that_is_no_portal(self, paths: Paths) -> None:
        async with FakeHub() as hub:
            hub.status = 404
            with pytest.raises(HubProtocolError, match="is it the address of an Outstation portal"):
                await enroll(paths, hub.url, code="GOOD-CODE")

    async def test_portal_of_the_original_product_does_not_get_the_code(self, paths: Paths) -> None:
        async with FakeHub() as hub:
            hub.original = True
            with pytest.raises(HubProtocolError, match="only the protocol of the original product.*Outstation portal"):
                await enroll(paths, hub.url, code="GOOD-CODE")
            assert hub.calls == []

    async def test_untrusted_certificate(self, paths: Paths, certificate: tuple[ssl.SSLContext, str, str]) -> None:
        async with FakeHub(tls=certificate[0]) as hub:
            with pytest.raises(HubCertificateError, match=r"is not trusted: .*--fingerprint"):
                await enroll(paths, hub.url, code="GOOD-CODE")

    async def test_other_certificate_than_the_pinned_one(
        self, paths: Paths, certificate: tuple[ssl.SSLContext, str, str]
    ) -> None:
        async with FakeHub(tls=certificate[0]) as hub:
            with pytest.raises(HubCertificateError, match="is not the pinned one"):
                await enroll(paths, hub.url, code="GOOD-CODE", fingerprint="00" * 32)

    @pytest.mark.parametrize("url", ["http://portal.example", "ftp://portal.example", "portal.example", "https://"])
    async def test_address_that_is_not_safe(self, paths: Paths, url: str) -> None:
        with pytest.raises(InsecureUrlError):
            await enroll(paths, url, code="GOOD-CODE")

    async def test_fingerprint_without_a_certificate_to_pin(self, paths: Paths) -> None:
        with pytest.raises(InsecureUrlError, match="no certificate for --fingerprint"):
            await enroll(paths, "http://127.0.0.1:1", code="GOOD-CODE", fingerprint="00" * 32)

    async def test_fingerprint_that_is_none(self, paths: Paths) -> None:
        with pytest.raises(HubCertificateError, match="64 hexadecimal digits"):
            await enroll(paths, "https://127.0.0.1:1", code="GOOD-CODE", fingerprint="zz")


@pytest.mark.parametrize("how", ["fingerprint", "authority"])
async def test_private_certificate_is_accepted_when_pinned_or_its_authority_is_given(
    paths: Paths, certificate: tuple[ssl.SSLContext, str, str], how: str
) -> None:
    context, pem, fingerprint = certificate
    async with FakeHub(tls=context) as hub:
        identity = await enroll(
            paths,
            hub.url,
            code="GOOD-CODE",
            fingerprint=fingerprint if how == "fingerprint" else "",
            certificate_authority=pem if how == "authority" else "",
        )
    assert identity.portal_url.startswith("https://")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
async def test_full_disk_is_noticed_before_the_code_is_used(tmp_path: Path) -> None:
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)], check=True)
    try:
        paths = Paths(state=disk / "state", runtime=tmp_path / "run")
        async with FakeHub() as hub:
            with pytest.raises(StorageError, match="no room for the node's identity.*the code has not been used"):
                await enroll(paths, hub.url, code="GOOD-CODE", name="a")
            assert hub.calls == []
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_every_refusal_has_its_own_exit_status() -> None:
    kinds: list[type[OutstationError]] = [
        CodeRefusedError,
        NameTakenError,
        HubUnreachableError,
        HubCertificateError,
        StorageError,
        AlreadyEnrolledError,
        InsecureUrlError,
    ]
    statuses = [kind.exit_code for kind in kinds]
    assert len(set(statuses)) == len(statuses)
    assert all(status not in (0, 1, 2) for status in statuses)
