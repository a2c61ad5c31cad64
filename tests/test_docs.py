"""The pages say what is so: their commands run or have flags that exist, and what they name is there."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from cleanrl_utils import flags
from cleanrl_utils.benchmark import __main__ as benchmark
from cleanrl_utils.evals import players
from cleanrl_utils.flags import parse
from cleanrl_utils.report import __main__ as report
from cleanrl_utils.run.sinks import LAYOUT
from tests.conftest import DQN, QDAGGER, TINY_DQN, TINY_RUN, TINY_TEACHER, VECTOR_DQN
from tests.support import pages
from tests.support.pages import BLOCK, ROOT, Command
from tests.test_enjoy import cut_at

COMMANDS = list({(command.language, command.words): command for command in pages.commands()}.values())
SCRIPTS = {path.stem: importlib.import_module(f"cleanrl.{path.stem}") for path in sorted(ROOT.glob("cleanrl/[a-z]*.py"))}
TINY = dict.fromkeys([*DQN], TINY_RUN[2:]) | dict.fromkeys(QDAGGER, [*TINY_RUN[2:], *TINY_TEACHER])
TINY |= dict.fromkeys(VECTOR_DQN, [*TINY_DQN, "--total-timesteps", "300"])
TINY[SCRIPTS["fqi"]] = "--n-steps 200 --n-iterations 3 --eval-episodes 1 --eval-max-steps 5".split()
EXTRAS = tomllib.loads(pages.text_of("pyproject.toml"))["project"]["optional-dependencies"]
THEIRS = {"--index-url", "--extras", "--strict", "--logdir", "--install", "--xla_gpu_deterministic_ops"}
"""Flags of other people's programs that pages name."""


def module_of(words: tuple[str, ...]) -> tuple[ModuleType, tuple[str, ...]]:
    """The module that a Python command runs, and its flags."""
    if words[1] == "-m":
        is_package = (ROOT / words[2].replace(".", "/")).is_dir()
        return importlib.import_module(f"{words[2]}.__main__" if is_package else words[2]), words[3:]
    return SCRIPTS[Path(words[1]).stem], words[2:]


# --- Commands ---


def check_flags(module: ModuleType, flags: tuple[str, ...]) -> None:
    """Parse and check flags; what a page only stands for (a run to be resumed) is left out."""
    if flags[:1] == ("--help",):
        with pytest.raises(SystemExit) as stopped:
            parse(module.Args, [*flags])
        assert stopped.value.code == 0
    elif "--resume" in flags:
        assert hasattr(module.Args(), "resume")
    elif module is benchmark:
        assert benchmark.plan(parse(benchmark.Args, [*flags]))
    elif module is report and flags[0] == "compare":
        parse(report.CompareArgs, [*flags[1:]])
    else:
        args = parse(module.Args, [*flags])
        if module in SCRIPTS.values() and not getattr(args, "upload_model", False):
            module.check(args)
        if module is SCRIPTS["fqi"]:
            module.make_regressor(args)


def check_extras(words: tuple[str, ...]) -> None:
    """What pip, uv or poetry is asked to install is there."""
    for word in words:
        if extras := re.fullmatch(r"\.\[(.*)\]", word):
            assert set(extras[1].split(",")) <= EXTRAS.keys()
        if word.startswith("requirements/"):
            assert (ROOT / word).is_file()
    if "--extras" in words:
        assert set(words[words.index("--extras") + 1].split()) <= EXTRAS.keys()


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_commands_have_files_and_flags_that_exist(command: Command, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *rest = command.words
    if program in ("poetry", "uv") and rest[0] == "run":
        rest = rest[1:]
        while rest[0] == "--extra":
            assert rest[1] in EXTRAS
            rest = rest[2:]
        program, *rest = rest if rest[0] == "python" else ["python", *rest]
    words = (program, *rest)
    if program == "make":
        assert rest
        assert all(re.search(rf"^{target}:", pages.text_of("Makefile"), re.M) for target in rest)
    elif program == "bash":
        assert (ROOT / rest[0]).is_file()
        parse(benchmark.Args, rest[1:])
    elif program in ("pip", "uv", "poetry"):
        check_extras(words)
    elif program in ("python", "python3") and rest[0] not in ("docs/tutorial/q_learning.py", "docs/tutorial/plot.py"):
        if rest[:2] == ["-m", "venv"]:
            return
        if rest[0].startswith("benchmark/"):  # their own flags, then perhaps a script's
            place = next((i for i, word in enumerate(rest) if word.startswith("cleanrl/")), len(rest))
            source = pages.text_of(rest[0])
            for flag in (word for word in rest[:place] if word.startswith("--")):
                assert f'"{flag}"' in source or re.search(rf"^    {flag[2:]}:", source, re.M), flag
            if place == len(rest):
                return
            words = ("python", *rest[place:])
        check_flags(*module_of(words))
    else:
        assert program in ("tensorboard", "wandb", "trackio", "hf", "python", "docker")


RUNNABLE = [command for command in COMMANDS if command.language == "bash" and not command.page.startswith("docs/tutorial")]
WITHOUT_SEEDS = {re.sub(r"--seed \d+", "", " ".join(command.words)): command for command in RUNNABLE}
FIRST = list({module_of(command.words)[0]: command for command in reversed(WITHOUT_SEEDS.values())}.values())
"""The first command of each script."""


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=() if command in FIRST and "_jax" not in flags else pytest.mark.slow)
        for flags, command in WITHOUT_SEEDS.items()
    ],
    ids=str,
)
def test_runnable_commands_run_with_tiny_sizes(command: Command, empty_folder, monkeypatch, capsys):
    """The tutorial's are run by tests/test_tutorial.py."""
    for name in ("benchmark", "cleanrl_utils"):
        (empty_folder / name).symlink_to(ROOT / name)
    monkeypatch.setattr(players.Player, "settings", cut_at(400))
    module, flags = module_of(command.words)
    with contextlib.suppress(SystemExit) if "--help" in flags else contextlib.nullcontext():
        module.main(parse(module.Args, [*flags, *TINY.get(module, [])]))
    if "--video" in flags:
        assert Path(flags[flags.index("--video") + 1]).stat().st_size > 1000
    assert capsys.readouterr().out or list(Path("runs").glob("*/config.json"))


