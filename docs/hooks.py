"""What the site has beside its pages: formulas as MathML, files that pages link to, notebooks, tabs for pip, uv and Poetry.

A page links to `../../cleanrl/dqn_atari.py#td_loss`: on a code host that is the file, on the site the function on its page.
So links to code are checked by `mkdocs build --strict`, nothing here comes from elsewhere, and formulas need no script.
"""

from __future__ import annotations

import ast
import html
import posixpath
import re
from pathlib import Path
from textwrap import indent

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()([^)\s:#]+)((?:#[^)\s]*)?\))")
PICTURES = (".png", ".gif", ".svg")
SCRIPT = re.compile(r"\bpython (cleanrl/\w+\.py)(.*)")
COMMANDS = re.compile(r"^```(?:bash|shell)\n((?:(?!```).*\n)+)```$", re.M)
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".toml": "toml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page under `source/` for each file outside of docs/ that is linked to, or is in the navigation."""
    todo = [entry.removeprefix("source/") for entry in re.findall(r"source/[\w./-]+", str(config.nav))]
    for file in files.documentation_pages():
        todo += linked(f"docs/{file.src_uri}", file.content_string)
    done: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in done:
            done.add(name)
            if name.endswith(PICTURES):
                files.append(File.generated(config, page_of(name), abs_src_path=str(ROOT / name)))
                continue
            text = (ROOT / name).read_text(encoding="utf-8")
            content = text if name.endswith(".md") else source_page(name, text)
            files.append(File.generated(config, page_of(name), content=content))
            todo += linked(name, text) if name.endswith(".md") else []
    for path in sorted(ROOT.glob("docs/tutorial/solutions/*.ipynb")):
        add_notebook(files, config, path)
    return files


def add_notebook(files: Files, config: MkDocsConfig, path: Path) -> None:
    """Add the page of a solved notebook, with what it prints and draws."""
    pictures = {"ExtractOutputPreprocessor": {"extract_output_types": {"image/png", "image/gif"}}}
    text, resources = MarkdownExporter(config=Config(pictures)).from_filename(str(path), {"unique_key": path.stem})
    for name, picture in resources["outputs"].items():
        files.append(File.generated(config, f"tutorial/{name}", content=picture))
    title, _, rest = text.partition("\n")
    about = f"The solved notebook. To download: [the exercises]({path.name}), [the solutions](solutions/{path.name})."
    files.append(File.generated(config, f"tutorial/{path.stem}.md", content=f"{title}\n\n{about}\n{rest}"))


def on_page_markdown(markdown: str, page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs passes names
    """Let links to files outside of docs/ lead to their pages, and show commands for pip, uv and Poetry."""
    uri = page.file.src_uri
    if uri.startswith("source/") and uri.count(".") > 1:  # code
        return markdown
    if uri.startswith("rl-algorithms/"):
        markdown = COMMANDS.sub(with_tabs, markdown)
    origin = uri.removeprefix("source/") if uri.startswith("source/") else f"docs/{uri}"

    def to_page(link: re.Match[str]) -> str:
        name = target(origin, link[2])
        if not (ROOT / name).is_file():
            return link[0]
        place = name.removeprefix("docs/") if name.startswith("docs/") else page_of(name)
        return link[1] + posixpath.relpath(place, posixpath.dirname(uri)) + link[3]

    return LINK.sub(to_page, markdown)


def on_page_content(content: str, page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Turn `$...$` and `$$...$$`, which arithmatex has marked, into MathML."""

    def formula(match: re.Match[str]) -> str:
        inline = match[2].startswith(r"\(")
        mathml = convert(html.unescape(match[2])[2:-2], display="inline" if inline else "block")
        return f"<{match[1]} class='formula'>{mathml}</{match[1]}>"

    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', formula, content, flags=re.S)


def with_tabs(commands: re.Match[str]) -> str:
    """A block of commands that run scripts, for each of three ways to install what the scripts need; others as they are."""
    block = commands[1]
    runs = SCRIPT.findall(block)
    if not runs:
        return commands[0]
    extras = sorted({extra for script, rest in runs for extra in extras_of(script, rest)})

    def by_uv(command: re.Match[str]) -> str:
        return " ".join(["uv run", *(f"--extra {extra}" for extra in extras_of(*command.groups())), command[0]])

    install = "pip install -c requirements/constraints.txt -e " + (f'".[{",".join(extras)}]"' if extras else ".")
    poetry_install = "poetry install" + (f' --extras "{" ".join(extras)}"' if extras else "")
    ways = {
        "pip": f"{install}\n{block}",
        "uv": SCRIPT.sub(by_uv, block),
        "Poetry": f"{poetry_install}\n" + SCRIPT.sub(r"poetry run \g<0>", block),
    }
    return "\n\n".join(f'=== "{way}"\n\n' + indent(f"```bash\n{text}```", "    ") for way, text in ways.items())


def extras_of(script: str, rest: str) -> list[str]:
    """The extras that a script names in its header, and the rest of its command in a comment."""
    (needed,) = re.findall(r'^# dependencies = \["qdagger(.*)"\]$', (ROOT / script).read_text(encoding="utf-8"), re.M)
    return list(dict.fromkeys([*re.findall(r"\w+", needed), *re.findall(r"the extra `(\w+)`", rest)]))


def target(origin: str, link: str) -> str:
    """The file that a relative link in the file `origin` leads to; both from the root of the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def linked(origin: str, markdown: str) -> list[str]:
    """The files outside of docs/ that a page links to."""
    names = [target(origin, link) for _, link, _ in LINK.findall(markdown)]
    return [name for name in names if not name.startswith(("docs/", "../")) and (ROOT / name).is_file()]


def page_of(name: str) -> str:
    """The page of a file outside of docs/."""
    return f"source/{name}" if name.endswith((".md", *PICTURES)) else f"source/{name}.md"


def source_page(name: str, text: str) -> str:
    """A file as a page, with a heading for each of its sections and top-level definitions."""
    language = LANGUAGES.get(Path(name).suffix, "text")
    definitions: dict[int, str] = {}
    if language == "python":
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                first = min(part.lineno for part in (node, *node.decorator_list))
                definitions[first] = node.name
    fence, level = "`````", "##"
    lines = [f"---\nhide: [navigation]\nsearch: {{boost: 0.3}}\ntitle: {name}\n---\n# `{name}`\n", fence + language]
    for number, line in enumerate(text.splitlines(), 1):
        if section := re.fullmatch(r"# --- (.*) ---", line):
            lines += [fence, "", f"## {section[1]}", "", fence + language]
            level = "###"
            continue
        if number in definitions:
            symbol = definitions[number]
            lines += [fence, "", f"{level} `{symbol}` {{ #{symbol} }}", "", fence + language]
        lines.append(line)
    page = "\n".join([*lines, fence, ""])
    return re.sub(rf"{fence}{language}\n\s*{fence}\n", "", page)  # nothing but blank lines between two headings
