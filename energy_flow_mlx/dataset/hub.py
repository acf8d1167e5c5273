"""Data files of datasets on the Hugging Face hub, downloaded into the hub's cache.

hub:OWNER/NAME            all data files of the dataset
hub:OWNER/NAME:train      those with "train" in their name
hub:OWNER/NAME@REVISION   those of a branch, tag or commit
"""

import re
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .records import DataError

PREFIX = "hub:"
_SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.\w+)")  # as the hub names the files of a large table
_SPEC = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w.-]+))?")


def hub_files(spec: str) -> list[Path]:
    """The local paths of a hub dataset's files, sorted by name.

    Raises:
        ValueError: `spec` does not parse.
        DataError: the files are not in the cache and the download failed (says what to download and where to put it), the
            cache lacks some of them, or the dataset has no file of a supported format.

    Warns:
        the download failed and the cache is used, which holds what was downloaded before, perhaps not every file.
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
    offline = None
    try:
        folder = Path(download())
    except Exception as error:  # the library and its HTTP client raise too many classes to name
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        try:
            folder, offline = Path(download(local_files_only=True)), reason
        except Exception:  # not in the cache; the error of the download is more informative
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
    _check_shards(spec, files)
    if offline:
        warnings.warn(
            f"{spec}: the hub was not reached ({offline}); used are the {len(files)} files of an earlier download in {folder},"
            " which may not be all",
            stacklevel=2,
        )
    return files


def _check_shards(spec: str, files: Sequence[Path]) -> None:
    """Refuse a table of which some shards are missing: they are named by number and count."""
    held: dict[tuple[str, ...], set[int]] = {}
    for path in files:
        if shard := _SHARD.fullmatch(str(path)):
            start, number, count, suffix = shard.groups()
            held.setdefault((start, count, suffix), set()).add(int(number))
    for (start, count, suffix), numbers in held.items():
        if missing := sorted(set(range(int(count))) - numbers):
            names = ", ".join(f"{Path(start).name}-{number:05d}-of-{count}{suffix}" for number in missing[:3])
            raise DataError(
                f"{spec}: {len(numbers)} of {int(count)} files are in the cache; missing {names}{' …' if len(missing) > 3 else ''}."
                " Run the same command with network access to download them",
                "not whole",
            )
