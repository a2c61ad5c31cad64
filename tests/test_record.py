"""What is written about a run: here the commit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cleanrl_utils.record import commit

ROOT = Path(__file__).parents[1]


def commit_of(place: Path) -> tuple[str, str]:
    """The commit that the package gives where it lies in a folder, and what it says."""
    code = "from cleanrl_utils.record import commit; print(commit())"
    env = os.environ | {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=place, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


@pytest.fixture
def repository(tmp_path) -> Path:
    """Somebody's repository, with a commit."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=me", "-c", "user.email=me@example.org"]
    for words in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "--message", "mine"]):
        subprocess.run([*git, *words], check=True)
    return tmp_path


def put_package(folder: Path) -> Path:
    """The package in a folder, without its models."""
    shutil.copytree(ROOT / "cleanrl_utils", folder / "cleanrl_utils", ignore=shutil.ignore_patterns("zoo", "__pycache__"))
    return folder


def test_the_commit_of_a_repository_that_only_has_the_package_in_it_is_not_ours(repository):
    assert commit_of(put_package(repository / "env" / "site-packages"))[0] == "None"
    assert len(commit_of(put_package(repository))[0].removesuffix("+")) == 40


def test_outside_of_a_repository_there_is_no_commit(tmp_path):
    assert commit_of(put_package(tmp_path)) == ("None", "")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away")
def test_a_repository_of_another_user_is_told(repository):
    put_package(repository)
    os.chown(repository, 12345, 12345)
    found, said = commit_of(repository)
    assert found == "None"
    assert "the commit is not recorded: another user owns" in said
    assert f"safe.directory {repository}" in said


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_this_checkout_has_its_commit():
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert commit().removesuffix("+") == head.stdout.strip()
