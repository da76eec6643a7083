"""The portal's own secret: what is encrypted with it can be read back only with the key file in the data folder."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from agent.errors import ConfigError, StorageError
from agent.files import write_atomically

KEY_FILE = "secret.key"


def hash_token(token: str) -> str:
    """What is stored of a random token; its entropy makes a slow hash unnecessary."""
    return hashlib.sha256(token.encode()).hexdigest()


class Vault:
    """Encrypts, and hashes with a key."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(key)
        self._key = key

    @classmethod
    def open(cls, data: Path) -> Vault:
        """Read the key file of `data`, made with mode 0600 at the first start.

        Raises StorageError when it cannot be read or written, ConfigError when it is not a key. Blocks.
        """
        path = data / KEY_FILE
        try:
            data.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                write_atomically(path, Fernet.generate_key() + b"\n")
            content = path.read_bytes().strip()
        except OSError as error:
            raise StorageError(
                f"The portal's data folder {data} cannot be used: {error.strerror or error}. "
                "Give --data a folder that the portal's user may write."
            ) from error
        try:
            return cls(content)
        except ValueError as error:
            raise ConfigError(
                f"{path} is not a key. Restore it from a backup; without it, stored secrets cannot be read."
            ) from error

    def encrypt(self, content: bytes) -> bytes:
        """Encrypt and authenticate."""
        return self._fernet.encrypt(content)

    def decrypt(self, content: bytes) -> bytes:
        """Undo `encrypt`. Raises ConfigError when the key is another one than at encryption."""
        try:
            return self._fernet.decrypt(content)
        except InvalidToken as error:
            raise ConfigError(
                f"A stored secret does not open with {KEY_FILE} of the data folder. "
                "Restore the key file that belongs to this database."
            ) from error

    def keyed_hash(self, purpose: str, text: str) -> str:
        """Hash something short, such as a code, so that the database alone does not give it away."""
        return hmac.new(self._key, f"{purpose}\n{text}".encode(), hashlib.sha256).hexdigest()

    def derive(self, purpose: str) -> str:
        """A secret for one purpose, the same at every start."""
        return base64.urlsafe_b64encode(hmac.new(self._key, f"derive\n{purpose}".encode(), "sha256").digest()).decode()
