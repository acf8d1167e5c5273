"""Model files in a folder or on the Hugging Face hub: found, and uploaded."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from huggingface_hub import (
    _CACHED_NO_EXIST,
    CommitOperationAdd,
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RemoteEntryNotFoundError
from huggingface_hub.utils import validate_repo_id


def locate(
    argument: str,
    spec: str,
    files: Sequence[str],
    *,
    optional: Sequence[str] = (),
    further: Callable[[Path], Sequence[str]] = lambda _: (),
) -> Path:
    """The folder that holds `files`: `spec` itself if it is a folder, else the hub's cache.

    Files in the cache are used without network access; missing ones are downloaded into it. All files of one call have
    the same revision.

    Args:
        argument: the caller's name for `spec`, used in error messages.
        spec: a folder or a hub id.
        files: names of files.
        optional: names of files that the folder or repository may lack.
        further: for a folder with all these, the names of the files that they ask for.

    Raises:
        FileNotFoundError: no such folder, and the download failed; says what to download and where to put it.
        ValueError: the folder or repository lacks a file, or `spec` is a file.

    Warns:
        the hub was not reached, and the cache does not tell whether the repository has an optional file.
    """
    folder = Path(os.path.expanduser(spec))
    if spec and folder.is_dir():
        _require(f"{argument}={spec!r}", folder, files)
        _require(f"{argument}={spec!r}", folder, further(folder))
        return folder
    if spec and folder.exists():
        raise ValueError(f"{argument}={spec!r} is a file; accepted are its folder or a hub id")
    if not _is_hub_id(spec):
        raise FileNotFoundError(f"{argument}={spec!r}: no such folder, and no hub id (NAME or OWNER/NAME)")
    found = _from_hub(argument, spec, files, optional)
    if names := further(found):
        _from_hub(argument, spec, names, revision=found.name)  # a snapshot's folder is named after its commit
    return found


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
    return "/" in spec and _is_hub_id(spec)


def _is_hub_id(spec: str) -> bool:
    try:
        validate_repo_id(spec)
    except HFValidationError:
        return False
    return True


def check_repository(argument: str, spec: str) -> None:
    """Raise ValueError unless `spec` is OWNER/NAME."""
    if not is_repository(spec):
        raise ValueError(f"{argument}={spec!r} is not accepted: a repository of the hub is OWNER/NAME")


def _from_hub(
    argument: str, spec: str, files: Sequence[str], optional: Sequence[str] = (), revision: str | None = None
) -> Path:
    try:
        return _fetch(spec, files, optional, revision, local=True)
    except LocalEntryNotFoundError:
        pass  # a file is not in the cache, or whether the repository has it is not known
    try:
        # A download is tried six times, over 23 seconds. This one request, tried once, tells whether there is a network.
        get_hf_file_metadata(hf_hub_url(spec, files[0], revision=revision))
        return _fetch(spec, files, optional, revision, local=False)
    except RemoteEntryNotFoundError as error:
        raise ValueError(f"{argument}={spec!r}: the repository lacks one of {', '.join(files)}: {error}") from error
    except Exception as error:  # a refused connection, an unknown repository, a full disk: too many classes to name
        failed = error
    try:
        folder = _fetch(spec, files, (), revision, local=True)
    except LocalEntryNotFoundError:
        raise FileNotFoundError(_how_to_get(argument, spec, files, failed)) from failed
    unknown = [name for name in optional if try_to_load_from_cache(spec, name, revision=folder.name) is None]
    warnings.warn(
        f"{argument}={spec!r}: the hub was not reached ({_reason(failed)}), and the cache {constants.HF_HUB_CACHE} does not tell "
        f"whether the repository has {', '.join(unknown)}: it is read without",
        stacklevel=2,
    )
    return folder


def _fetch(spec: str, files: Sequence[str], optional: Sequence[str], revision: str | None, *, local: bool) -> Path:
    """The snapshot with `files` and those of `optional` that the repository has."""
    folder = None
    for name in (*files, *optional):
        at = revision if folder is None else folder.name
        if local and name in optional and try_to_load_from_cache(spec, name, revision=at) is _CACHED_NO_EXIST:
            continue
        try:
            path = hf_hub_download(spec, name, revision=at, local_files_only=local)
        except RemoteEntryNotFoundError:
            if name not in optional:
                raise
        else:
            folder = folder or Path(path).parent
    assert folder is not None, "files names at least one"
    return folder


def _how_to_get(argument: str, spec: str, files: Sequence[str], error: Exception) -> str:
    return (
        f"{argument}={spec!r}: no such folder, not in the cache {constants.HF_HUB_CACHE}, and the download failed "
        f"({_reason(error)}). On a machine with network access, run: "
        f"hf download {spec} --include '*.json' '*.safetensors' --local-dir FOLDER "
        f"(or take {', '.join(files)} from {constants.ENDPOINT}/{spec}), then pass FOLDER as {argument}"
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _require(what: str, folder: Path, files: Sequence[str]) -> None:
    for name in files:
        if not (folder / name).is_file():
            place = (folder / name).parent
            present = {path.name for path in place.iterdir()} if place.is_dir() else set()
            raise ValueError(_missing(what, name, present))


def _missing(what: str, name: str, present: set[str]) -> str:
    words = f"{what}: the folder has no {name}"
    pickled = sorted(other for other in present if other.endswith((".bin", ".pt", ".ckpt")))
    if name == "model.safetensors" and f"{name}.index.json" in present:
        return f"{words}; its weights are in several files. Save them as one: model.save_pretrained(FOLDER, max_shard_size='100GB')"
    if name.endswith("model.safetensors") and pickled:
        again = (
            "transformers installed, run: AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER, safe_serialization=True)"
            if name == "model.safetensors"
            else "sentence-transformers installed, run: SentenceTransformer(FOLDER).save(NEW)"
        )
        return f"{words}; {', '.join(pickled)} is a pickle, which can run code and is not read. With {again}"
    if name == "tokenizer.json" and "vocab.txt" in present:
        return f"{words}, only vocab.txt. With transformers installed, run: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    return f"{words} (it holds {', '.join(sorted(present)) or 'nothing'})"
