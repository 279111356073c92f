"""Versions from git, and what stands in where git is not there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version as Pep440

import lfads_torch
from lfads_torch import version
from lfads_torch.version import ARCHIVE, FIRST, RECORD, Version

# Of another folder than this checkout at each call.
read_version = version.read_version.__wrapped__
ROOT = Path(lfads_torch.__file__).parents[1]


def git(folder: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "tag.gpgSign=false")
    command = ["git", "-C", str(folder), *settings, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of this package with one commit and no tag."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("pyproject.toml", ".gitattributes", ARCHIVE):
        shutil.copy(ROOT / name, folder)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "one")
    return folder


def commit(folder: Path, text: str) -> str:
    (folder / "file").write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", text)
    return git(folder, "rev-parse", "HEAD")


def test_versions_rise_from_commit_to_tag_to_commit(checkout: Path) -> None:
    versions = []
    first = git(checkout, "rev-parse", "HEAD")
    assert read_version(checkout) == Version(f"{FIRST}.dev1+g{first[:10]}", first, False)
    versions.append(read_version(checkout).version)
    (checkout / "pyproject.toml").open("a").write("\n")
    assert read_version(checkout).dirty
    assert read_version(checkout).version.endswith(".dirty")
    head = commit(checkout, "two")
    versions.append(read_version(checkout).version)
    git(checkout, "tag", f"v{FIRST}")
    git(checkout, "tag", "a-tag-of-something-else")
    assert read_version(checkout) == Version(FIRST, head, False)
    versions.append(FIRST)
    (checkout / "file").write_text("changed")
    assert read_version(checkout).version == f"{FIRST}+g{head[:10]}.dirty"
    commit(checkout, "three")
    versions.append(read_version(checkout).version)
    assert versions == [str(one) for one in sorted(map(Pep440, versions))]


def test_a_shallow_clone_names_its_commit(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "tag", f"v{FIRST}")
    head = commit(checkout, "two")
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{checkout}", "shallow")
    here = read_version(tmp_path / "shallow")
    assert here == Version(f"{FIRST}.dev1+g{head[:10]}", head, False)


def test_without_git_the_build_counts_then_the_archive(checkout: Path, tmp_path: Path) -> None:
    head = commit(checkout, "two")
    git(checkout, "tag", "-a", f"v{FIRST}", "-m", "a release")
    archive = tmp_path / "archive"
    archive.mkdir()
    git(checkout, "archive", "-o", str(tmp_path / "it.tar"), "HEAD")
    shutil.unpack_archive(tmp_path / "it.tar", archive, filter="data")
    assert read_version(archive) == Version(FIRST, head, False)
    (archive / "lfads_torch").mkdir()
    built = Version("1.2.3", "abc", True)
    (archive / "lfads_torch" / RECORD).write_text(json.dumps(built._asdict()))
    assert read_version(archive) == built
    shutil.rmtree(archive / "lfads_torch")
    shutil.copy(ROOT / ARCHIVE, archive)  # not filled in
    assert read_version(archive) == Version(f"{FIRST}.dev0+unknown", None, None)


def test_a_copy_in_another_project_is_not_of_its_commit(checkout: Path) -> None:
    (checkout / "pyproject.toml").write_text('[project]\nname = "my-lab"\n')
    (checkout / ARCHIVE).unlink()
    assert read_version(checkout).commit is None


def test_a_hook_of_another_repository_does_not_matter(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert read_version(checkout).commit


def test_version_is_read_when_it_is_asked_for() -> None:
    code = (
        "import sys, lfads_torch; assert 'lfads_torch.version' not in sys.modules; "
        "print(lfads_torch.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == lfads_torch.__version__ == version.read_version().version
    assert re.match(r"\d+\.\d+\.\d+", lfads_torch.__version__)
