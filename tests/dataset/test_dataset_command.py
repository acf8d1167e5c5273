"""python -m energy_flow_mlx.dataset, from the command line to its words and exit codes."""

import json

import pytest

from energy_flow_mlx.dataset import __main__ as dataset
from energy_flow_mlx.text.tokeniser import WordPieceTokeniser


def run(capsys, *argv) -> tuple[int, str, str]:
    try:
        code = dataset.main([str(word) for word in argv])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture()
def folder(tmp_path, capsys):
    assert run(capsys, "build", "builtin:200", "--to", tmp_path / "set", "--dim", 8, "--quiet")[0] == 0
    return tmp_path / "set"


def test_build_says_what_it_made(tmp_path, capsys):
    rows = [{"premise": f"a{n}", "hypothesis": f"b{n}", "label": n % 3 - 1} for n in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "broken\n")
    command = ["build", tmp_path / "a.jsonl", "--to", tmp_path / "set", "--dim", 8, "--skip-bad", "--validation", 4, "--quiet"]
    code, out, err = run(capsys, *command)
    assert (code, err) == (0, "")
    assert "set: 40 pairs (train 32, validation 4, test 4)" in out
    assert "teacher: hashed-ngram-8-seed0; 80 distinct texts, E = 8, length 1" in out
    assert "left out: 20 without a label" in out and "left out: 1 not JSON" in out
    assert run(capsys, *command) == (code, out, err)


def test_build_warns_of_parts_without_pairs(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"input": f"a{n}", "target": f"b{n}"}) + "\n" for n in range(5)))
    for options, words in [
        ((), "warning: no pairs in validation and test, without which training refuses the folder: --validation COUNT --test COUNT"),
        (("--test", 1), "warning: no pairs in validation, without which training refuses the folder: --validation COUNT"),
        (("--test", 1, "--validation", 1), ""),
    ]:
        code, _, err = run(capsys, "build", path, "--to", tmp_path / str(options), "--dim", 8, "--quiet", *options)
        assert code == 0 and err.startswith(words) and bool(err) == bool(words)


@pytest.mark.parametrize("argv", [("build", "{bad}"), ("build", "{good}", "--test", "{bad}"), ("inspect", "{bad}")])
def test_an_unknown_extension_is_refused_before_anything_is_read(tmp_path, capsys, argv):
    good, bad = tmp_path / "a.jsonl", tmp_path / "a.md"
    good.write_text('{"input": "a", "target": "b"}\n')
    bad.write_text("")
    command = [word.format(good=good, bad=bad) for word in argv]
    code, out, err = run(capsys, *command, *(("--to", tmp_path / "set") if argv[0] == "build" else ()))
    assert (code, out) == (2, "") and err.startswith(f"error: {bad}: unknown extension '.md'") and err.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_the_progress_bar_goes_to_stderr(tmp_path, capsys):
    code, out, err = run(capsys, "build", "builtin:50", "--to", tmp_path / "set", "--dim", 8)
    assert code == 0 and "embed" in err and "embed" not in out


def test_inspect_counts(tmp_path, capsys, folder):
    code, out, _ = run(capsys, "inspect", folder, "--verify", "--examples", 2)
    assert code == 0
    for words in ("200 pairs (train 160, validation 20, test 20)", "0 duplicate pairs", "input characters:", "examples:", "every file has its hash"):
        assert words in out
    assert out.count(" -> ") == 2
    (tmp_path / "a.jsonl").write_text('{"text": "abc", "target": "d"}\n{"text": "abc", "target": "d"}\nbroken\n{"text": "abcde", "target": "e"}\n')
    code, out, _ = run(capsys, "inspect", tmp_path / "a.jsonl")
    assert code == 0
    assert "3 pairs, 2 distinct inputs, 1 duplicate pairs" in out and "left out: 1 not JSON" in out
    assert "input characters: 3 to 5, median 3" in out and "line 4: 'abcde' -> 'e'" in out
    content = bytearray((folder / "pairs.safetensors").read_bytes())
    content[-4] ^= 1
    (folder / "pairs.safetensors").write_bytes(content)
    code, out, _ = run(capsys, "inspect", folder, "--verify")
    assert code == 1 and "changed since the build: pairs.safetensors" in out


def test_convert_says_what_is_lost_and_overwrites_nothing(tmp_path, capsys, folder):
    code, out, _ = run(capsys, "convert", folder, "--to", tmp_path / "a.efb2")
    assert code == 0
    assert out.splitlines() == [
        f"{tmp_path / 'a.efb2'}: 200 pairs",
        "left out, .efb2 cannot store it: target (200 times)",
        "left out, .efb2 cannot store it: input embedding (200 times)",
    ]
    code, _, err = run(capsys, "convert", folder, "--to", tmp_path / "a.efb2")
    assert code == 2 and "a.efb2 exists: name another file, or give --overwrite" in err
    assert run(capsys, "convert", folder, "--to", tmp_path / "a.efb2", "--overwrite")[0] == 0


def test_train_tokenizer_reads_the_training_part_alone(tmp_path, capsys, folder):
    code, out, _ = run(capsys, "train-tokenizer", folder, "--to", tmp_path / "tokenizer.json", "--vocab-size", 300)
    assert code == 0 and "entries, from" in out
    assert WordPieceTokeniser.from_file(tmp_path / "tokenizer.json").vocab_size <= 300
    (tmp_path / "a.csv").write_text("first,second\nsome words,other words\n")
    command = ["train-tokenizer", tmp_path / "a.csv", "--columns", "first,second", "--to", tmp_path / "b.json", "--vocab-size", 60]
    assert "from 2 texts" in run(capsys, *command)[1]
    assert run(capsys, *command[:-2], "--model", "whitespace", "--vocab-size", 7)[0] == 0
    words = WordPieceTokeniser.from_file(tmp_path / "b.json")
    assert words.vocab_size == 7 and words.decode(words.encode(["other words, words"], 8).input_ids[0]) == "other words"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "COMMAND"),
        (["make"], "'make'"),
        (["build", "absent.jsonl", "--to", "x"], "absent.jsonl: no such file; sources are files, dataset folders, hub:OWNER/NAME"),
        (["build", "a.jsonl"], "--to"),
        (["build", "builtin:9", "--to", "x", "--columns", "one"], "must be INPUT,TARGET, got 'one'"),
        (["build", "builtin:9", "--to", "x", "--fraction", "2"], "fraction must be above 0 and at most 1, got 2.0"),
        (["build", "builtin:9", "--to", "x", "--seed", "-1"], "seed must be"),
        (["build", ".", "--to", "x"], "is a folder without dataset.json"),
        (["convert", "builtin:9", "--to", "x.efb1"], "pair 1: has no target embedding, which efb1 needs"),
        (["convert", "builtin:9", "--to", "x.doc"], "cannot write '.doc' files"),
        (["inspect", "absent"], "absent: no such file"),
    ],
)
def test_refusals_exit_2_with_a_line(tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and words in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())
