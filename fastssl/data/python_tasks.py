"""Labelled examples that every Python installation carries: `ast` and `tokenize` label the standard library.

One small data set for each way of using a BERT: a class of a text, a class of a pair, a tag per word, an answer in a
document. Each function returns the same examples on every call, in a shuffled order.
"""

import ast
import inspect
import io
import keyword
import random
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from fastssl.data.python_documentation import standard_modules

_MIN_WORDS, _MAX_WORDS = 4, 40
_TOKENS_OF_A_LINE = range(5, 33)
_FUNCTIONS_OF_A_DOCUMENT = 5
_KIND_OF = {
    tokenize.NAME: "name",
    tokenize.NUMBER: "number",
    tokenize.STRING: "string",
    tokenize.OP: "operator",
}
_LAYOUT = {tokenize.ENCODING, tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


@dataclass(frozen=True, kw_only=True)
class DocumentedFunction:
    """A function of the standard library."""

    module: str
    """Its top-level module."""
    name: str
    """Its name."""
    signature: str
    """``name(parameter, other, *, third)``, without defaults and annotations."""
    summary: str
    """The first sentence of its docstring."""


@lru_cache(maxsize=1)
def documented_functions() -> tuple[DocumentedFunction, ...]:
    """Return the functions whose docstring begins with a sentence of 4 to 40 words, file by file, no sentence twice."""
    found: dict[str, DocumentedFunction] = {}
    for name, path in standard_modules().items():
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (summary := _summary(node)) is not None:
                function = DocumentedFunction(
                    module=name.partition(".")[0], name=node.name, signature=_signature(node), summary=summary
                )
                found.setdefault(summary, function)
    return tuple(found.values())


def modules_of_summaries(num_modules: int = 8) -> list[dict[str, str]]:
    """Return {"text", "label"}: the summary of a function, and which of the best documented modules it is from."""
    counts = Counter(function.module for function in documented_functions())
    chosen = {module for module, _ in counts.most_common(num_modules)}
    rows = [{"text": f.summary, "label": f.module} for f in documented_functions() if f.module in chosen]
    return _shuffled(rows)


def summaries_and_signatures() -> list[dict[str, str]]:
    """Return {"sentence1", "sentence2", "label"}: a summary and a signature of the same module, "fits" or "other"."""
    rows, of_module = [], {}
    for function in documented_functions():
        of_module.setdefault(function.module, []).append(function)
    for functions in of_module.values():
        for number, function in enumerate(functions):
            # The neighbour of every second function: another one of the same file wherever there are two.
            fits = number % 2 == 0 or len(functions) == 1
            shown = function if fits else functions[number - 1]
            label = "fits" if shown.signature == function.signature else "other"
            rows.append({"sentence1": function.summary, "sentence2": shown.signature, "label": label})
    return _shuffled(rows)


def kinds_of_tokens(max_lines: int = 6000) -> list[dict[str, list[str]]]:
    """Return {"words", "tags"}: lines of code, and what each token is in its line.

    A name is "call" before a parenthesis, "attribute" after a point, "argument" before the equals sign of a call, and
    "name" elsewhere, so that one name has several tags; the others are "keyword", "number", "string", "operator".
    """
    rows: dict[tuple[str, ...], dict[str, list[str]]] = {}
    # Every fifth module has lines enough.
    for path in list(standard_modules().values())[::5]:
        for words, tags in _tagged_lines(path.read_bytes()):
            rows.setdefault(tuple(words), {"words": words, "tags": tags})
    return _shuffled(list(rows.values()))[:max_lines]


def functions_in_documents() -> list[dict[str, object]]:
    """Return {"question", "context", "answer", "answer_start"}: a summary; signatures; the name of the function meant.

    A document is the signatures of five functions that follow each other in a module, one a line.
    """
    functions, rows = documented_functions(), []
    for first in range(0, len(functions) - _FUNCTIONS_OF_A_DOCUMENT + 1, _FUNCTIONS_OF_A_DOCUMENT):
        group = functions[first : first + _FUNCTIONS_OF_A_DOCUMENT]
        context = "\n".join(f"def {function.signature}" for function in group)
        if len({function.name for function in group}) < len(group):
            continue
        for function in group:
            start = context.index(f"def {function.signature}") + len("def ")
            rows.append(
                {"question": function.summary, "context": context, "answer": function.name, "answer_start": start}
            )
    return _shuffled(rows)


def _summary(node: ast.AST) -> str | None:
    paragraph = re.split(r"\n\s*\n", inspect.cleandoc(ast.get_docstring(node) or ""))[0]
    sentence = re.split(r"(?<=[.!?])\s", " ".join(paragraph.split()))[0]
    return sentence if _MIN_WORDS <= len(sentence.split()) <= _MAX_WORDS else None


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    arguments = ast.parse("def f(): pass").body[0].args
    arguments.posonlyargs = [ast.arg(one.arg) for one in node.args.posonlyargs]
    arguments.args = [ast.arg(one.arg) for one in node.args.args]
    arguments.kwonlyargs = [ast.arg(one.arg) for one in node.args.kwonlyargs]
    arguments.kw_defaults = [None] * len(arguments.kwonlyargs)
    arguments.vararg = node.args.vararg and ast.arg(node.args.vararg.arg)
    arguments.kwarg = node.args.kwarg and ast.arg(node.args.kwarg.arg)
    return f"{node.name}({ast.unparse(arguments)})"


def _tagged_lines(source: bytes) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the tokens of every logical line of a sensible length, with their kinds."""
    line: list[tokenize.TokenInfo] = []
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.NEWLINE:
            # Without strings over several lines and, from Python 3.12 on, the parts of f-strings.
            plain = all(one.type in _KIND_OF and len(one.string) <= 40 and "\n" not in one.string for one in line)
            if len(line) in _TOKENS_OF_A_LINE and plain:
                yield [one.string for one in line], _kinds(line)
            line = []
        elif token.type not in _LAYOUT:
            line.append(token)


def _kinds(line: list[tokenize.TokenInfo]) -> list[str]:
    kinds, depth = [], 0
    for number, token in enumerate(line):
        before = line[number - 1].string if number else ""
        after = line[number + 1].string if number + 1 < len(line) else ""
        depth += (token.string in ("(", "[", "{")) - (token.string in (")", "]", "}"))
        if token.type != tokenize.NAME:
            kinds.append(_KIND_OF[token.type])
        elif keyword.iskeyword(token.string):
            kinds.append("keyword")
        elif after == "(":
            kinds.append("call")
        elif before == ".":
            kinds.append("attribute")
        else:
            kinds.append("argument" if after == "=" and depth else "name")
    return kinds


def _shuffled(rows: list) -> list:
    return random.Random(0).sample(rows, len(rows))