def test_blocks_are_marked_and_the_runnable_ones_are_many():
    languages = {language for page in pages.PAGES for language, *_ in pages.blocks(pages.name_of(page))}
    assert languages <= {"bash", "shell", "python", "text"}
    assert len(WITHOUT_SEEDS) >= 20
    assert {command.words[0] for command in RUNNABLE} == {"python"}


@pytest.mark.parametrize("page", map(pages.name_of, pages.PAGES))
def test_numbered_lists_count_up(page):
    """A line that happens to begin with a number and a point would be an item of its own."""
    last = 0
    for line in pages.prose(page).splitlines():
        if number := re.match(r" *(\d+)\. ", line):
            assert int(number[1]) in (1, last + 1), line
            last = int(number[1])


# --- Names ---

NAMED = [(page, name) for page in map(pages.name_of, pages.PAGES) for name in sorted(pages.named(page))]
FOLDERS = ("cleanrl", "cleanrl_utils", "benchmark", "tests", "docs", "requirements")


def sources() -> str:
    paths = [path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*") if path.suffix in (".py", ".sh", ".yaml")]
    return "\n".join(path.read_text(encoding="utf-8") for path in [*paths, ROOT / "Makefile", ROOT / "pyproject.toml"])


def words_of_code() -> set[str]:
    """Names, and words of strings, in all Python code; comments and docstrings do not count."""
    found: set[str] = set()
    for path in (path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            names = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "module")]
            if isinstance(node, ast.Constant) and id(node) not in docstrings:
                names.append(node.value)
            found |= {word for name in names if isinstance(name, str) for word in re.findall(r"\w+", name)}
    return found


MODULES = ("enjoy", "evals.__main__", "huggingface", "benchmark.__main__", "report.__main__", "curves")


def test_flags_that_pages_name_exist():
    modules = [*SCRIPTS.values(), *(importlib.import_module(f"cleanrl_utils.{name}") for name in MODULES)]
    classes = [report.CompareArgs, *(module.Args for module in modules)]
    known = {flags.flag(field.name) for args_class in classes for field in dataclasses.fields(args_class)}
    known |= {flag.replace("--", "--no-", 1) for flag in known} | {"--help"} | THEIRS
    programs = [*ROOT.glob("benchmark/*.py"), ROOT / "docs/tutorial/notebooks/build.py"]
    fields = [re.findall(r"^    (\w+): ", path.read_text(), re.M) for path in programs]
    known |= {flags.flag(field) for field in sum(fields, [])} | set(re.findall(r'"(--[\w-]+)"', sources()))
    unknown = [
        (page, flag) for page, name in NAMED for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", name) if flag not in known
    ]
    assert not unknown


def test_files_that_pages_name_exist():
    pattern = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*")
    named = [(page, path) for page, name in NAMED for path in pattern.findall(name)]
    of_runs = ("docs/rl-algorithms/NAME.md", "cleanrl/BreakoutNoFrameskip", "cleanrl/PongNoFrameskip")
    missing = [
        (page, path)
        for page, path in named
        if not list(ROOT.glob(path.rstrip("."))) and not path.startswith(of_runs) and path != "cleanrl/"
    ]
    assert len(named) > 60
    assert not missing


def test_symbols_that_pages_name_exist():
    """`NatureCNN.forward`, `td_target`, `test_...`: whatever looks like a name of the code's stands in it."""
    text = words_of_code() | {"reduce_window", "OneCycleLR", "NAME_jax"}  # two are others' names, one stands for any
    looks_like_one = re.compile(r"[A-Za-z]\w*(?:_\w+|[a-z][A-Z]\w*)(?:\.\w+)*(?:\(.*\))?")
    named = [(page, name) for page, name in NAMED if page != "CHANGELOG.md" and not name.endswith(".yaml")]
    symbols = [(page, name) for page, name in named if looks_like_one.fullmatch(name)]
    assert len(symbols) > 60
    assert not [(page, name) for page, name in symbols if not set(re.findall(r"\w+", name.split("(")[0])) <= text]


