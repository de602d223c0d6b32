"""API keys: who may ask which model, how much; read from a file that holds only their hashes.

    [[keys]]
    id = "search-team"
    sha256 = "…"                   # of the key; `limbeck key ID` makes both
    models = ["movie-reviews"]     # all when absent
    requests_per_minute = 6000     # no bound when absent
    tokens_per_minute = 200000
    admin = false                  # true: may load and unload models

A key has 256 random bits, so a plain hash of it can be kept: there is nothing to guess.
"""

import hashlib
import hmac
import logging
import re
import secrets
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from service.errors import StartupError
from service.quota import Quota

log = logging.getLogger(__name__)

_PREFIX = "lk_"  # so that scanners for leaked secrets can know one


class Key(BaseModel):
    """One entry of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    models: frozenset[str] | None = None
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    admin: bool = False


class KeyFile(BaseModel):
    """The file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[Key, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _different(self) -> "KeyFile":
        for name in ("id", "sha256"):
            values = [getattr(key, name) for key in self.keys]
            if len(set(values)) < len(values):
                twice = next(key.id for key in self.keys if values.count(getattr(key, name)) > 1)
                raise ValueError(f"two keys have the same {name}; one of them is {twice}")
        return self


class Caller:
    """Who asks: a key, and what is left of its quotas in this process."""

    def __init__(self, key: Key, workers: int) -> None:
        self.key = key
        self.id = key.id
        self.admin = key.admin
        self.quota = Quota(key.requests_per_minute, key.tokens_per_minute, workers)

    def may_ask(self, model: str) -> bool:
        """Say whether the key allows a model."""
        return self.key.models is None or model in self.key.models


class Keyring:
    """The keys of a file. `workers` processes share the quotas, each with an equal part."""

    def __init__(self, path: Path, workers: int) -> None:
        self._path = path
        self._workers = workers
        self._callers: dict[bytes, Caller] = {}  # by the hash
        self._seen: bytes | None = None
        self.reload()

    def reload(self) -> bool:
        """Read the file again if it has changed, and say so; callers whose entry is the same keep what is left to them.

        Raises StartupError, which names the file and what is wrong in it, and keeps the keys as they were.
        """
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise StartupError(f"keys_file {self._path}: cannot be read: {error.strerror}") from error
        if content == self._seen:
            return False
        self._seen = content  # said once, if it is wrong
        before = {caller.key: caller for caller in self._callers.values()}
        self._callers = {
            bytes.fromhex(key.sha256): before.get(key) or Caller(key, self._workers)
            for key in _parse(self._path, content).keys
        }
        log.info("%d keys from %s", len(self._callers), self._path)
        return True

    def find(self, secret: bytes) -> Caller | None:
        """Return whose key `secret` is.

        What is looked up is its hash, of which a stranger can choose no part, and the whole is compared in constant
        time.
        """
        digest = hashlib.sha256(secret).digest()
        caller = self._callers.get(digest)
        if caller is None or not hmac.compare_digest(digest.hex(), caller.key.sha256):
            return None
        return caller


def secret_of(authorization: bytes) -> bytes:
    """Return the key in the value of an Authorization header, as Bearer; empty when there is none."""
    scheme, _, secret = authorization.partition(b" ")
    return secret.strip() if scheme.lower() == b"bearer" else b""


def make_key(name: str) -> tuple[str, str]:
    """Return a new key, and its entry for the file; raises ValueError when the name cannot be a key's id."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise ValueError(f"id: found {name[:80]!r}, expected 1 to 64 letters, digits, dots, dashes or underscores")
    secret = _PREFIX + secrets.token_urlsafe(32)
    return secret, f'[[keys]]\nid = "{name}"\nsha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"\n'


def _parse(path: Path, content: bytes) -> KeyFile:
    try:
        return KeyFile.model_validate(tomllib.loads(content.decode()))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]  # what is in the file is nobody's business
        where = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        raise StartupError(f"keys_file {path}: {f'{where}: ' if where else ''}{message}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartupError(f"keys_file {path}: not TOML: {error}") from None
