"""Makes the tutorial's notebooks from their text, with exercises and with solutions.

    python docs/tutorial/notebooks/build.py              # solutions of which no cell has changed keep their outputs
    python docs/tutorial/notebooks/build.py --execute    # runs the solutions: a quarter of an hour

The text is Python with cells (jupytext's "percent" format). In a cell, what stands between `# YOUR CODE` and `# END` is the
solution; the exercise raises NotImplementedError there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from cleanrl_utils import flags
from cleanrl_utils.console import notice

ROOT = Path(__file__).parents[3]
TEXTS = sorted(Path(__file__).parent.glob("[0-9]*.py"))
EXTRAS = {"1_fqi": "fqi,plots,video", "2_parts_of_dqn": "plots", "3_dqn": "flappy,plots,video", "4_qdagger": "atari,video"}
"""What each notebook needs."""
REPOSITORY = ""
"""Address of the project's repository, as https://github.com/OWNER/NAME: then each notebook has a badge for Colab."""
GAP = re.compile(r"^( *)# YOUR CODE(:? ?.*)\n((?:.*\n)*?) *# END\n?", re.M)
IN_CLONE = """# In a clone of the project: pip install -c requirements/constraints.txt -e ".[{extras}]"
import os
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", "IProgress not found")  # nothing here draws such a bar
os.chdir(next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "cleanrl" / "dqn.py").is_file()))"""
IN_COLAB = """import sys

if "google.colab" in sys.modules:
    !git clone --quiet {repository} project && pip install --quiet -e "project[{extras}]"
    %cd project
"""


@dataclass
class Args:
    """Make the notebooks."""

    execute: bool = False
    """run the solutions, and keep what they print and draw"""


def notebook(text: Path, repository: str = REPOSITORY) -> NotebookNode:
    """The notebook of a text, with a first cell that finds the project, and numbers for identities of cells."""
    made, name = jupytext.read(text), text.stem
    first = IN_CLONE.format(extras=EXTRAS[name])
    if repository:
        first = IN_COLAB.format(repository=repository, extras=EXTRAS[name]) + first
        place = f"{repository.removeprefix('https://github.com/')}/blob/main/docs/tutorial/{name}.ipynb"
        badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{place})"
        made.cells[0].source += f"\n\n{badge}"
    made.cells.insert(1, nbformat.v4.new_code_cell(first))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made.metadata = NotebookNode(kernelspec=kernel, language_info={"name": "python"})
    for number, cell in enumerate(made.cells):
        cell.id, cell.metadata = f"cell-{number}", NotebookNode()
    return made


def exercise(text: Path, repository: str = REPOSITORY) -> NotebookNode:
    """The notebook with gaps."""
    made = notebook(text, repository)
    for cell in made.cells:
        cell.source = GAP.sub(r'\1# your code here\2\n\1raise NotImplementedError("your code here")\n', cell.source)
    return made


def solution(text: Path, repository: str = REPOSITORY) -> NotebookNode:
    """The notebook without gaps, and without outputs."""
    made = notebook(text, repository)
    for cell in made.cells:
        cell.source = GAP.sub(r"\3", cell.source)
    return made


def execute(made: NotebookNode, folder: Path, allow_errors: bool = False) -> None:
    """Run the cells with this Python, in `folder`. Raises CellExecutionError unless `allow_errors`."""
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(made, timeout=3600, allow_errors=allow_errors, coalesce_streams=True, resources=place)
    client.execute()
    for cell in made.cells:
        cell.metadata = NotebookNode()  # of when each ran
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = without_progress(output.text)
    made.metadata.language_info = {"name": "python"}


def without_progress(text: str) -> str:
    """What a terminal would show in the end: a line that was written over and over again counts once."""
    return "\n".join(line.split("\r")[-1] for line in text.split("\n"))


def main(args: Args) -> None:
    """Write the notebooks beside the tutorial, and the solutions to docs/tutorial/solutions."""
    for text in TEXTS:
        place = text.parents[1] / f"{text.stem}.ipynb"
        nbformat.write(exercise(text), place)
        solved, before = solution(text), place.parent / "solutions" / place.name
        if args.execute:
            notice(f"running {text.stem}")
            execute(solved, ROOT)
        elif before.is_file() and sources(nbformat.read(before, 4)) == sources(solved):
            continue
        before.parent.mkdir(exist_ok=True)
        nbformat.write(solved, before)


def sources(made: NotebookNode) -> list[str]:
    """What the cells hold."""
    return [cell.source for cell in made.cells]


if __name__ == "__main__":
    flags.run(main, Args)
