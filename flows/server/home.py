"""The private folder of ``maskmill serve``: the server's database, its password, this serve's name."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from artifacts.cache.atomic import write_text_atomic
from flows.config import ConfigError

USER = "maskmill"


@dataclass(frozen=True)
class Home:
    """A private folder: the server's database, the password, this serve's name."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> Home:
        """Make it (0700) if missing. Raises :class:`ConfigError` if it belongs to another user or is open to others."""
        path = Path(os.path.abspath(path.expanduser()))
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise ConfigError(
                f"--home {path}: must be private (chmod 700), it holds a password; mode {status.st_mode & 0o777:o}"
            )
        return cls(path)

    @property
    def auth(self) -> str:
        """``user:password`` of the server, made once."""
        return self._once("auth", lambda: f"{USER}:{secrets.token_urlsafe(24)}")

    @property
    def owner(self) -> str:
        """The tag of everything that this home's serve owns in a server."""
        return self._once("owner", lambda: f"{USER}-serve-{secrets.token_hex(4)}")

    def write(self, name: str, text: str) -> Path:
        """Write a file that only its owner reads."""
        path = self.path / name
        before = os.umask(0o077)
        try:
            write_text_atomic(path, text)
        finally:
            os.umask(before)
        path.chmod(0o600)
        return path

    def _once(self, name: str, make: Callable[[], str]) -> str:
        path = self.path / name
        if not path.exists():
            self.write(name, make() + "\n")
        return path.read_text().strip()


def default_home() -> Path:
    """``$XDG_STATE_HOME/maskmill/prefect``."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "maskmill" / "prefect"
