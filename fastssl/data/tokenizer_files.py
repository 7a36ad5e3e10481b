"""The files of a tokenizer: a Hugging Face directory, a ``tokenizer.json``, a BERT ``vocab.txt``, GPT-2's two files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

from fastssl.data import lossless, wordpiece
from fastssl.data.files import make_directory

KNOWN_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "bos": (lossless.END_OF_TEXT, "<s>", "<|begin_of_text|>"),
    "eos": (lossless.END_OF_TEXT, "</s>", "<|end_of_text|>"),
}
"""The special tokens by kind, as BERT, RoBERTa, GPT-2 and Llama spell them."""
_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "encoder.json")
_MERGES_BESIDE = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
"""The two names of GPT-2's pair of files: Hugging Face's and its own."""
_ADDED_FILE = "added_tokens.json"
_CUTS_AS_GPT2 = ("GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "CodeGenTokenizer")
_CUTS_AS_QWEN2 = "Qwen2Tokenizer"


def read(path: Path) -> tuple[Tokenizer, dict[str, str]]:
    """Read a tokenizer and the spelling of those special tokens that its files name.

    Args:
        path: A directory with ``tokenizer.json``, or else ``vocab.txt``, or else GPT-2's two files; or one of these.

    Raises:
        FileNotFoundError: There is no such file, or the directory holds none of them.
        ValueError: A file is damaged, or GPT-2's two files are of a tokenizer that cuts text in its own way.
    """
    file = path if path.is_file() else _tokenizer_file(path)
    options = _read_options(file.parent)
    names = {kind: _spelling(options[f"{kind}_token"]) for kind in KNOWN_NAMES if options.get(f"{kind}_token")}
    if file.suffix == ".json" and file.name not in _MERGES_BESIDE:
        return _from_json(file), names
    made = (_from_byte_pairs if file.name in _MERGES_BESIDE else _from_vocabulary)(file, options, names)
    _add_tokens(made, file, options, names)
    return made, names


def write(
    tokenizer: Tokenizer, directory: Path, *, special_names: Mapping[str, str], model_max_length: int | None
) -> None:
    """Write the files from which ``transformers.AutoTokenizer`` gives the same ids; see ``data.tokenizer``."""
    make_directory(directory)
    specials = {f"{kind}_token": name for kind, name in special_names.items()}
    state = json.loads(tokenizer.to_str())
    options = {**specials, **_class_options(state), "clean_up_tokenization_spaces": False}
    if model_max_length is not None:
        options["model_max_length"] = model_max_length
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", options)
    _write_json(directory / "special_tokens_map.json", specials)
    if state["model"]["type"] == "WordPiece":
        tokens = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
        rows = [tokens.get(i, f"[unused-{i}]") for i in range(max(tokens) + 1)]
        (directory / "vocab.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def _tokenizer_file(directory: Path) -> Path:
    for name in _FILES:
        if (directory / name).is_file():
            return directory / name
    missing = "the directory has neither tokenizer.json nor vocab.txt nor GPT-2's vocab.json and merges.txt"
    reason = missing if directory.is_dir() else "there is nothing there"
    raise FileNotFoundError(f"no tokenizer at {directory}: {reason}; give the directory that a tokenizer was saved to")


def _read_options(directory: Path) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = directory / name
        if file.is_file():
            options.update(_read_json(file))
    return options


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged: expected JSON, but {error}; fetch or save the tokenizer again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: expected a JSON object; fetch or save the tokenizer again")
    return content


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _spelling(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _from_json(file: Path) -> Tokenizer:
    state = _read_json(file)
    model = state.get("model")
    if not isinstance(model, dict) or not model.get("vocab"):
        raise ValueError(f'{file} is no tokenizer: expected a "model" with a "vocab"; give another file')
    try:
        return Tokenizer.from_str(json.dumps(state))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{file} is damaged: {error}; fetch or save the tokenizer again") from error


def _from_byte_pairs(file: Path, config: Mapping[str, Any], names: Mapping[str, str]) -> Tokenizer:
    kind = str(config.get("tokenizer_class") or _CUTS_AS_GPT2[0]).removesuffix("Fast")
    if kind not in (*_CUTS_AS_GPT2, _CUTS_AS_QWEN2):
        raise ValueError(
            f"{file.parent} holds a {kind}, whose {file.name} alone does not say how it cuts text; save it with a "
            "tokenizer.json, as transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...) does"
        )
    merges_file = file.with_name(_MERGES_BESIDE[file.name])
    if not merges_file.is_file():
        raise FileNotFoundError(f"{merges_file} is missing, which {file.name} needs; fetch the tokenizer again")
    try:
        vocabulary, merges = models.BPE.read_file(str(file), str(merges_file))
        known = {name for spellings in KNOWN_NAMES.values() for name in spellings} | set(names.values())
        return lossless.byte_pair_tokenizer(
            vocabulary,
            merges,
            special_tokens=sorted(known & vocabulary.keys(), key=vocabulary.__getitem__),
            add_prefix_space=config.get("add_prefix_space") or False,
            cuts_as_qwen2=kind == _CUTS_AS_QWEN2,
        )
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{file} or {merges_file.name} is damaged: {error}; fetch the tokenizer again") from error


def _from_vocabulary(file: Path, config: Mapping[str, Any], names: Mapping[str, str]) -> Tokenizer:
    try:
        rows = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no vocabulary: not UTF-8 at byte {error.start}; give a BERT vocab.txt") from error
    tokens = [row.rstrip("\r") for row in (rows[:-1] if rows[-1] == "" else rows)]
    vocabulary = wordpiece.numbered(tokens)
    if len(vocabulary) != len(tokens):
        repeated = next(token for i, token in enumerate(tokens) if vocabulary[token] != i)
        raise ValueError(f"{file} is damaged: the token {repeated!r} is there twice; fetch the vocabulary again")
    specials = tuple(names.get(kind, KNOWN_NAMES[kind][0]) for kind in ("pad", "unk", "cls", "sep", "mask"))
    missing = [name for name in specials if name not in vocabulary]
    if missing:
        raise ValueError(f"{file} is no BERT vocabulary: it lacks {', '.join(missing)}; add them, or give another file")
    cased = any(token != token.lower() for token in tokens if not token.startswith("["))
    return wordpiece.bert_tokenizer(
        vocabulary,
        lowercase=config.get("do_lower_case", not cased),
        strip_accents=config.get("strip_accents"),
        split_chinese=config.get("tokenize_chinese_chars", True),
        special_tokens=specials,
    )


def _add_tokens(tokenizer: Tokenizer, file: Path, config: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Put the tokens behind a vocabulary that stand in other files, at the ids that they have there."""
    source, listed = file.with_name("tokenizer_config.json"), config.get("added_tokens_decoder")
    if listed is None:
        source = file.with_name(_ADDED_FILE)
        # Older files say no more than the id.
        ids = _read_json(source) if source.is_file() else {}
        special = {*names.values(), *map(_spelling, config.get("additional_special_tokens") or ())}
        listed = {i: {"content": token, "special": token in special} for token, i in ids.items()}
    try:
        added = [(int(i), dict(token)) for i, token in listed.items()]
        added = [(i, AddedToken(**{"normalized": not token.get("special"), **token})) for i, token in sorted(added)]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source} is damaged: expected added tokens, but {error}; fetch or save the tokenizer again"
        ) from error
    for i, token in added:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if (found := tokenizer.token_to_id(token.content)) != i:
            raise ValueError(
                f"{source} gives {token.content!r} the id {i}, but behind {file.name} it has {found}: ids of added "
                "tokens follow the vocabulary without a gap; save the tokenizer with a tokenizer.json"
            )


def _class_options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Name the class that Hugging Face is to use, with the options from which it may rebuild a BERT tokenizer."""
    normalizer = state["normalizer"] or {}
    if state["model"]["type"] != "WordPiece" or normalizer.get("type") != "BertNormalizer":
        return {"tokenizer_class": "PreTrainedTokenizerFast"}
    return {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": normalizer["lowercase"],
        "strip_accents": normalizer["strip_accents"],
        "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
    }
