"""Read flags from the command line and from YAML files, and check which values are allowed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import operator
import signal
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from annotated_types import Predicate

from cleanrl_utils.console import guard_error_stream, guarded_output, notice, one_line_warnings
from cleanrl_utils.errors import BadInput, CannotGoOn, WriteError
from cleanrl_utils.flag_files import checked, load_yaml
from cleanrl_utils.flag_help import grouped, in_one_line
from cleanrl_utils.record import read_run

Args = TypeVar("Args")

COMPARISONS = {"gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le}
"""How a value must compare with a limit, by annotated-types' name for the limit."""


def _json_object(texts: list[str]) -> dict[str, Any]:
    value = json.loads(texts[0])
    if not isinstance(value, dict):
        raise ValueError(f"{texts[0]} is no JSON object")
    return value


Json = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=_json_object,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]
"""Type of a flag that takes keywords: a JSON object on the command line, a mapping in a configuration file."""


WHOLE_NUMBERS = tyro.constructors.ConstructorRegistry()
"""Makes tyro read 1e6 and 3.0 as whole numbers, as in configuration files."""


def _whole_number(texts: list[str]) -> int:
    with contextlib.suppress(ValueError):
        if {*".eE"} & {*texts[0]} and float(texts[0]).is_integer():
            return int(float(texts[0]))
    return int(texts[0])  # tyro knows how to report its error


