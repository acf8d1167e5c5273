"""Texts that several processes embed together."""

import numpy as np
import pytest
from worlds import together

from energy_flow_mlx.data import open_teacher, shared
from energy_flow_mlx.data.shared import SharedTeacher, dismiss, serve, spread
from energy_flow_mlx.dataset.build import Settings, build

TEXTS = ["A dog runs.", "Prices fell.", "A violinist.", "Two toys.", "A lemon."]


def rows_of(calls):
    def embed(texts):
        calls.append(list(texts))
        return open_teacher("builtin", dim=16).embed(texts)

    return embed


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_each_process_embeds_its_share_and_all_get_all_rows(size):
    calls = []
    found = together(lambda world: spread(rows_of(calls), TEXTS, 16, world), size)
    for rows in found:
        np.testing.assert_array_equal(rows, open_teacher("builtin", dim=16).embed(TEXTS))
    assert sorted(text for call in calls for text in call) == sorted(TEXTS)
    assert len(calls) == min(size, len(TEXTS)), "a process without a text is not asked"


def test_a_shared_teacher_is_the_teacher(monkeypatch):
    def run(world):
        if not world.first:
            return serve(world)
        teacher = SharedTeacher(world, spec="builtin", dim=16)
        rows = [teacher.embed(TEXTS), teacher.embed(TEXTS[:1])]
        dismiss(world)
        return teacher, rows

    (teacher, rows), *others = together(run, 3)
    alone = open_teacher("builtin", dim=16)
    assert (teacher.dim, teacher.name, teacher.fingerprint) == (alone.dim, alone.name, alone.fingerprint)
    np.testing.assert_array_equal(rows[0], alone.embed(TEXTS))
    np.testing.assert_array_equal(rows[1], alone.embed(TEXTS[:1]))
    assert others == [None, None]


def test_another_teacher_of_the_same_name_is_refused(monkeypatch):
    class Other:
        name, fingerprint = "hashed", "other"

    def run(world):
        if world.first:
            SharedTeacher(world, spec="builtin", dim=16)
            return dismiss(world)
        monkeypatch.setattr(shared, "open_teacher", lambda **_: Other())
        return serve(world)

    with pytest.raises(ValueError, match="teacher='builtin' is hashed here, with other weights"):
        together(run, 2)


def test_a_data_set_that_two_processes_build_has_the_bytes_of_one(tmp_path):
    settings = Settings(sources=("builtin:40",), validation=4, test=4, dim=16, batch_size=7)

    def run(world):
        if not world.first:
            return serve(world)
        build(settings, tmp_path / "two", quiet=True, world=world)
        return dismiss(world)

    together(run, 2)
    build(settings, tmp_path / "one", quiet=True)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    assert "rows-00000.safetensors" in files
