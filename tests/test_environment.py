"""pyproject.toml, constraints.txt and environment.yml describe one environment."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "constraints.txt").read_text(encoding="utf-8")
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))

DIRECT = [
    Requirement(line)
    for line in (
        *PYPROJECT["build-system"]["requires"],
        *PYPROJECT["project"]["dependencies"],
        *PYPROJECT["project"]["optional-dependencies"]["dev"],
    )
]


def locked_requirements() -> list[str]:
    """The entries of constraints.txt, each on one line: `name==version ; marker --hash=...`."""
    text = re.sub(r"(?m)^\s*#.*\n", "", LOCK).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip()]


def pins() -> dict[str, Version]:
    """Name → locked version."""
    found: dict[str, Version] = {}
    for entry in locked_requirements():
        requirement = Requirement(entry.split("--hash")[0])
        (pin,) = requirement.specifier
        assert pin.operator == "==", f"{requirement.name} is not pinned to one version"
        name = canonicalize_name(requirement.name)
        assert name not in found, f"{name} is locked twice: the systems would have different versions"
        found[name] = Version(pin.version)
    return found


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_every_direct_dependency_is_locked_within_its_range(requirement: Requirement) -> None:
    locked = pins().get(canonicalize_name(requirement.name))
    assert locked is not None, f"{requirement.name} is not in constraints.txt: run `make lock`"
    assert requirement.specifier.contains(locked), f"{requirement} does not allow {locked}: run `make lock`"


def test_direct_dependencies_are_locked_for_every_system() -> None:
    names = {canonicalize_name(requirement.name) for requirement in DIRECT}
    for entry in locked_requirements():
        requirement = Requirement(entry.split("--hash")[0])
        assert canonicalize_name(requirement.name) not in names or requirement.marker is None, entry


def test_every_locked_package_has_hashes() -> None:
    entries = locked_requirements()
    assert len(entries) > len(DIRECT)
    for entry in entries:
        assert re.search(r" --hash=sha256:[0-9a-f]{64}\b", entry), f"no hash: {entry}"


@pytest.mark.parametrize("name", ["constraints.txt", "environment.yml"])
def test_no_address_and_no_path_of_a_machine(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.findall(r"(?m)^.*(?:://|index-url|find-links| @ |\s~?/\w).*$", text) == []


def test_conda_environment_installs_the_lock() -> None:
    """environment.yml repeats no version: it hands constraints.txt to pip."""
    assert CONDA["name"] == PYPROJECT["project"]["name"]
    python, pip, rest = CONDA["dependencies"]
    assert rest == {"pip": ["-r constraints.txt"]}
    assert re.fullmatch(r"pip(>=[\d.]+)?", pip)
    version = re.fullmatch(r"python=(3\.\d+)", python)
    assert version is not None
    assert SpecifierSet(PYPROJECT["project"]["requires-python"]).contains(version[1])
    assert f"Programming Language :: Python :: {version[1]}" in PYPROJECT["project"]["classifiers"]
