"""What goes into an sdist and into wheels."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
MADE = {"PKG-INFO", "setup.cfg", "lfads_torch/_build.json"}


def run(*command: object, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(one) for one in command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, folder: Path, target: Path, **environment: str) -> Path:
    """Build with the installed setuptools, so that nothing is fetched."""
    code = (
        "import sys; from setuptools import build_meta; "
        "print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
    )
    target.mkdir(exist_ok=True)
    name = run(sys.executable, "-c", code, f"build_{kind}", target, folder=folder, **environment)
    return target / name.splitlines()[-1]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A copy of what git keeps, as it is now, and the names of its files."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout to compare with")
    names = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout
    files = {name for name in names.split("\0") if name and (ROOT / name).is_file()}
    folder = tmp_path_factory.mktemp("copy")
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder, files


def test_conda_and_docker_install_what_the_package_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    conda = {one.name: one.specifier for one in map(Requirement, listed)}
    of_conda = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    for one in map(Requirement, project["dependencies"]):
        assert conda[of_conda.get(one.name, one.name)] == one.specifier
    assert project["requires-python"].removeprefix(">=") in str(conda["python"])

    docker = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    pythons = set(re.findall(r"^FROM python:([\d.]+)", docker, re.MULTILINE))
    assert all(Version(one) in SpecifierSet(project["requires-python"]) for one in pythons)
    pinned = re.search(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert f"torch=={pinned[1]}+cpu" in docker
    for line in re.findall(r"^COPY (?!--from)(\S+)", docker, re.MULTILINE):
        assert (ROOT / line).exists()


@pytest.mark.slow
def test_the_sdist_holds_what_git_holds_and_builds_the_same_wheels(
    tracked: tuple[Path, set[str]], tmp_path: Path
) -> None:
    folder, files = tracked
    archive = build("sdist", folder, tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
        names = {one.name.partition("/")[2] for one in tar.getmembers() if one.isfile()}
    names = {name for name in names if not name.startswith("lfads_torch.egg-info/")}
    assert names - MADE == files
    assert names >= MADE
    unpacked = next(tmp_path.glob("lfads_torch-*"))
    version = json.loads((unpacked / "lfads_torch/_build.json").read_text())["version"]

    pure = build("wheel", unpacked, tmp_path / "pure", LFADS_PURE="1")
    assert pure.name == f"lfads_torch-{version.replace('-', '_')}-py3-none-any.whl"
    without_compiler = build("wheel", unpacked, tmp_path / "cc", CC="/bin/false", CXX="/bin/false")
    assert without_compiler.name == pure.name
    contents = set(zipfile.ZipFile(pure).namelist())
    in_package = {name for name in files if name.startswith("lfads_torch/")}
    assert in_package <= contents
    assert {name for name in contents if ".dist-info/" not in name} - in_package == {
        "lfads_torch/_build.json"
    }


@pytest.mark.slow
def test_a_wheel_with_kernels_fits_every_python(
    tracked: tuple[Path, set[str]], tmp_path: Path
) -> None:
    from lfads_torch.kernels.c_library import why_not

    if why_not():
        pytest.skip(f"kernels: {why_not()}")
    wheel = build("wheel", tracked[0], tmp_path / "wheel")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    run(sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "site", folder=tmp_path)
    code = (
        "import lfads_torch; from lfads_torch.kernels.c_library import why_not, library; "
        "print(lfads_torch.__file__); print(why_not()); print(library()._name)"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "LFADS_NATIVE": ""}
    place, reason, name = run(
        sys.executable, "-P", "-c", code, folder=tmp_path, **environment
    ).splitlines()
    assert Path(place).is_relative_to(tmp_path)
    assert not reason
    assert Path(name).name == "_native.so"
