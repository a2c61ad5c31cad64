"""docs/models.md: its code runs, and what it says of the box is so."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from cleanrl_utils.zoo import __main__ as zoo
from tests.test_enjoy import LAST_LINE

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/models.md").read_text(encoding="utf-8")


def test_the_code_has_the_length_of_a_glance_and_plays_pong():
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    assert len([line for line in code.splitlines() if line and not line.startswith(("import", "from"))]) <= 15
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code.replace("range(1000)", "range(300)"), "docs/models.md", "exec"), {})
    scores = [float(number) for number in re.findall(r"-?\d+\.?", printed.getvalue())]
    assert len(scores) == 4
    assert sum(scores) > 0, "after 300 steps the teacher is ahead"


def test_the_page_says_of_the_box_what_is_in_it():
    rows = dict(re.findall(r"^\| `(\S+)` \|.*?\| (\S+ \+- \S+) \|", PAGE, re.M))
    listed = {model["folder"].name: model["scores"] for model in zoo.models()}
    assert rows == {name: f"{float(s['mean']):.2f} +- {float(s['sd']):.2f}" for name, s in listed.items()}


def test_the_example_of_a_last_line_is_one():
    (line,) = re.findall(r"^```text\n(.*?)\n```$", PAGE, re.M | re.S)
    assert LAST_LINE.fullmatch(line)


def test_sentences_of_the_page_are_those_of_the_code():
    paths = [*ROOT.glob("cleanrl_utils/models/*.py"), ROOT / "tests/test_huggingface.py"]
    source = "".join(path.read_text() for path in paths)
    table = PAGE.split("| what is wrong | what it says |")[1].split("\n\n")[0]
    for sentence in re.findall(r"\| `(.*?)`", table):
        for part in filter(None, re.split(r"\.\.\. ?| ?\.\.\.|hf auth log\w+|dqn_atari\.\S+;", sentence)):
            assert part.strip(" ,;") in re.sub(r"[`]|\{name_flag\}", "", source).replace(" names it", " names it"), part
