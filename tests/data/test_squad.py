"""Files in SQuAD's format: what is read, and what is told of those that are not."""

import gzip
import json

import pytest

from fastssl.data.squad import GoldAnswer, read_squad

CONTEXT = "It falls under gravity. It forms within a cloud."


def squad(*questions: dict, context: str = CONTEXT) -> dict:
    return {"version": "1.1", "data": [{"title": "x", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def question(number: int = 1, *answers: tuple[str, int], text: str = "What?", **more) -> dict:
    found = [{"text": answer, "answer_start": start} for answer, start in answers]
    return {"id": f"q{number}", "question": text, "answers": found, **more}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_both_versions(tmp_path):
    content = squad(question(1, ("gravity", 15), ("under gravity", 9)), question(2, is_impossible=True), question(3))
    content["data"].append({"paragraphs": [{"context": "Second.", "qas": [{**question(4), "id": 17}]}]})
    found = read_squad(write(tmp_path / "a.json", content))
    assert found.documents == [CONTEXT, "Second."] and len(found) == 4
    one, two, three, four = found.questions
    assert one.answers == (GoldAnswer(text="gravity", start=15), GoldAnswer(text="under gravity", start=9))
    assert one.labelled and not one.unanswerable and two.unanswerable and two.labelled and not three.labelled
    assert (four.id, four.document, four.place) == ("17", 1, f"{tmp_path / 'a.json'}: data[1].paragraphs[0].qas[0]")


def test_compressed_with_a_byte_order_mark_and_without_answers(tmp_path):
    content = squad({"id": "a", "question": "Where?"})
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(content).encode("utf-8-sig")))
    assert read_squad(tmp_path / "a.json.gz").questions[0].answers == ()


def test_lines_as_hugging_face_has_them(tmp_path):
    rows = [
        {"context": CONTEXT, "question": "Under?", "answers": {"text": ["gravity"], "answer_start": [15]}},
        {"context": "Second.", "question": "What?", "answers": {"text": [], "answer_start": []}, "id": "x"},
        {"context": CONTEXT, "question": "Within?", "answers": [{"text": "a cloud", "answer_start": 40}]},
        {"context": CONTEXT, "question": "Who?"},
    ]
    found = read_squad(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n"))
    assert found.documents == [CONTEXT, "Second."] and [one.document for one in found.questions] == [0, 1, 0, 0]
    assert found.questions[1].id == "x" and found.questions[3].id.endswith("a.jsonl, line 4")
    assert [[answer.text for answer in one.answers] for one in found.questions] == [["gravity"], [], ["a cloud"], []]
    assert [one.unanswerable for one in found.questions] == [False, True, False, False]
    assert not found.questions[3].labelled
    with pytest.raises(ValueError, match=r"b.jsonl, line 1 has no 'context', it has 'question'"):
        read_squad(write(tmp_path / "b.jsonl", '{"question": "Who?"}\n'))


@pytest.mark.parametrize(("texts", "starts"), [(["gravity"], []), (["gravity", "rain"], [15]), ([], [15])])
def test_every_answer_in_columns_has_its_start(tmp_path, texts, starts):
    row = {"context": CONTEXT, "question": "Under?", "answers": {"text": texts, "answer_start": starts}}
    message = f"a.jsonl, line 1: 'text' has {len(texts)} answers and 'answer_start' {len(starts)}; expected a number"
    with pytest.raises(ValueError, match=message):
        read_squad(write(tmp_path / "a.jsonl", json.dumps(row) + "\n"))


def test_white_space_around_an_answer_is_not_its_own_and_empty_ones_are_none(tmp_path):
    found = read_squad(write(tmp_path / "a.json", squad(question(1, (" gravity ", 14), (" ", 0), ("", 3)))))
    assert found.questions[0].answers == (GoldAnswer(text="gravity", start=15),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"not JSON \(Expecting property name"),
        ("[" * 100_000, r"not JSON \(maximum recursion"),
        ("[]", "must be a JSON object, got list: not SQuAD's format"),
        ({"rows": []}, "has no 'data', it has 'rows': not SQuAD's format"),
        ({"data": {}}, r"'data' must be a list, got \{\}"),
        ({"data": []}, "has no questions"),
        ({"data": [{"title": "x"}]}, r"data\[0\] has no 'paragraphs', it has 'title'"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, r"data\[0\].paragraphs\[0\] has no 'context'"),
        (squad({"id": "a"}), r"paragraphs\[0\].qas\[0\] has no 'question', it has 'id'"),
        (squad({"id": "a", "question": 3}), "'question' must be a text, got 3"),
        (squad({**question(), "answers": "gravity"}), "'answers' must be a list, got 'gravity'"),
        (
            squad({**question(), "answers": [{"text": "a", "answer_start": "9"}]}),
            r"answers\[0\]: 'answer_start' must be",
        ),
        (squad({**question(), "answers": [{"answer_start": 9}]}), r"answers\[0\] has no 'text'"),
        (squad(question(), context=None), "'context' must be a text, got None"),
    ],
)
def test_what_is_not_of_the_format_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_squad(write(tmp_path / "a.json", content))


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file; expected questions in SQuAD's format"):
        read_squad(tmp_path / "nowhere.json")
    (tmp_path / "a.json").write_bytes(b'{"data": "\xe4"}')
    with pytest.raises(ValueError, match="not UTF-8"):
        read_squad(tmp_path / "a.json")


def test_real_files(test_data):
    for name, questions, documents in (("xquad/xquad.en.json", 1190, 240), ("drcd/DRCD_dev.json", 3524, 1000)):
        found = read_squad(test_data / name)
        assert len(found) == questions and len(found.documents) == documents
        for one in found.questions:
            answer = one.answers[0]
            assert found.documents[one.document].startswith(answer.text, answer.start)
