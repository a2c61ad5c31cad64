"""How much two twins have in common: `python -m tests.support.twin_diff` prints the share of lines that are the same.

With `--lines` it prints every line that differs as well.
"""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "cleanrl"


def pairs() -> list[tuple[Path, Path]]:
    """Each script that has a twin, and its twin."""
    twins = {twin.name.replace("_jax", ""): twin for twin in SCRIPTS.glob("*_jax*.py")}
    return [(SCRIPTS / name, twin) for name, twin in sorted(twins.items())]


def share_of_same_lines(ours: Path, theirs: Path) -> float:
    """Lines in common and in the same order, twice, over the lines of both; blank lines do not count."""
    lines, twin_lines = ([line for line in path.read_text().splitlines() if line.strip()] for path in (ours, theirs))
    blocks = difflib.SequenceMatcher(None, lines, twin_lines, autojunk=False).get_matching_blocks()
    return 2 * sum(block.size for block in blocks) / (len(lines) + len(twin_lines))


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", action="store_true", help="print the lines that differ")
    arguments = parser.parse_args()
    for ours, theirs in pairs():
        print(f"{share_of_same_lines(ours, theirs):.0%} {ours.name} {theirs.name}")  # noqa: T201
        if arguments.lines:
            differing = difflib.unified_diff(
                ours.read_text().splitlines(), theirs.read_text().splitlines(), n=0, lineterm=""
            )
            print("\n".join(differing))  # noqa: T201


if __name__ == "__main__":
    main()
