"""Model files in a folder or on the Hugging Face hub: found, and uploaded."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def locate(argument: str, spec: str, files: Sequence[str]) -> Path:
    """The folder that holds `files`: `spec` itself if it is a folder, else the hub's cache.

    Files in the cache are used without network access; missing ones are downloaded into it. All files of one call have
    the same revision.

    Args:
        argument: the caller's name for `spec`, used in error messages.
        spec: a folder or a hub id.
        files: names of files.

    Raises:
        FileNotFoundError: no such folder, and the download failed; says what to download and where to put it.
        ValueError: the folder or repository lacks a file, or `spec` is a file.
    """
    folder = Path(os.path.expanduser(spec))
    if spec and folder.is_dir():
        for name in files:
            if not (folder / name).is_file():
                raise ValueError(_missing(f"{argument}={spec!r}", name, {path.name for path in folder.iterdir()}))
        return folder
    if spec and folder.exists():
        raise ValueError(f"{argument}={spec!r} is a file; accepted are its folder or a hub id")
    if not _HUB_ID.fullmatch(spec):
        raise FileNotFoundError(f"{argument}={spec!r}: no such folder, and no hub id (NAME or OWNER/NAME)")
    return _from_hub(argument, spec, files)


def publish(repository: str, files: Mapping[str, Path | bytes], *, message: str, private: bool = False) -> str:
    """Upload files to a model repository on the hub in one commit; the repository is made if there is none.

    Args:
        repository: OWNER/NAME.
        files: name in the repository -> a file, or its contents.
        message: of the commit.
        private: of a repository that is made now.

    Returns:
        The address of the commit.

    Raises:
        ValueError: `repository` is no OWNER/NAME.
        OSError: the upload failed; says why, and how to log in.
    """
    check_repository("repository", repository)
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, contents) for name, contents in files.items()]
        return str(api.create_commit(repository, operations, commit_message=message).commit_url)
    except Exception as error:  # a refused connection, a missing permission, a file that is gone: too many classes to name
        raise OSError(
            f"{repository}: the upload to {constants.ENDPOINT} failed ({type(error).__name__}: {' '.join(str(error).split())}). "
            "It needs a token that may write there: hf auth login, or HF_TOKEN"
        ) from error


def is_repository(spec: str) -> bool:
    """Whether this is a hub id of the form OWNER/NAME."""
    return "/" in spec and _HUB_ID.fullmatch(spec) is not None


def check_repository(argument: str, spec: str) -> None:
    """Raise ValueError unless `spec` is OWNER/NAME."""
    if not is_repository(spec):
        raise ValueError(f"{argument}={spec!r} is not accepted: a repository of the hub is OWNER/NAME")


def _from_hub(argument: str, spec: str, files: Sequence[str]) -> Path:
    try:
        return _fetch(spec, files, local=True)
    except LocalEntryNotFoundError:
        pass  # at least one file is not in the cache
    try:
        return _fetch(spec, files, local=False)
    except LocalEntryNotFoundError as error:  # no network, and not in the cache
        raise FileNotFoundError(_how_to_get(argument, spec, files, error)) from error
    except EntryNotFoundError as error:
        raise ValueError(f"{argument}={spec!r}: the repository lacks one of {', '.join(files)}: {error}") from error
    except Exception as error:  # a refused connection, an unknown repository, a full disk: too many classes to name
        raise FileNotFoundError(_how_to_get(argument, spec, files, error)) from error


def _fetch(repository: str, files: Sequence[str], *, local: bool) -> Path:
    folder = Path(hf_hub_download(repository, files[0], local_files_only=local)).parent
    for name in files[1:]:
        # A snapshot's folder is named after its commit.
        hf_hub_download(repository, name, revision=folder.name, local_files_only=local)
    return folder


def _how_to_get(argument: str, spec: str, files: Sequence[str], error: Exception) -> str:
    return (
        f"{argument}={spec!r}: no such folder, not in the cache {constants.HF_HUB_CACHE}, and the download failed "
        f"({type(error).__name__}: {' '.join(str(error).split())}). On a machine with network access, run: "
        f"hf download {spec} {' '.join(files)} --local-dir FOLDER "
        f"(or take the files from {constants.ENDPOINT}/{spec}), then pass FOLDER as {argument}"
    )


def _missing(what: str, name: str, present: set[str]) -> str:
    words = f"{what}: the folder has no {name}"
    pickled = sorted(other for other in present if other.endswith((".bin", ".pt", ".ckpt")))
    if name == "model.safetensors" and f"{name}.index.json" in present:
        return f"{words}; its weights are in several files. Save them as one: model.save_pretrained(FOLDER, max_shard_size='100GB')"
    if name == "model.safetensors" and pickled:
        return (
            f"{words}; {', '.join(pickled)} is a pickle, which can run code and is not read. With transformers installed, run: "
            "AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER, safe_serialization=True)"
        )
    if name == "tokenizer.json" and "vocab.txt" in present:
        return f"{words}, only vocab.txt. With transformers installed, run: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    return f"{words} (it holds {', '.join(sorted(present)) or 'nothing'})"
