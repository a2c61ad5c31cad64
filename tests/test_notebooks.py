"""The tutorial's notebooks: made from their text; the solved ones run, and the exercises fail in their gaps only."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from tests.test_tutorial import ROOT, script

build = script("docs/tutorial/notebooks/build.py")
TINY = {"STEPS": 1500, "ITERATIONS": 5, "FLAPPY_STEPS": 11_000}
TINY |= {"TEACHER_STEPS": 200, "OFFLINE_STEPS": 2, "ONLINE_STEPS": 16, "GAMES": 1}
EACH = pytest.mark.parametrize("text", build.TEXTS, ids=lambda text: text.stem)
# On two cores the first takes 10 seconds; the two that train a network and film games take a minute and more.
RUN = [
    pytest.param(text, marks=() if text.stem in ("1_fqi", "2_parts_of_dqn") else pytest.mark.slow) for text in build.TEXTS
]


@pytest.fixture(autouse=True)
def in_a_clone(empty_folder: Path) -> Path:
    """An empty folder with the project in it, for what the notebooks write."""
    for name in ("benchmark", "cleanrl"):
        (empty_folder / name).symlink_to(ROOT / name)
    return empty_folder


def run(made: NotebookNode, folder: Path, allow_errors: bool) -> list[NotebookNode]:
    """Run a notebook at tiny sizes; returns its cells of code."""
    sizes = "|".join(TINY)
    for cell in made.cells:
        cell.source = re.sub(rf"^({sizes}) = [\d_]+", lambda size: f"{size[1]} = {TINY[size[1]]}", cell.source, flags=re.M)
    build.execute(made, folder, allow_errors)
    return [cell for cell in made.cells if cell.cell_type == "code"]


def kinds(cell: NotebookNode) -> set[str]:
    """Kinds of the pictures that a cell shows."""
    return {kind for output in cell.outputs for kind in output.get("data", {}) if kind.startswith("image/")}


@pytest.mark.parametrize("text", RUN, ids=lambda text: text.stem)
def test_a_solved_notebook_runs(text, empty_folder):
    cells = run(build.solution(text), empty_folder, allow_errors=False)
    answers = [output.text for cell in cells for output in cell.outputs if output.output_type == "stream"]
    assert sum("Right" in answer for answer in answers) == text.read_text().count("### Exercise")
    shown = set().union(*map(kinds, cells))
    assert shown >= ({"image/png"} if text.stem == "2_parts_of_dqn" else {"image/gif"})


@pytest.mark.parametrize("text", RUN, ids=lambda text: text.stem)
def test_the_exercises_fail_where_the_gaps_are_and_nowhere_else(text, empty_folder):
    cells = run(build.exercise(text), empty_folder, allow_errors=True)
    failed = {number for number, cell in enumerate(cells) if any(output.output_type == "error" for output in cell.outputs)}
    assert failed == {number for number, cell in enumerate(cells) if "your code here" in cell.source}
    assert len(failed) == text.read_text().count("### Exercise") >= 2
    errors = {output.evalue for cell in cells for output in cell.outputs if output.output_type == "error"}
    assert errors == {"your code here"}


@EACH
def test_the_notebooks_are_those_of_the_text(text):
    place = text.parents[1]
    assert build.sources(nbformat.read(place / f"{text.stem}.ipynb", 4)) == build.sources(build.exercise(text))
    solved = nbformat.read(place / "solutions" / f"{text.stem}.ipynb", 4)
    assert build.sources(solved) == build.sources(build.solution(text))
    outputs = [output for cell in solved.cells for output in cell.get("outputs", [])]
    assert outputs, "run with --execute"
    assert all(output.output_type != "error" for output in outputs)


@EACH
def test_no_gap_shows_its_solution(text):
    """Each line between the marks is in the cell of the solved notebook, and not in that of the exercises."""
    cells = zip(*map(build.sources, (build.notebook(text), build.solution(text), build.exercise(text))), strict=True)
    gaps = 0
    for marked, solved, gap in cells:
        hidden = [line for _, _, body in build.GAP.findall(marked) for line in body.splitlines()]
        assert set(hidden) <= set(solved.splitlines())
        assert not set(hidden) & set(gap.splitlines())
        assert not re.search("YOUR CODE|^ *# END", solved + gap, re.M)
        gaps += bool(hidden)
    assert gaps == text.read_text().count("### Exercise")


@EACH
def test_with_a_repository_a_notebook_has_a_badge_and_installs_itself(text):
    plain, public = (build.exercise(text, repository) for repository in ("", "https://github.com/someone/project"))
    badge = f"https://colab.research.google.com/github/someone/project/blob/main/docs/tutorial/{text.stem}.ipynb"
    assert badge in public.cells[0].source
    assert "git clone --quiet https://github.com/someone/project project" in public.cells[1].source
    assert public.cells[1].source.endswith(plain.cells[1].source)
    assert "colab" not in "".join(build.sources(plain))
    assert nbformat.validate(public) is None


@EACH
def test_a_notebook_needs_the_extras_that_it_names(text):
    """A package that a text imports, and that the project does not bring by itself, is one of an extra's."""
    packages = {"sklearn": "fqi", "matplotlib": "plots", "PIL": "video"}
    source = text.read_text()
    needed = {extra for package, extra in packages.items() if re.search(rf"^(from|import) {package}\b", source, re.M)}
    needed |= {"video"} if "video=" in source else set()
    needed |= {"atari"} if "qdagger_dqn_atari" in source else set()
    needed |= {"flappy"} if "flappybird" in source else set()
    assert set(build.EXTRAS[text.stem].split(",")) == needed
