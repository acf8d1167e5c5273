"""The teacher whose embeddings a run learned from."""

from pathlib import Path

from ..config import EnergyConfig, ModelConfig
from ..data.hashed_ngram import HashedNgramTeacher
from ..data.teacher import BUILT_IN, Teacher, open_teacher
from ..files import resolve
from .folder import read_about
from .records import DataError


class UnknownTeacher(ValueError):
    """A run does not tell its teacher, or not where it is; the text says what to do."""


def teacher_of_run(run: Path, config: ModelConfig, spec: str | None = None) -> Teacher:
    """The teacher of a run.

    Args:
        run: its folder.
        config: its configuration.
        spec: where the teacher is, as `open_teacher` takes it; None: as the run tells.

    Raises:
        UnknownTeacher: `spec` is None and needed.
        FileNotFoundError, ValueError: as `open_teacher`; or `spec` is not the teacher of the run's data.
    """
    recorded = _recorded(run, config)
    if spec is None:
        built_in = HashedNgramTeacher(config.embedding_dim)
        if recorded is None or recorded["fingerprint"] != built_in.fingerprint:
            known = f"its data have the teacher {recorded['name']}" if recorded else "nothing tells the teacher of its embeddings"
            raise UnknownTeacher(f"{run}: {known}; --teacher names {'its' if recorded else 'a'} folder, hub id or {BUILT_IN}")
        return built_in
    teacher = open_teacher(spec, dim=config.embedding_dim)
    if recorded is not None and recorded["fingerprint"] != teacher.fingerprint:
        raise ValueError(f"teacher={spec!r} is {teacher.name}, but the data of {run} have the teacher {recorded['name']}")
    return teacher


def _recorded(run: Path, config: ModelConfig) -> dict[str, str] | None:
    """Name and fingerprint of the teacher, where the run's data tell them."""
    # A converted checkpoint has the field's default: its data were PyTorch's.
    if not isinstance(config, EnergyConfig) or resolve(run, "conversion.json").is_file():
        return None
    if config.data == BUILT_IN:
        teacher = HashedNgramTeacher(config.embedding_dim)
        return {"name": teacher.name, "fingerprint": teacher.fingerprint}
    if not Path(config.data).is_dir():
        return None
    try:
        about = read_about(Path(config.data)).get("teacher")
    except (DataError, OSError):
        return None  # the data are gone or damaged, which only training need refuse
    return about if isinstance(about, dict) and {"name", "fingerprint"} <= about.keys() else None
