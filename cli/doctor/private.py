"""Removal of personal data from texts: names of user and host, and folders."""

from __future__ import annotations

import getpass
import os
import platform
import pwd
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

USER, HOST = "USER", "HOST"
_PATH = re.compile(r"(?<![\w/.:~-])(?:~|/[^\s/'\"`|]+)(?:/[^\s/'\"`|]+)*/([^\s/'\"`|]+)")


@dataclass(frozen=True)
class Private:
    """Names and folders that are removed from a text.

    Attributes:
        users: login name and full name of the user.
        hosts: long and short names of the machine.
        folders: spellings of the home folder, which become `~`.
    """

    users: tuple[str, ...]
    hosts: tuple[str, ...]
    folders: tuple[str, ...]

    @classmethod
    def here(cls) -> Private:
        """Collect the names of the current user and of this machine, and the home folder."""
        home = Path.home()
        return cls(
            _distinct(_user_names()),
            _distinct(_host_names()),
            _distinct([str(home), str(home.resolve()), f"/private{home}"]),
        )

    def remove(self, text: str, paths: Iterable[str | Path] = ()) -> str:
        """Replace names by `USER` and `HOST`, and all of a path but its last part by `…/`.

        Paths are found if they are absolute, or begin with `~`, and have no spaces.

        Args:
            paths: paths that may be in the text; these are found even if they have spaces.
        """
        for path in sorted(map(str, paths), key=len, reverse=True):
            text = text.replace(path, f"…/{Path(path).name}")
        for folder in self.folders:
            text = text.replace(folder, "~")
        text = _PATH.sub(r"…/\1", text)
        for names, replacement in ((self.hosts, HOST), (self.users, USER)):
            for name in names:
                pattern = rf"(?<!\w){re.escape(name)}(?!\w)"
                text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
        return text


def _user_names() -> Iterator[str]:
    yield Path.home().name
    try:
        yield getpass.getuser()
        entry = pwd.getpwuid(os.getuid())
    except (OSError, KeyError):  # a container may run as a user without a name
        return
    yield entry.pw_name
    yield entry.pw_gecos.split(",")[0]


def _host_names() -> Iterator[str]:
    for name in (socket.gethostname(), platform.node()):
        yield name
        yield name.partition(".")[0]
        yield f"{name.partition('.')[0]}.local"


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names of two or more characters, longest first, without "localhost"."""
    found = {name for name in names if len(name) > 1 and name != "localhost"}
    return tuple(sorted(found, key=lambda name: (-len(name), name)))
