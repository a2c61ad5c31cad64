"""What must not be published with a run: tokens, this machine's name, local paths, accounts."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

from cleanrl_utils.errors import BadInput

LOCAL_FLAGS = ("config", "dataset", "initial_model", "teacher_policy_hf_repo", "teacher_replay")
"""Flags whose values may be paths on this machine; only the file names are published."""
OWN_FLAGS = ("hf_entity", "upload_model", "track", "tracker", "wandb_entity", "wandb_project_name", "capture_video")
OWN_FLAGS += ("resume", "resume_anyway", "config")
"""Flags that are nobody else's business and do not affect the result."""
LOCAL_PATH = re.compile(r"(?<![\w.:/+~-])(~?(/[\w.@-]+){2,}|[A-Za-z]:\\\\?[\w.-]+)")
"""An absolute path, of Unix or Windows; it does not match a URL, an environment's id or a repository's name."""


def public(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run's config without what belongs to this machine or account: paths (last parts stay), tracking, the Hub."""
    flags = {name: value for name, value in run["flags"].items() if name not in OWN_FLAGS}
    names = {flags[name]: Path(flags[name]).name for name in LOCAL_FLAGS if _is_path(name, flags.get(name))}
    flags = {name: names.get(value, value) if isinstance(value, str) else value for name, value in flags.items()}
    command, keep = [], True
    for word in run.get("command", []):
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if flag:
            name = flag[2:].replace("-", "_")
            keep = name not in OWN_FLAGS and name.removeprefix("no_") not in OWN_FLAGS
        if keep:
            command.append(flag + equals + names.get(value, value))
    run = {key: value for key, value in run.items() if key not in ("wandb_run", "trackio_run", "resumed")}
    return run | {"flags": flags, "command": command}


def _is_path(name: str, value: Any) -> bool:
    """Whether a flag's value is a path, and not a repository on the Hub."""
    if not isinstance(value, str) or name != "teacher_policy_hf_repo":
        return isinstance(value, str)
    return Path(value).exists() or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", value)


def require_nothing_private(files: dict[str, bytes]) -> None:
    """Raise `BadInput` for a file that holds the token, the name of this machine or the path of a folder on it."""
    from huggingface_hub import get_token  # noqa: PLC0415

    folders = {"your home folder's path": str(Path.home()), "a local path": str(Path.cwd())}
    private = {
        what: rb"(?<![\w.-])%s(?![\w.-])" % re.escape(path.encode()) for what, path in folders.items() if len(path) > 4
    }
    if token := get_token():
        private["your token"] = re.escape(token.encode())
    host = socket.gethostname() if socket.gethostname() != "localhost" else ""
    for name, content in files.items():
        found = [what for what, pattern in private.items() if re.search(pattern, content)]
        if name in ("config.json", "README.md") and (path := LOCAL_PATH.search(content.decode())):
            found.append(f"a local path ({path[0]})")
        values = [*(run := json.loads(content))["flags"].values(), *run["command"]] if name == "config.json" else [name]
        if len(host) > 4 and any(re.search(rf"\b{re.escape(host)}\b", str(value)) for value in values):
            found.append("this machine's name")
        if found:
            raise BadInput("RUN_FOLDER", name, f"holds {found[0]}, which must not go out: take it out of that file first")