def test_tests_that_pages_name_exist():
    defined = {
        name for path in ROOT.glob("tests/test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    named = {name for _, name in NAMED if name.startswith("test_")}
    assert len(named) > 20
    assert named <= defined


def test_metrics_that_pages_name_are_in_the_tables_of_the_algorithms_pages():
    """Which are compared with what runs write: `test_dqn_atari`, `test_qdagger`, `test_dqn`, `test_fqi`."""
    explained = set().union(*(pages.metrics(f"docs/rl-algorithms/{name}.md") for name in ("dqn", "qdagger", "fqi")))
    named = {(page, name) for page, name in NAMED if re.fullmatch(r"(charts|losses|eval)/[\w/]+", name)}
    assert not [(page, name) for page, name in named if name not in explained]
    assert {tag for charts in LAYOUT.values() for chart in charts.values() for tag in chart} <= explained


@pytest.mark.parametrize("page", ["dqn", "qdagger", "fqi"])
def test_every_metric_of_a_table_has_a_formula(page):
    rows = re.findall(r"^\| `((?:charts|losses|eval)/\S+)` \|(.*)\|$", pages.text_of(f"docs/rl-algorithms/{page}.md"), re.M)
    assert len(rows) >= 3
    for metric, cells in rows:
        meaning, formula = cells.split(" | ")[-2:]
        assert len(meaning) > 8, metric
        assert formula.strip(), metric


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", pages.prose(pages.name_of(page)), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


OUTSIDE = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmark/slurm.md",
    *map(pages.name_of, ROOT.glob("cleanrl_utils/zoo/*/*.md")),
]


@pytest.mark.parametrize("page", OUTSIDE)
def test_links_and_pictures_of_pages_outside_of_the_site_are_there(page):
    """Those of the site are checked by `mkdocs build --strict`."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    for link in re.findall(r"(?:\]\(|(?:src|href)=\")([^)\s\"]+)", pages.prose(page)):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), link
        if listed.returncode == 0 and place.is_file():
            assert place.resolve().relative_to(ROOT).as_posix() in listed.stdout.splitlines(), f"{link} is not committed"
        assert not anchor or anchor in anchors(place), link


def test_no_two_films_are_the_same():
    films = [path.read_bytes() for path in ROOT.glob("docs/**/*.gif")]
    assert len(films) >= 3
    assert len(set(films)) == len(films)


@pytest.mark.parametrize("page", map(pages.name_of, pages.PAGES))
def test_no_section_is_empty(page):
    text = BLOCK.sub("(code)", pages.text_of(page))
    lines = [line for line in text.splitlines() if line.strip()]
    for line, following in zip(lines, [*lines[1:], "# the end"], strict=True):
        if level := re.match("#+ ", line):
            deeper = re.match("#+ ", following)
            assert not deeper or len(deeper[0]) > len(level[0]), line


NUMBER = r"-?\d+\.\d+ \+- \d+\.\d+"


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/benchmark/index.md"])
def test_measured_numbers_stand_on_the_pages_of_their_measurements(page):
    """What others have published stands on the pages of the algorithms."""
    elsewhere = [*ROOT.glob("docs/benchmark/**/*.md"), *ROOT.glob("cleanrl_utils/zoo/*/*.md"), *ROOT.glob("docs/rl-*/*.md")]
    known, told = set(), re.findall(NUMBER, pages.text_of(page))
    for path in elsewhere:
        if pages.name_of(path) != page:
            known |= set(re.findall(NUMBER, path.read_text(encoding="utf-8")))
    assert len(told) >= 5
    assert set(told) - known == set()


def test_extras_are_explained():
    table = pages.text_of("docs/get-started.md").split("| extra |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == EXTRAS.keys()
    for page in pages.PAGES:
        for extras in re.findall(r"\.\[([\w,]+)\]", page.read_text(encoding="utf-8")):
            assert set(extras.split(",")) <= EXTRAS.keys(), page


def test_modules_that_may_be_missing_are_among_the_common_problems():
    """Whatever a script imports at its beginning and the package does not bring without an extra."""
    problems = pages.text_of("docs/get-started.md").split("## Common problems")[1]
    imported: set[str] = set()
    for script in SCRIPTS.values():
        for node in ast.parse(Path(script.__file__).read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {
                name.split(".")[0] for name in [*names, *([node.module] if isinstance(node, ast.ImportFrom) else [])]
            }
    imported.add("ale_py")  # by evals/atari.py
    missing = imported - sys.stdlib_module_names - {"numpy", "torch", "gymnasium", "yaml", "tyro"}
    assert {"ale_py", "jax", "cleanrl_utils"} < missing
    assert {module for module in missing if f"'{module}'" not in problems} == set()


@pytest.mark.parametrize("page", map(pages.name_of, pages.PAGES))
def test_pages_name_no_absolute_path(page):
    """It would be that of somebody's machine; `/mnt/c` is the same on all that have WSL."""
    assert not re.search(r"(?<![\w./~*}\]-])/(?!mnt/c\b)\w+/|file:/", pages.text_of(page))
