"""Which version of this package runs: from git in a checkout, else as its build recorded it.

`setup.py` runs this file by its path, so it imports nothing of the package.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

#: The first release; commits before its tag count towards it.
FIRST = "0.1.0"
#: What a build records, in the package; `setup.py` writes it into wheels and sdists.
RECORD = "_build.json"
#: What `git archive` fills in, next to pyproject.toml.
ARCHIVE = ".git_archival.txt"


class Version(NamedTuple):
    """A version, the commit that it was made of, and whether files differed from that."""

    version: str
    commit: str | None
    dirty: bool | None


@cache
def read_version(root: Path = Path(__file__).parents[1]) -> Version:
    """Return the version of the package in a folder."""
    # Git first: an editable install records nothing, so that it cannot show an earlier commit.
    return (
        _of_checkout(root)
        or _of_build(root)
        or _of_archive(root)
        or Version(f"{FIRST}.dev0+unknown", None, None)
    )


def _of_checkout(root: Path) -> Version | None:
    """Ask git, in a checkout of this package and not of a project that holds a copy of it."""
    project = root / "pyproject.toml"
    if not (root / ".git").exists() or not project.is_file():
        return None
    if '\nname = "lfads-torch"\n' not in project.read_text(encoding="utf-8"):
        return None
    described = _git(root, "describe", "--tags", "--long", "--always", "--dirty", "--match=v[0-9]*")
    if described is None:
        return None
    commit = _git(root, "rev-parse", "HEAD")
    is_dirty, described = described.endswith("-dirty"), described.removesuffix("-dirty")
    if "-" not in described:  # no tag can be seen, as in a shallow clone
        described = f"-{_git(root, 'rev-list', '--count', 'HEAD')}-"
    return _version(described, commit, is_dirty)


def _of_build(root: Path) -> Version | None:
    import json

    path = root / "lfads_torch" / RECORD
    return Version(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _of_archive(root: Path) -> Version | None:
    path = root / ARCHIVE
    commit, _, described = path.read_text().strip().partition(" ") if path.is_file() else ("",) * 3
    if not commit or "$" in commit:
        return None
    return _version(described if "-" in described else f"{described}-0-", commit, False)


def _version(described: str, commit: str | None, is_dirty: bool) -> Version:
    """Make a version by PEP 440 of what `git describe --long` says: tag, distance, commit."""
    tag, distance, _ = described.rsplit("-", 2)
    version = tag.removeprefix("v") or f"{FIRST}.dev{distance}"
    if tag and int(distance):
        version += f".post{distance}"
    elif tag and not is_dirty:
        return Version(version, commit, False)  # a release
    return Version(f"{version}+g{(commit or '')[:10]}{'.dirty' * is_dirty}", commit, is_dirty)


def _git(root: Path, *arguments: str) -> str | None:
    import os
    import subprocess

    # A hook of git, in another repository perhaps, sets GIT_DIR for all that it starts.
    other = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in other}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
