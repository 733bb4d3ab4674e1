"""Uploads folders to the Hugging Face Hub; the only user of huggingface_hub (a dependency of diffusers)."""

from __future__ import annotations

from pathlib import Path

from ddp_cli.errors import DdpError


def push_folder(folder: Path, repo_id: str) -> str:
    """Upload `folder` to the model repository `repo_id` (owner/name), created if it does not exist; returns its URL.

    DdpError if the upload fails; the folder is kept.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo_id, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Export of a diffusion policy")
    except Exception as e:  # exceptions of the library and of its HTTP client
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise DdpError(
            f"'{folder}' is written, but could not be uploaded to '{repo_id}': {reason}.",
            "Log in with `hf auth login`, then run the command again with --overwrite.",
        ) from e
    return f"https://huggingface.co/{repo_id}"
