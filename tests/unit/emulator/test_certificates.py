import ipaddress
import stat

import pytest
from cryptography import x509

from agent.errors import StorageError
from emulator.certificates import ensure_certificates, server_names
from emulator.tls import first_certificate


def names_in(path) -> set[str]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def test_certificates_carry_names_and_addresses_and_private_keys_stay_private(tmp_path):
    made = ensure_certificates(tmp_path / "data", ["my-hub.example", "127.3.2.1"])

    assert names_in(made.certificate) == {"my-hub.example", "127.3.2.1"}
    server = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    server.verify_directly_issued_by(x509.load_pem_x509_certificate(made.authority.read_bytes()))
    for name in ("ca-key.pem", "server-key.pem"):
        assert stat.S_IMODE((tmp_path / "data" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_a_restart_reuses_them(tmp_path):
    first = ensure_certificates(tmp_path, ["127.0.0.1"])
    before = (first.authority.read_bytes(), first.certificate.read_bytes())

    second = ensure_certificates(tmp_path, ["127.0.0.1"])

    assert (second.authority.read_bytes(), second.certificate.read_bytes()) == before


def test_a_new_name_makes_a_new_certificate_of_the_same_authority(tmp_path):
    first = ensure_certificates(tmp_path, ["127.0.0.1"])
    authority = first.authority.read_bytes()

    second = ensure_certificates(tmp_path, ["127.0.0.1", "other.example"])

    assert second.authority.read_bytes() == authority
    assert names_in(second.certificate) == {"127.0.0.1", "other.example"}


def test_a_lost_server_key_is_replaced(tmp_path):
    made = ensure_certificates(tmp_path, ["127.0.0.1"])
    made.key.unlink()
    ensure_certificates(tmp_path, ["127.0.0.1"])
    assert made.key.exists()


def test_files_that_are_no_certificates_are_named_and_left_alone(tmp_path):
    made = ensure_certificates(tmp_path, ["127.0.0.1"])
    made.authority.write_text("rubbish")
    with pytest.raises(StorageError, match=str(tmp_path)):
        ensure_certificates(tmp_path, ["127.0.0.1"])
    assert made.authority.read_text() == "rubbish"


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be kept"):
        ensure_certificates(tmp_path / "file" / "data", ["127.0.0.1"])


def test_names_are_the_given_ones_first_then_the_address():
    assert server_names("127.1.2.3", ["My-Hub.example"]) == ["my-hub.example", "127.1.2.3", "localhost"]
    everywhere = server_names("0.0.0.0", [])
    assert "0.0.0.0" not in everywhere
    assert all(not _unspecified(name) for name in everywhere)


def _unspecified(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_unspecified
    except ValueError:
        return False


@pytest.mark.parametrize("message", [b"", b"\x0b\0\0\3", b"\x0b\0\0\3\0\0\0", b"\x0b\0\0\7\0\0\4\0\0\5x"])
@pytest.mark.parametrize("with_context", [True, False])
def test_a_tls_message_without_a_whole_certificate_has_none(message, with_context):
    assert first_certificate(message, with_context=with_context) is None


def test_the_first_certificate_of_a_tls_message_is_found():
    entry = b"\0\0\3abc"
    assert first_certificate(b"\x0b\0\0\x09\0\0\6" + entry, with_context=False) == b"abc"
    assert first_certificate(b"\x0b\0\0\x0c\0\0\0\x08" + entry + b"\0\0", with_context=True) == b"abc"
