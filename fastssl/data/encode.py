"""Text files to token shards: by all cores, and from where it stopped."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from fastssl.data.corpus import SENTENCES, TextForm, check_file, read_documents
from fastssl.data.encoding_pool import EncodingPool, available_cpus
from fastssl.data.encoding_worker import EncodedText
from fastssl.data.files import sha256_of_file
from fastssl.data.sentences import RULES_VERSION
from fastssl.data.shard_format import INDEX_NAME, PartInfo, ShardError, ShardIndex, SourceInfo
from fastssl.data.shard_writer import ShardWriter
from fastssl.data.shards import TokenShards

if TYPE_CHECKING:
    from fastssl.data.tokenizer import Tokenizer

TOKENS_PER_PART = 1 << 26
_CHUNK_CHARACTERS = 1 << 20
_WORTH_A_POOL_BYTES = 1 << 23


def encode_files(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    output_dir: str | Path,
    *,
    num_processes: int | None = None,
    text_field: str = "text",
    encoding_errors: str = "strict",
    form: TextForm = SENTENCES,
    progress: bool = True,
    overwrite: bool = False,
    tokens_per_part: int = TOKENS_PER_PART,
) -> TokenShards:
    """Encode files into the token shards of a directory, beside which the tokenizer is saved.

    Documents are cut into sentences and tokens by a pool of processes, within and across files, and written in the
    order of the files: the result does not depend on the number of processes. Run again after an interruption, or
    with more files behind the old ones, it goes on behind the last finished part; a changed file or a damaged part is
    encoded anew, with everything behind it.

    Args:
        paths: The files, in the formats of ``read_documents``; no file twice.
        tokenizer: Makes the ids.
        output_dir: Made where missing.
        num_processes: Worker processes; None takes one per CPU, and none for less than 8 MiB.
        text_field, encoding_errors: As in ``read_documents``.
        form: Whether documents are cut into sentences, or stay as they are.
        progress: Show a bar on standard error.
        overwrite: Replace shards of other files, settings or tokenizers in ``output_dir`` instead of raising.
        tokens_per_part: Begin a new part file once one holds as many tokens.

    Returns:
        The shards, opened.

    Raises:
        ShardError: ``output_dir`` holds shards of another tokenizer, other settings or other files.
        FileNotFoundError, ValueError: A file cannot be read; see ``read_documents``.
        OSError: The disk is full, or a worker was killed; finished parts stay, and nothing half-written is left.
    """
    sources = _describe_sources(paths)
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"num_processes must be at least 1, but is {num_processes}; leave it out for one per CPU")
    options = {"text_field": text_field, "encoding_errors": encoding_errors, **_form_options(form)}
    wanted = ShardIndex(
        vocab_size=tokenizer.vocab_size, tokenizer_fingerprint=tokenizer.fingerprint, options=options, sources=sources
    )
    directory = Path(output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    index = _what_is_left_to_do(directory, wanted, overwrite=overwrite)
    if not index.complete:
        _remove_unlisted_parts(directory, index)
        index.write(directory)
        tokenizer.save(directory)
        if num_processes is None:
            total_bytes = sum(source.size_bytes for source in sources)
            num_processes = available_cpus() if total_bytes >= _WORTH_A_POOL_BYTES else 1
        with EncodingPool(tokenizer, num_processes, form=form) as pool, _progress_bar(progress) as bar:
            _Encoding(directory, index, form, tokens_per_part, bar).run(pool)
    return TokenShards.open(directory)


def _form_options(form: TextForm) -> dict[str, object]:
    if form.exact:
        return {"text_form": "exact", "document_separator": form.document_separator}
    return {"sentence_rules": RULES_VERSION}


def _describe_sources(paths: Sequence[str | Path]) -> tuple[SourceInfo, ...]:
    if isinstance(paths, (str, Path)) or not paths:
        raise ValueError(f"paths must be a list of at least one file, but is {paths!r}")
    resolved = [Path(path).resolve() for path in paths]
    for path, count in Counter(resolved).items():
        check_file(path)
        if count > 1:
            raise ValueError(f"{path} is given {count} times: expected each file once; leave the others out")
    return tuple(_describe_source(path) for path in resolved)


def _describe_source(path: Path) -> SourceInfo:
    status = path.stat()
    return SourceInfo(path=str(path), size_bytes=status.st_size, modified_ns=status.st_mtime_ns, sha256="")


def _what_is_left_to_do(directory: Path, wanted: ShardIndex, *, overwrite: bool) -> ShardIndex:
    """Return the wanted index with what can be kept of the directory's shards: the longest intact prefix."""
    if overwrite or not (directory / INDEX_NAME).is_file():
        return wanted
    found = ShardIndex.read(directory)
    _check_same_kind(directory, found, wanted)
    sources = list(wanted.sources)
    unchanged = 0
    for old, new in zip(found.sources, wanted.sources, strict=False):
        if not _is_unchanged(old, new):
            break
        sources[unchanged] = replace(new, sha256=old.sha256)
        unchanged += 1
    parts = tuple(itertools.takewhile(lambda part: _can_be_kept(directory, part, unchanged), found.parts))
    used_up = parts[-1].next_source if parts else 0
    sources[used_up:] = [replace(source, sha256="") for source in sources[used_up:]]
    return replace(wanted, sources=tuple(sources), parts=parts, complete=used_up == len(sources))


