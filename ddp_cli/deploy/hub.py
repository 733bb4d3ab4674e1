"""Folders to the Hugging Face Hub; the only user of huggingface_hub (which diffusers brings)."""

from __future__ import annotations

from pathlib import Path

from ddp_cli.errors import DdpError


def push(folder: Path, repository: str) -> str:
    """Uploads `folder` as the model `repository` (owner/name), made if need be; returns its address."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of a diffusion policy")
    except Exception as e:  # its own kinds, and those of whatever it speaks HTTP with
        why = (str(e) or type(e).__name__).splitlines()[0]
        raise DdpError(
            f"'{folder}' is written, but could not be uploaded to '{repository}': {why}.",
            "Log in with `hf auth login`, and run it again with --overwrite.",
        ) from e
    return f"https://huggingface.co/{repository}"
