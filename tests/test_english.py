"""Help texts and pages avoid turns of phrase that readers had to read twice."""

from __future__ import annotations

import importlib
import re

import pytest

from cleanrl_utils.flag_help import field_docs
from cleanrl_utils.report.compare import CompareArgs
from tests.support import pages
from tests.support.pages import ROOT

PLAIN = {
    r"\b(?:has|have) not(?=\s*[.,;:)|]|$)": "does not have, or the verb that is missing",
    r"\b(?:is|are|has|have) none\b": "does not exist, has no ...",
    r"\bof (?:its|their|our) own\b": "its own ..., separate",
    r"(?<!says )(?<!said )\botherwise\b": "else, differently",
    r"\bbesides\b": "also, as well",
    r"\blet go\b": "freed",
    r"\b(?:which|that) (?:is|are) left\b": "the rest, the remaining ...",
    r"\bso many\b": "this many, or the number",
    r"\bunless told\b": "by default",
    r", as (?:`[^`]+`[,.;)]|[`'\"]?\{|\w[\w/:]*-v\d|[a-z]\w*=|\w+_\w+\b)": "such as",
}
"""Patterns, each with what to write in its place."""
MODULES = (
    *(f"cleanrl.{path.stem}" for path in sorted(ROOT.glob("cleanrl/[a-z]*.py"))),
    "cleanrl_utils.benchmark.plan",
    "cleanrl_utils.curves",
    "cleanrl_utils.enjoy",
    "cleanrl_utils.evals.__main__",
    "cleanrl_utils.huggingface",
    "cleanrl_utils.report.page",
    "cleanrl_utils.zoo.__main__",
)
HISTORY = "CHANGELOG.md"


def found(text: str) -> list[str]:
    """What a text has of the patterns, with the words around it and what to write."""
    text = " ".join(text.split())
    return [
        f"{text[max(match.start() - 40, 0) : match.end() + 20]!r}: {better}"
        for pattern, better in PLAIN.items()
        for match in re.finditer(pattern, text)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a folder that is none",
        "Where it has not, stop the run.",
        "a process of its own that trains",
        "it rounds otherwise",
        "with bfloat16 besides",
        "is let go before",
        "the cure that is left",
        "up to so many no-ops",
        "30 neighbours unless told",
        "Atari game, as BreakoutNoFrameskip-v4 or another",
        "an id, as `package:Name-v0`, has to be given",
        "keywords, as '{\"mem\": 16}'",
        "key=value, as exp_name=dqn",
        "script of the agent, as dqn_atari; default",
    ],
)
def test_the_patterns_are_found(text):
    assert len(found(text)) == 1


def test_plain_sentences_are_not_found():
    text = "unless a keyword says otherwise; the code has not run; as `enjoy` writes it; its own replay, as in the twin"
    assert not found(text)


@pytest.mark.parametrize("name", MODULES)
def test_help_texts_are_plain(name):
    module = importlib.import_module(name)
    texts = {"the script": module.__doc__, "its flags": module.Args.__doc__} | field_docs(module.Args)
    assert not {flag: said for flag, text in texts.items() if (said := found(text))}


def test_help_texts_of_compare_are_plain():
    assert not {flag: said for flag, text in field_docs(CompareArgs).items() if (said := found(text))}


@pytest.mark.parametrize("page", [name for name in map(pages.name_of, pages.PAGES) if name != HISTORY])
def test_pages_are_plain(page):
    assert not found(pages.prose(page))
