"""The Hugging Face hub: files of a repository, from the cache where they are there, and a folder to a repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ModelError, WeightsUnavailableError

PREFIX = "hf-hub:"
"""What the name of a repository begins with, where it could be something else."""


def cached(hub: str, file: str, revision: str | None = None) -> Path | None:
    """A file of the hub that is on this machine; nothing is asked online."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(hub, file, revision=revision)
    except errors.HFValidationError as error:
        raise _no_name(hub) from error
    return Path(cached) if isinstance(cached, str) else None


def fetch(hub: str, files: Sequence[str], revision: str | None = None, *, offline: str) -> Path | None:
    """The first of some files that a repository has, from the cache where it is there.

    Parameters
    ----------
    hub
        ``ORGANISATION/NAME``.
    files
        Names, in order of preference.
    revision
        Branch, tag or commit.
    offline
        What to do where there is network, as a refusal tells it.

    Returns
    -------
    Its path; ``None`` where the repository has none of them.

    Raises
    ------
    ModelError
        No such revision, or a name that cannot be.
    WeightsUnavailableError
        No network or no access.
    """
    import huggingface_hub
    from huggingface_hub import errors

    for file in files:
        if path := cached(hub, file, revision):
            return path
    unreachable = (
        f"the weights of {hub} are not on this machine, and huggingface.co cannot be reached. Where there is network: "
        f"{offline}"
    )
    for file in files:
        try:
            return Path(huggingface_hub.hf_hub_download(hub, file, revision=revision))
        except errors.LocalEntryNotFoundError as error:  # no network; one of its kind is the next
            raise WeightsUnavailableError(unreachable) from error
        except errors.EntryNotFoundError:
            continue
        except errors.RevisionNotFoundError as error:
            raise ModelError(f"huggingface.co/{hub} has no revision {revision!r}.") from error
        except errors.RepositoryNotFoundError as error:  # gated ones are of this kind
            raise WeightsUnavailableError(_no_access(hub)) from error
        except OSError as error:
            raise WeightsUnavailableError(unreachable) from error
    return None


def push(folder: Path, hub: str, *, private: bool, token: str | None, revision: str | None, commit_message: str) -> str:
    """Upload the files of a folder into a repository, made where it is absent; returns its address."""
    from huggingface_hub import HfApi, errors

    api = HfApi(token=token)
    try:
        address = api.create_repo(hub, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(hub, branch=revision, exist_ok=True)
        api.upload_folder(repo_id=hub, folder_path=folder, revision=revision, commit_message=commit_message)
    except errors.HFValidationError as error:
        raise _no_name(hub) from error
    except Exception as error:
        why = " ".join(str(error).split())
        raise ModelError(
            f"the model was not uploaded to {api.endpoint}/{hub} ({why}). It takes network and a token that may write: "
            "make one at huggingface.co/settings/tokens, and give it by token=, 'hf auth login' or the environment "
            "variable HF_TOKEN."
        ) from error
    return str(address)


def _no_name(hub: str) -> ModelError:
    return ModelError(f"{hub!r} is no name on the hub; expected 'hf-hub:ORGANISATION/NAME'.")


def _no_access(hub: str) -> str:
    return (
        f"no access to huggingface.co/{hub}: it does not exist, is private, or is gated. If it is gated: sign in at "
        f"huggingface.co/{hub}, accept its terms, make a token at huggingface.co/settings/tokens, and give it to "
        "'hf auth login' or the environment variable HF_TOKEN."
    )
