"""The corpus that every Python carries."""

from fastssl.data.python_documentation import python_documentation


def test_is_a_megabyte_of_english_prose_without_repeats():
    documents = list(python_documentation())
    text = "\n".join(documents)
    assert len(documents) > 200
    assert len(text) > 1_000_000
    words = text.lower().split()
    assert sum(word in {"the", "a", "is", "of", "to", "and", "in"} for word in words) > 0.12 * len(words)
    paragraphs = text.split("\n")
    assert len(set(paragraphs)) == len(paragraphs)
    assert ">>>" not in text


def test_is_the_same_every_time():
    first = python_documentation()
    second = python_documentation()
    assert all(next(first) == next(second) for _ in range(20))
