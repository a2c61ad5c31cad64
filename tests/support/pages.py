"""The project's pages, for the tests that hold them to the code: their blocks, their commands, their names."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), *ROOT.glob("benchmark/*.md"), *ROOT.glob("cleanrl_utils/zoo/*/*.md")]
)
BLOCK = re.compile(r"^( *)```(\w*)(?: title=\"(.*?)\")?\n(.*?)^\1```$", re.M | re.S)
PROGRAMS = "python python3 pip make tensorboard wandb trackio hf poetry uv docker bash"
RECORDER = '#!/bin/bash\nprintf "%s\\x1f" "${0##*/}" "$@" >> "$RECORD"; printf "\\x1e" >> "$RECORD"\n'
PLACEHOLDERS = {
    "SEED": "1",
    "NUM_ENVS": "8",
    "[--bf16]": "--bf16",
    "RUN_FOLDER": "runs/mine",
    "PART_1/dqn_atari-best.cleanrl_model": "x",
}


class Command(NamedTuple):
    """A command on a page, as a shell understands it."""

    page: str
    language: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(Language, title, content) of every block of code."""
    return [
        (language, title, re.sub(rf"^{indent}", "", content, flags=re.M))
        for indent, language, title, content in BLOCK.findall(text_of(page))
    ]


def prose(page: str) -> str:
    """The page without its blocks."""
    return BLOCK.sub("", text_of(page))


@functools.cache
def commands() -> list[Command]:
    """All commands of all pages: `bash` blocks, which tests run, and `shell` blocks, whose flags they check.

    A shell reads them, with programs that only write down how they were called: loops and quotes are its business.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        programs = [*PROGRAMS.split(), *(f".venv/bin/{name}" for name in ("tensorboard", "python", "pip"))]
        for program in programs:
            path = Path(folder, program)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(RECORDER)
            path.chmod(0o755)
        Path(folder, ".venv/bin/activate").touch()
        record = Path(folder, "record")
        for page in map(name_of, PAGES):
            for language, _, content in blocks(page):
                if language not in ("bash", "shell"):
                    continue
                record.write_text("")
                environment = {"PATH": folder, "RECORD": str(record)}
                shell = ["/bin/bash", "-e", "-c", content]
                ended = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True)
                assert ended.returncode == 0, f"{page}: {ended.stderr}"
                called = [tuple(line.split("\x1f")[:-1]) for line in record.read_text().split("\x1e")[:-1]]
                found += [Command(page, language, tuple(PLACEHOLDERS.get(word, word) for word in words)) for words in called]
    return found


def named(page: str) -> set[str]:
    """What stands in `code font` in a page's prose."""
    return set(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page)))


def metrics(page: str) -> set[str]:
    """The metrics that the tables of an algorithm's page explain."""
    return set(re.findall(r"^\| `((?:charts|losses|eval)/[\w/]+)` \|", text_of(page), re.M))
