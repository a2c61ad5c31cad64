"""The wheel and the source distribution hold all that the scripts need, the models in the box included."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cleanrl", "cleanrl_utils")
BUILD = """
import sys
from poetry.core.masonry import api
print(api.build_wheel(sys.argv[1]), api.build_sdist(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and source distribution, of a copy of the packages."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", BUILD, str(made)]
    wheel, sdist = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True).stdout.split()
    return made / wheel, made / sdist


def files() -> set[str]:
    """What the packages hold."""
    found = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()}
    return {name for name in found if "__pycache__" not in name}


@pytest.mark.slow
def test_wheel_and_source_distribution_hold_every_file_of_the_packages(built):
    wheel, sdist = built
    with zipfile.ZipFile(wheel) as archive:
        assert files() <= set(archive.namelist())
    with tarfile.open(sdist) as archive:
        assert files() <= {name.partition("/")[2] for name in archive.getnames()}
    assert all(path.stat().st_size < 40e6 for path in built)  # package indices take 100 MB; 27 MB here, the models


@pytest.mark.slow
def test_an_installed_wheel_plays_the_model_in_the_box(built, tmp_path):
    """Elsewhere: in an empty folder, by an environment that finds the installed files first."""
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(installed)]
    subprocess.run([*pip, str(built[0])], check=True, capture_output=True)
    env = os.environ | {"PYTHONPATH": str(installed)}

    def run(*words: str) -> str:
        ended = subprocess.run([sys.executable, *words], cwd=elsewhere, env=env, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert run("-c", "import cleanrl_utils; print(cleanrl_utils.__file__)").startswith(str(installed))
    box = "--exp-name dqn --env-id CartPole-v1 --eval-episodes 2".split()
    assert "episodes=2 mean=500.00" in run("-m", "cleanrl_utils.enjoy", *box)
    run(str(installed / "cleanrl/dqn.py"), *"--total-timesteps 100 --learning-starts 50 --eval-episodes 1".split())
    assert list(elsewhere.glob("runs/*/config.json"))