def _check_same_kind(directory: Path, found: ShardIndex, wanted: ShardIndex) -> None:
    remedy = "choose another --output-dir, or replace them with --overwrite"
    if found.tokenizer_fingerprint != wanted.tokenizer_fingerprint:
        raise ShardError(
            f"{directory} already holds token shards made with another tokenizer: expected fingerprint "
            f"{wanted.tokenizer_fingerprint[:12]}, found {found.tokenizer_fingerprint[:12]}; {remedy}"
        )
    if found.options != wanted.options:
        raise ShardError(
            f"{directory} already holds token shards made with other settings: expected {wanted.options}, "
            f"found {found.options}; {remedy}"
        )
    others = {source.path for source in found.sources} - {source.path for source in wanted.sources}
    if others:
        raise ShardError(
            f"{directory} already holds token shards of other files, such as {min(others)}; name them too, {remedy}"
        )


def changed_sources(output_dir: str | Path) -> list[str]:
    """Return those of the files that finished shards were made of which are not what they were, in their order."""
    found = ShardIndex.read(Path(output_dir))
    sources = found.sources if found.complete else ()
    return [old.path for old in sources if not _is_unchanged(old, _describe_source(Path(old.path)))]


def _is_unchanged(old: SourceInfo, new: SourceInfo) -> bool:
    if (old.path, old.size_bytes) != (new.path, new.size_bytes):
        return False
    return old.modified_ns == new.modified_ns or old.sha256 == sha256_of_file(Path(new.path))


def _can_be_kept(directory: Path, part: PartInfo, num_unchanged_sources: int) -> bool:
    file = directory / part.file
    return (
        part.next_source + (part.next_document > 0) <= num_unchanged_sources
        and file.is_file()
        and file.stat().st_size == part.size_bytes
        and sha256_of_file(file) == part.sha256
    )


def _remove_unlisted_parts(directory: Path, index: ShardIndex) -> None:
    """Remove parts that are to be made anew and what a killed run left under temporary names."""
    listed = {INDEX_NAME, *(part.file for part in index.parts)}
    for file in directory.iterdir():
        ours = re.fullmatch(r"part-\d{5}\.tokens|\.(part-\d{5}\.tokens|index\.json)\.\d+\.tmp", file.name)
        if ours and file.name not in listed:
            file.unlink()


