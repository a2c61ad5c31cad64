"""Push a finished run to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, errors

from cleanrl_utils.config import BadInput
from cleanrl_utils.evals import Evaluation


def require_upload(args: Any) -> None:
    """Raise `BadInput` unless `--upload-model` can work: an entity, a saved model, a token that the Hub knows."""
    if not args.hf_entity:
        raise BadInput("--upload-model", "on", "needs --hf-entity, a user or organization on the Hugging Face Hub")
    if not args.save_model:
        raise BadInput("--upload-model", "on", "needs --save-model")
    try:
        HfApi().whoami()
    except (errors.LocalTokenNotFoundError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError) as error:
        raise BadInput(
            "--upload-model", "on", f"needs the Hub and a token, `hf auth login` ({_first_line(error)})"
        ) from None


def push(folder: Path, args: Any, scores: Evaluation) -> str:
    """Upload models, config and a model card of the run in `folder`; returns the repository's id. Can be repeated."""
    repo = f"{args.hf_entity}/{args.env_id.replace('/', '-')}-{args.exp_name}-seed{args.seed}"
    (folder / "README.md").write_text(card(args, scores), encoding="utf-8")
    api = HfApi()
    api.create_repo(repo, exist_ok=True)
    files = ["*.cleanrl_model", "config.json", "README.md"]  # event files are named after their host
    api.upload_folder(
        repo_id=repo, folder_path=folder, allow_patterns=files, commit_message="Model, flags and scores of a run"
    )
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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
