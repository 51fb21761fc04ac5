"""Credentials of the node: auth files and the helper programs that they name."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cri_py.errors import ConfigError, Unavailable
from cri_py.images.auth import HUB_KEY, AuthFile, Credentials, auth_keys, parse_auth_file, parse_keychain_answer
from cri_py.images.endpoints import HUB
from cri_py.images.programs import run
from cri_py.images.tables import Fresh

AUTH_FILES_KEYCHAIN: Final = "containers-auth.json"  # registries.conf's name for the auth files themselves
_NOT_FOUND: Final = b"credentials not found"  # what a helper prints that has none, with exit status 1


@dataclass(frozen=True, slots=True)
class KeychainCall:
    """What is to be asked of ``docker-credential-NAME``."""

    name: str
    server: str


def search(file: AuthFile, host: str, repository: str) -> Credentials | KeychainCall | None:
    """What ``file`` has for a repository: the most specific entry; at one host the helper before the stored secret."""
    server = HUB_KEY if auth_keys(host, "")[-1] == HUB else host
    for key in auth_keys(host, repository):
        if (name := file.keychains.get(key)) is not None:
            return KeychainCall(name, server)
        if (found := file.credentials.get(key)) is not None:
            return found
    return KeychainCall(file.store, server) if file.store else None


class AuthFiles:
    """Auth files, read again when they changed; the first that has something for a repository wins. Blocking."""

    def __init__(self, paths: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> None:
        self._paths = tuple(paths)
        self._environment = environment
        self._timeout_s = timeout_s
        self._files = Fresh(parse_auth_file)

    def find(self, host: str, repository: str, keychains: Sequence[str] = ()) -> Credentials | None:
        """Credentials for ``repository`` at ``host`` (with its port), None to go there as nobody.

        ``keychains`` are those of registries.conf, asked for all hosts. Raises ConfigError (a file), Unavailable or
        DeadlineExceeded (a helper).
        """
        server = HUB_KEY if auth_keys(host, "")[-1] == HUB else host
        if AUTH_FILES_KEYCHAIN not in keychains:
            keychains = (AUTH_FILES_KEYCHAIN, *keychains)
        for keychain in keychains:
            found = (
                self._in_files(host, repository)
                if keychain == AUTH_FILES_KEYCHAIN
                else self._ask(KeychainCall(keychain, server))
            )
            if found is not None:
                return found
        return None

    def _in_files(self, host: str, repository: str) -> Credentials | None:
        for path in self._paths:
            file = self._files.get(path)
            found = search(file, host, repository) if file is not None else None
            if isinstance(found, KeychainCall):
                found = self._ask(found)
            if found is not None:
                return found
        return None

    def _ask(self, call: KeychainCall) -> Credentials | None:
        program = f"docker-credential-{call.name}"
        path = shutil.which(program, path=self._environment.get("PATH"))
        if path is None:
            raise ConfigError(f"the credential helper {program} is not in PATH", hint="install it, or don't name it")
        ended = run([path, "get"], f"{call.server}\n".encode(), self._environment, self._timeout_s)
        if ended.status == 0:
            return parse_keychain_answer(ended.output, program)
        if _NOT_FOUND in ended.output.lower():
            return None
        raise Unavailable(f"{program} failed with {ended.status} for {call.server}", hint=f"run `{program} get`")