def _progress_bar(visible: bool) -> Progress:
    return Progress(
        TextColumn("encoding"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not visible,
    )


@dataclass(frozen=True)
class _Task:
    """Some documents of a source; none at its end."""

    source: int
    documents: list[str]


class _Encoding:
    """One run: reads the rest of the sources, and writes parts and the index after each of them."""

    def __init__(self, directory: Path, index: ShardIndex, form: TextForm, tokens_per_part: int, bar: Progress):
        self._directory = directory
        self._index = index
        self._form = form
        self._tokens_per_part = tokens_per_part
        self._bar = bar
        self._num_tokens = sum(part.num_tokens for part in index.parts)
        self._bar_task = bar.add_task(
            "encoding", total=sum(s.size_bytes for s in index.sources), tokens=self._num_tokens
        )
        last = index.parts[-1] if index.parts else None
        self._next_source, self._next_document = (last.next_source, last.next_document) if last else (0, 0)
        bar.advance(self._bar_task, sum(source.size_bytes for source in index.sources[: self._next_source]))

    def run(self, pool: EncodingPool) -> None:
        """Encode what is left, part by part."""
        with contextlib.closing(pool.map_documents(self._tasks())) as results:
            while not self._index.complete:
                path = self._directory / f"part-{len(self._index.parts):05d}.tokens"
                with ShardWriter(path, vocab_size=self._index.vocab_size) as writer:
                    self._fill(writer, results)
                    self._finish_part(writer)

    def _tasks(self) -> Iterator[_Task]:
        skip = self._next_document
        for number in range(self._next_source, len(self._index.sources)):
            documents = read_documents(
                self._index.sources[number].path,
                text_field=self._index.options["text_field"],
                encoding_errors=self._index.options["encoding_errors"],
                form=self._form,
                on_read=lambda num_bytes: self._bar.advance(self._bar_task, num_bytes),
            )
            for chunk in _chunks(itertools.islice(documents, skip, None)):
                yield _Task(number, chunk)
            yield _Task(number, [])
            skip = 0

    def _fill(self, writer: ShardWriter, results: Iterator[tuple[_Task, EncodedText]]) -> None:
        for task, encoded in results:
            if task.documents:
                writer.add_documents(*encoded)
                self._next_document += len(task.documents)
                self._num_tokens += len(encoded.tokens)
                self._bar.update(self._bar_task, tokens=self._num_tokens)
            else:
                self._finish_source(task.source)
            if writer.num_tokens >= self._tokens_per_part:
                return

    def _finish_source(self, number: int) -> None:
        before = self._index.sources[number]
        after = _describe_source(Path(before.path))
        if (after.size_bytes, after.modified_ns) != (before.size_bytes, before.modified_ns):
            raise ValueError(f"{before.path} changed while it was being encoded; encode again when it is written")
        finished = replace(after, sha256=sha256_of_file(Path(after.path)))
        sources = (*self._index.sources[:number], finished, *self._index.sources[number + 1 :])
        self._index = replace(self._index, sources=sources)
        self._next_source, self._next_document = number + 1, 0

    def _finish_part(self, writer: ShardWriter) -> None:
        parts = self._index.parts
        place = {"next_source": self._next_source, "next_document": self._next_document}
        complete = self._next_source == len(self._index.sources)
        if writer.num_documents:
            parts = (*parts, writer.finish(**place))
        elif parts:
            parts = (*parts[:-1], replace(parts[-1], **place))
        else:
            raise ValueError(
                f"no documents: the tokenizer found no token in {', '.join(s.path for s in self._index.sources)}; "
                "give files with text"
            )
        self._index = replace(self._index, parts=parts, complete=complete)
        self._index.write(self._directory)


def _chunks(documents: Iterator[str]) -> Iterator[list[str]]:
    """Group documents into pieces of work large enough to be worth sending to another process."""
    chunk: list[str] = []
    num_characters = 0
    for document in documents:
        chunk.append(document)
        num_characters += len(document)
        if num_characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, num_characters = [], 0
    if chunk:
        yield chunk