@WHOLE_NUMBERS.primitive_rule
def _of_whole_numbers(type_info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    if type_info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=_whole_number,
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def run(main: Callable[[Args], Any], args_class: type[Args], argv: list[str] | None = None) -> None:
    """Parse the flags and call `main`; an error ends the process with one line and a status.

    2: a mistake by the user (`BadInput`); 130: Ctrl-C; 141: nobody reads the output; 1: training diverged, a file could not
    be read or written, or a run cannot go on.
    """
    guard_error_stream()
    try:
        if not script_path(args_class).is_file():
            how = "save it as a file; in a notebook: from cleanrl import dqn; dqn.main(dqn.Args(total_timesteps=50_000))"
            raise BadInput("this script", "(piped or pasted)", f"a run keeps a copy of its script, so {how}")
        with one_line_warnings():
            main(parse(args_class, sys.argv[1:] if argv is None else argv))
    except BadInput as error:
        notice(f"error: {error}")
        sys.exit(2)
    except (FloatingPointError, WriteError, PermissionError, CannotGoOn) as error:
        notice(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        notice("stopped")
        sys.exit(128 + signal.SIGINT)


def parse(args_class: type[Args], argv: list[str]) -> Args:
    """Parse flags into an `args_class`: the command line overrides `--config FILE`, which overrides the defaults.

    Under `--resume RUN_FOLDER` they are that run's, but `--total-timesteps` may grow; whether other `--threads` are accepted
    is decided when the checkpoint is read. Raises `BadInput` for an unusable configuration file or run folder; a bad flag
    ends the process with one line and status 2.
    """
    resumed, path = _option(argv, "--resume"), _option(argv, "--config")
    if resumed is not None and hasattr(args_class, "resume"):
        flags, complete = run_flags(Path(resumed), args_class)
        default = args_class(**flags | {"resume": resumed})
        args, free = _parse(args_class, default, argv), {"resume_anyway", "threads"}
        longer = args.total_timesteps > default.total_timesteps
        if longer:
            free |= {"total_timesteps"}
        elif complete:
            more = f"more --total-timesteps than its {default.total_timesteps} train it further, if its checkpoint was kept"
            allowed = f"is complete; {more}; `cleanrl_utils.huggingface push` uploads it"
            raise BadInput("--resume", resumed, allowed)
        for name in (name for name in vars(args) if name not in free):
            if getattr(args, name) != getattr(default, name):
                allowed = f"--resume takes all flags from the run, where it is {getattr(default, name)}"
                raise BadInput(flag(name), getattr(args, name), allowed)
        if longer:
            args.schedule_timesteps = default.schedule_length
        return args
    return _parse(args_class, args_class(**load_yaml(path, args_class)) if path is not None else args_class(), argv)


def _option(argv: list[str], name: str) -> str | None:
    """Return the value of an option on the command line, which is read before the others are parsed."""
    for i in reversed(range(len(argv))):
        if argv[i] == name and i + 1 < len(argv):
            return argv[i + 1]
        if argv[i].startswith(f"{name}="):
            return argv[i].removeprefix(f"{name}=")
    return None


def _parse(args_class: type[Args], default: Args, argv: list[str]) -> Args:
    """Parse the command line, whose flags override those in `default`."""
    message = io.StringIO()
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {module.name.removesuffix('.__main__')}" if module else f"python {sys.argv[0]}"
    try:
        with guarded_output(), contextlib.redirect_stderr(message), WHOLE_NUMBERS:
            if "save_model" in vars(default) and {"-h", "--help"} & {*argv}:  # a script's help has groups
                about, flat = sys.modules[args_class.__module__].__doc__, (tyro.conf.OmitArgPrefixes,)
                tyro.cli(grouped(args_class, default), prog=program, description=about, args=argv, config=flat)
            return tyro.cli(args_class, prog=program, default=default, args=argv)
    except SystemExit as stopped:
        if stopped.code and message.getvalue():
            notice(f"error: {in_one_line(message.getvalue())}{_how_booleans_are_written(args_class, argv)}")
        raise


def _how_booleans_are_written(args_class: type, argv: list[str]) -> str:
    """Return a hint if a flag that is on or off was given a value, as in `--cuda False`."""
    hints = typing.get_type_hints(args_class)
    for word, value in itertools.pairwise(argv):
        name = word.removeprefix("--").removeprefix("no-").replace("-", "_")
        if word.startswith("--") and hints.get(name) is bool and value.lower() in ("true", "false", "1", "0", "yes", "no"):
            return f"; write {flag(name)} or {flag('no_' + name)}, without `{value}`"
    return ""


def run_flags(folder: Path, args_class: type) -> tuple[dict[str, Any], bool]:
    """Return the flags that a run of this script was started with, from its config.json, and whether it is complete.

    Raises `BadInput` if the file is missing, damaged, or of another script.
    """
    path = folder / "config.json"
    run = read_run(path, "--resume", folder)
    flags, script = run["flags"], run["script"]
    if script != script_name(args_class):
        raise BadInput("--resume", folder, f"is a run of {script}, not of {script_name(args_class)}")
    for name in ("resume", "resume_anyway"):
        flags.pop(name, None)
    flags["threads"] = run.get("protocol", {}).get("threads")  # the chosen number: with another, the weights differ
    return checked(flags, args_class, "--resume", str(path)), run.get("status") == "complete"


def script_path(args_class: type) -> Path:
    """Return the file of the script that defines an `Args`; a script that was piped or pasted has no file."""
    return Path(getattr(sys.modules[args_class.__module__], "__file__", None) or "")


def script_name(args_class: type) -> str:
    """Return the name of the script that defines an `Args`, such as `dqn_atari`, however it was started."""
    return script_path(args_class).stem


def flag(field: str) -> str:
    """Return the flag of a field: `--learning-rate` for `learning_rate`."""
    return "--" + field.replace("_", "-")


def check_ranges(args: Any) -> None:
    """Raise `BadInput` for the first flag whose value is outside the bounds of its type.

    Each item of a tuple is checked. None passes: the parser accepts it only where the type says `| None`.
    """
    for name, hint in typing.get_type_hints(type(args), include_extras=True).items():
        value = getattr(args, name)
        items = value if isinstance(value, tuple) else (value,)
        for bounds in _bounds(hint):
            if not all(item is None or _inside(item, bounds) for item in items):
                words = next((bound for bound in bounds if isinstance(bound, str)), f"must be in {bounds}")
                raise BadInput(flag(name), repr(value) if isinstance(value, str) else value, words)


def _bounds(hint: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the bounds of a type and of the types inside it, such as `Probability | None` or `tuple[Positive, ...]`."""
    if typing.get_origin(hint) is Annotated:
        yield hint.__metadata__
    for part in typing.get_args(hint):
        yield from _bounds(part)


def _inside(value: Any, bounds: tuple[Any, ...]) -> bool:
    """Whether a value meets all bounds: limits and predicates. NaN meets no limit."""
    for bound in bounds:
        for name, holds in COMPARISONS.items():
            limit = getattr(bound, name, None)
            if limit is not None and not holds(value, limit):
                return False
        if isinstance(bound, Predicate) and not bound.func(value):
            return False
    return True


def command_line(args: Any) -> list[str]:
    """Return the words that `parse` would read as these `args`: the flags that differ from their defaults."""
    words: list[str] = []
    for field in dataclasses.fields(args):
        value, default = getattr(args, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value == default:
            continue
        if isinstance(value, bool):
            words.append(flag(field.name) if value else flag(f"no_{field.name}"))
        elif isinstance(value, dict):
            words += [flag(field.name), json.dumps(value)]
        elif isinstance(value, tuple):
            words += [flag(field.name), *map(str, value)]
        else:
            words += [flag(field.name), str(value)]
    return words


def recorded(args: Any) -> dict[str, Any]:
    """Return what config.json says of a run's flags: all of them, and the command that repeats the run."""
    return {"flags": dataclasses.asdict(args), "command": [script_path(type(args)).name, *command_line(args)]}


def at_least(args: Any, field: str, minimum: int) -> int:
    """Return the field's value, or `minimum` if that is larger, with a line that says so: toy sizes should run."""
    value = getattr(args, field)
    if value < minimum:
        notice(f"{flag(field)} {value} is raised to {minimum}, the least that these settings need")
    return max(value, minimum)
