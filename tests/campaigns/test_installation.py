"""The installation campaign tells an index that does not answer from a package that is not there."""

import subprocess

import installation
import pytest

CASE = installation.Case("cpu", "[cpu]", True, lambda python: "")


def tried(monkeypatch, tmp_path, *said):
    """What comes of an installation whose attempts fail with these texts, and then works; and how many attempts there were."""
    left = list(said)
    attempts = []

    def call(*command):
        if "install" in command and "--upgrade" not in command:
            attempts.append(command)
            if left:
                raise subprocess.CalledProcessError(1, command, "", left.pop(0))

    monkeypatch.setattr(installation, "_call", call)
    return installation._tried(CASE, "python3", tmp_path / "a.whl", tmp_path / "venv"), len(attempts)


@pytest.mark.parametrize("said", ["ReadTimeoutError: read timed out", "Connection reset by peer", "ERROR: HTTP error 503 while getting x"])
def test_an_index_that_does_not_answer_is_asked_again(said, monkeypatch, tmp_path):
    assert tried(monkeypatch, tmp_path, said, said) == ("", 3)
    with pytest.raises(installation.Unreached, match=said):
        tried(monkeypatch, tmp_path, said, said, said)


def test_a_package_that_is_not_there_is_a_fault_at_once(monkeypatch, tmp_path):
    fault, attempts = tried(monkeypatch, tmp_path, "ERROR: No matching distribution found for mlx")
    assert "No matching distribution" in fault and attempts == 1
