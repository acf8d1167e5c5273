"""Data files of datasets on the Hugging Face hub, downloaded into the hub's cache.

hub:OWNER/NAME            all data files of the dataset
hub:OWNER/NAME:train      those with "train" in their name
hub:OWNER/NAME@REVISION   those of a branch, tag or commit
"""

import re
from functools import partial
from pathlib import Path

from .records import DataError

PREFIX = "hub:"
_SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv")
_SPEC = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w.-]+))?")


def hub_files(spec: str) -> list[Path]:
    """The local paths of a hub dataset's files, sorted by name.

    Raises:
        ValueError: `spec` does not parse.
        DataError: the files are not in the cache and the download failed (says what to download and where to put it),
            or the dataset has no file of a supported format.
    """
    parsed = _SPEC.fullmatch(spec)
    if parsed is None:
        raise ValueError(
            f"a hub dataset must be written hub:OWNER/NAME, hub:OWNER/NAME@REVISION or hub:OWNER/NAME:PART, got {spec!r}"
        )
    repository, revision, part = parsed.groups()
    patterns = [f"*{part or ''}*{suffix}" for suffix in _SUFFIXES]
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise DataError(f"{spec}: needs huggingface_hub: pip install huggingface_hub", "no hub") from error
    download = partial(snapshot_download, repository, repo_type="dataset", revision=revision, allow_patterns=patterns)
    try:
        folder = Path(download())
    except Exception as error:  # the library and its HTTP client raise too many classes to name
        try:
            folder = Path(download(local_files_only=True))
        except Exception:  # not in the cache; the error of the download is more informative
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            at = f" --revision {revision}" if revision else ""
            some = f" --include '*{part}*'" if part else ""
            raise DataError(
                f"{spec}: cannot be downloaded ({type(error).__name__}: {reason}). On a machine with network access, run\n"
                f"  hf download {repository} --repo-type dataset{at}{some} --local-dir {repository.split('/')[1]}\n"
                f"copy the folder to this machine and name its {', '.join(_SUFFIXES)} files instead of {spec}",
                "no network",
            ) from error
    files = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES and (part or "") in path.name)
    if not files:
        condition = f" with {part!r} in its name" if part else ""
        raise DataError(f"{spec}: has no {', '.join(_SUFFIXES)} file{condition}", "empty")
    return files
