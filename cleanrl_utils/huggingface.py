"""Push a finished run to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from cleanrl_utils.config import BadInput, file_name, first_line, notice
from cleanrl_utils.evals import Evaluation


def require_upload(args: Any) -> None:
    """Raise `BadInput` unless `--upload-model` can work: an entity, a saved model, a token that the Hub knows."""
    if not args.hf_entity:
        raise BadInput("--upload-model", "on", "needs --hf-entity, a user or organization on the Hugging Face Hub")
    if not args.save_model:
        raise BadInput("--upload-model", "on", "needs --save-model")
    try:
        account = HfApi().whoami()
    except Exception as error:  # the HTTP library's own errors differ between versions of the client
        raise BadInput("--upload-model", "on", f"needs the Hub and a token, `hf auth login` ({first_line(error)})") from None

    names = [account["name"], *(organization["name"] for organization in account.get("orgs", []))]
    if args.hf_entity not in names:
        raise BadInput("--hf-entity", args.hf_entity, f"must be one this token may write for: {', '.join(names)}")


def push(folder: Path, args: Any, scores: Evaluation) -> str | None:
    """Upload models, config and a model card of the run in `folder`; returns the repository's id, None if that failed."""
    repo = f"{args.hf_entity}/{file_name(args.env_id)}-{args.exp_name}-seed{args.seed}"
    (folder / "README.md").write_text(card(args, scores), encoding="utf-8")
    api = HfApi()
    files = ["*.cleanrl_model", "config.json", "README.md"]  # event files are named after their host
    try:
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=files, commit_message="Model, flags and scores of a run"
        )
    except Exception as error:  # the run is complete and saved; the upload must not hide that behind a traceback
        notice(f"upload to {repo} failed ({first_line(error)}); the run is kept in {folder}")
        return None
    return repo


def card(args: Any, scores: Evaluation) -> str:
    """A model card with the metadata that the Hub shows."""
    return f"""---
library_name: cleanrl
tags: [{args.env_id}, deep-reinforcement-learning, reinforcement-learning, custom-implementation]
model-index:
- name: {args.exp_name}
  results:
  - task: {{type: reinforcement-learning, name: reinforcement-learning}}
    dataset: {{name: {args.env_id}, type: {args.env_id}}}
    metrics:
    - {{type: mean_reward, value: {scores.mean:.2f} +/- {scores.std:.2f}, name: mean_reward, verified: false}}
---

# {args.exp_name} on {args.env_id}, seed {args.seed}

Mean return {scores} over {len(scores.returns)} whole games at epsilon {args.eval_epsilon}. All flags, versions and
single returns are in `config.json`.
"""
