"""The Makefile's environment: of a Python that fits, or one line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*words: str) -> subprocess.CompletedProcess:
    """`make` in a folder that has the Makefile and nothing else of the project."""
    shutil.copy(ROOT / "Makefile", "Makefile")
    return subprocess.run(["make", *words], capture_output=True, text=True)


def python_of(version: str, path: Path) -> Path:
    """A Python that says it is of another version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code = f"import sys; sys.version_info = ({version}); exec(sys.argv[1])"
    path.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$2\"\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version", ["3, 10, 13", "3, 15, 0"])
def test_a_python_that_does_not_fit_is_named_before_anything_is_installed(version, tmp_path):
    python = python_of(version, tmp_path / "bin" / "python")
    done = make(".venv/bin/python", f"PYTHON={python}")
    assert done.returncode == 2
    assert f"Python 3.11 to 3.14 is needed, and {python} is another" in done.stderr
    assert not Path(".venv").exists()


@pytest.mark.parametrize(("version", "fits"), [("3, 10, 13", False), ("3, 14, 0", True)])
def test_an_environment_is_made_anew_only_where_its_python_does_not_fit(version, fits):
    python_of(version, Path(".venv/bin/python"))
    done = make("--dry-run", ".venv/bin/python", f"PYTHON={sys.executable}")
    assert done.returncode == 0, done.stderr
    assert ("making it anew" in done.stdout) == (not fits)
    assert (f"{sys.executable} -m venv .venv" in done.stdout) == (not fits)
    assert Path(".venv").exists() == fits


@pytest.mark.parametrize(("flag", "config"), [("avx512_bf16", "quickstart"), ("", "quickstart_small")])
def test_a_processor_without_fast_bfloat16_trains_the_smaller_student(flag, config):
    command = ["make", "--dry-run", "quickstart", f"FAST={flag}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert f"--config benchmark/configs/{config}.yaml" in done.stdout
    assert (ROOT / "benchmark/configs" / f"{config}.yaml").is_file()


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements/requirements*.txt")), ids=lambda path: path.name)
def test_the_requirements_hold_the_versions_that_are_tested(path):
    assert path.read_text().splitlines()[0] == "-c constraints.txt"


def pinned() -> dict[str, str]:
    """The versions in constraints.txt, by normalised names of packages."""
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements/constraints.txt").read_text(), re.M)
    return {name.lower().replace("_", "-"): version for name, version in pins}


def test_uv_installs_the_versions_that_are_tested():
    """But for what the index of constraints.txt does not name: what uv takes on other Pythons and systems only."""
    tested = pinned()
    locked = {package["name"]: package["version"] for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    both = tested.keys() & locked.keys()
    assert {"torch", "jax", "gymnasium", "ale-py", "numpy"} <= both
    assert {name: locked[name] for name in both} == {name: tested[name] for name in both}


def test_the_containers_install_extras_that_exist_and_the_tested_torch():
    """Read, not built: that needs a container engine."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    asked = re.findall(r"EXTRAS=(\S+)", dockerfile)
    assert len(asked) == 2
    assert {extra for extras_asked in asked for extra in extras_asked.split(",")} <= extras.keys()
    stamps = set(re.findall(r"\.venv/run\S*", dockerfile))
    assert stamps == {".venv/run", ".venv/run-jax"}
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{stamp}: " in makefile for stamp in (*stamps, ".venv/dev"))
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert f"torch=={pinned()['torch']} " in container["postCreateCommand"]
    assert container["postCreateCommand"].endswith("make .venv/dev")
