"""Texts: captions, words with onsets, and their contexts."""

import numpy as np
import pytest

from isocortex import bids, features, store, study
from isocortex.errors import InputError
from isocortex.features.text import word_texts


def table(path, rows, header="onset\tword\tduration"):
    path.write_text("\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_words_have_onsets_and_durations(tmp_path):
    rows = [(0, "the", 0.2), (0.5, "cat", "n/a"), (1.25, "sat", 0.25)]
    words = bids.read_words(table(tmp_path / "words.tsv", rows))
    assert [(w.onset, w.word, w.duration) for w in words] == [
        (0, "the", 0.2),
        (0.5, "cat", 0.75),  # until the next onset
        (1.25, "sat", 0.25),
    ]
    untold = table(tmp_path / "untold.tsv", [row[:2] for row in rows], "onset\tword")
    assert [w.duration for w in bids.read_words(untold)] == [0.5, 0.75, 0.75]


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        ([(0, "a", 1), (-1, "b", 1)], None, r"line 3: onset '-1' is no number of seconds"),
        ([(0, "a", 1), ("x", "b", 1)], None, r"line 3: onset 'x'"),
        ([(0, "a", "nan")], None, r"line 2: duration 'nan'"),
        ([(1, "a", 1), (0.5, "b", 1)], None, r"line 3: .* sort the words"),
        ([(1, "a", 1), (1, "b", 1)], None, r"line 3: .* one an onset"),
        ([(1, " ", 1)], None, r"line 2: the word is empty"),
        ([], None, "holds no words"),
        ([("a", 1)], "word\tstart", "no column 'onset'"),
    ],
)
def test_bad_tables_of_words(tmp_path, rows, header, words):
    path = table(tmp_path / "words.tsv", rows, header or "onset\tword\tduration")
    assert bids.stimulus_kind(path) == "words"
    with pytest.raises(InputError, match=words) as raised:
        bids.check_stimulus(path)
    assert "words.tsv" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bad_captions(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("Käse".encode("latin-1"))
    for name, words in (("empty", "is empty"), ("latin", "cannot be read as text")):
        with pytest.raises(InputError, match=words):
            bids.check_stimulus(tmp_path / f"{name}.txt")
    (tmp_path / "good.txt").write_text("\ufeff A red cow.\n")
    assert bids.read_caption(tmp_path / "good.txt") == "A red cow."


@pytest.mark.parametrize("context", [0, 1, 3])
def test_a_word_is_read_with_the_words_before_it(context):
    spoken = ["Once", "upon", "a", "time", "there", "was"]
    words = [bids.Word(float(n), word, 1.0) for n, word in enumerate(spoken)]
    for number, text in enumerate(word_texts(words, context)):
        assert text.text.split() == spoken[max(0, number - context) : number + 1]
        # the part that counts: the word, with the space before it
        assert text.text[text.start :].strip() == spoken[number]
        assert text.text[text.start :] == (" " if text.start else "") + spoken[number]


def test_what_is_a_stimulus_and_what_is_not(tmp_path):
    table(tmp_path / "story.tsv", [(0, "a", 1)])
    table(tmp_path / "participants.tsv", [("sub-01", 3)], "participant_id\tage")
    for name in ("a.png", "b.MP4", "c.npy", "d.txt", "README.txt", "e.json", ".hidden.png"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.png").mkdir()
    kinds = {name: bids.stimulus_kind(path) for name, path in bids.find_stimuli(tmp_path).items()}
    assert kinds == {
        "a.png": "image",
        "b.MP4": "movie",
        "c.npy": "movie",
        "d.txt": "caption",
        "story.tsv": "words",
    }
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no image, movie or text"):
        bids.find_stimuli(tmp_path / "empty")


def test_bad_texts_are_found_before_any_job(tmp_path):
    config = {
        "study": "s",
        "input": {"stimuli": str(tmp_path)},
        "features": {"models": {"surface": {"architecture": "words"}}},
    }
    table(tmp_path / "story.tsv", [(1, "b", 0.2), (0.5, "a", 0.2)])
    with pytest.raises(InputError, match=r"story\.tsv, line 3: .* sort the words"):
        study.check_inputs(study.load_study(config))
    table(tmp_path / "story.tsv", [(0.5, "a", 0.2)])
    np.save(tmp_path / "film.npy", np.zeros((2, 4, 4)))
    with pytest.raises(InputError, match=r"film\.npy has no frame rate"):
        study.check_inputs(study.load_study(config))
    config["features"]["models"]["surface"]["sampling"] = {"frame_rate": 2}
    study.check_inputs(study.load_study(config))


def test_words_and_letters_are_counted(tmp_path):
    table(tmp_path / "story.tsv", [(0.5, "Don't", 0.2), (1, "stop", 0.2)])
    (tmp_path / "caption.txt").write_text("Two red cows, 3 pigs")
    names = ["caption.txt", "story.tsv"]
    out = tmp_path / "model-surface_features.zarr"
    features.extract_features(
        stimuli=[tmp_path / name for name in names],
        stimulus_ids=names,
        out=out,
        model="surface",
        architecture="words",
    )
    for layer, expected in (("words", [5, 1, 1]), ("letters", [15, 4, 4])):
        with store.open(out, "features", group=layer) as opened:
            np.testing.assert_array_equal(opened["activation"].values[:, 0], expected)
            assert opened["stimulus"].values[1] == "story.tsv@0000.500"
            np.testing.assert_array_equal(opened["duration"].values[1:], [0.2, 0.2])
