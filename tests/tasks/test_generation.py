"""Text generation: prompts to texts, stop strings across tokens, streaming of half characters, the command line."""

import io
import itertools
import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers

from fastssl.cli.main import main
from fastssl.data.batch import PackedBatch
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.tasks.generation.text_generator import TextGenerator
from fastssl.tasks.generation.text_stream import StopStrings, TextStream
from fastssl.tasks.pipelines import pipeline

TEXT = "In the beginning 🙂 God created the heaven and the earth. 台灣大學 naïve\n\n café" * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_byte_pairs([TEXT], vocab_size=290)


@pytest.fixture(scope="module")
def directory(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt")
    torch.manual_seed(0)
    bounds = tokenizer.bounds
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.5, bos_token_id=bounds.bos, eos_token_id=bounds.eos,
    )  # fmt: skip
    GPTForCausalLM(config).save_pretrained(path)
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def generator(directory) -> TextGenerator:
    return TextGenerator.load(directory)


@pytest.fixture(scope="module")
def llama() -> Tokenizer:
    """As Llama 2's: a space in front, words by "▁", and bytes by name where a character has no token."""
    vocabulary = {name: i for i, name in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))])}
    for token in (*"▁aeht.", "▁t", "▁th", "▁the"):
        vocabulary[token] = len(vocabulary)
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(backend)


def streamed(tokenizer: Tokenizer, prompt: list[int], tokens: list[int]) -> str:
    stream = TextStream(tokenizer, prompt)
    return "".join(map(stream.add, tokens)) + stream.finish()


def test_characters_of_named_bytes_come_whole(llama):
    ids = llama.encode("a 日本😀 the")
    stream = TextStream(llama, ids[:2])
    pieces = [*map(stream.add, ids[2:]), stream.finish()]
    assert [piece for piece in pieces if piece] == [" ", "日", "本", "😀", " the"]
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("aé日😀\ufffd \n本") for _ in range(rng.randrange(1, 14)))
        ids, front = llama.encode(text), llama.encode(text[: rng.randrange(len(text) + 1)])
        if ids[: len(front)] == front:
            assert streamed(llama, front, ids[len(front) :]) == llama.decode(ids)[len(llama.decode(front)) :]


def test_named_bytes_that_are_no_character_leave_the_others(llama):
    """A text that ends inside a character, as it may at max_new_tokens, keeps what stands in front of it."""
    ids = llama.encode("the 日本")
    assert streamed(llama, ids[:1], ids[1:-1]) == " 日\ufffd"
    assert streamed(llama, ids[:1], [*ids[1:-1], *llama.encode("the")]) == " 日\ufffd the"
    assert streamed(llama, ids[:-2], [*ids[-2:], *ids[-3:]]) == "本本"


def test_stop_strings_of_named_bytes_and_at_the_beginning(llama):
    prompt, tokens = llama.encode("a 日本"), llama.encode("the 😀😀")
    stops = StopStrings([" the"])
    assert stops.ends(llama, tokens[:1], prompt)
    assert not stops.ends(llama, tokens[:1])  # which is where decoders drop the space
    stops = StopStrings(["😀", "本"])
    ended = [n for n in range(1, len(tokens) + 1) if stops.ends(llama, tokens[:n], prompt)]
    assert ended[0] == len(llama.encode("the 😀"))
    assert not stops.ends(llama, tokens[:1], prompt)


def test_a_stop_string_with_a_space_ends_a_text_that_begins_with_it(llama, monkeypatch):
    config = GPTConfig(
        vocab_size=llama.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    generator = TextGenerator(GPTForCausalLM(config), llama)
    logits = torch.zeros(1, llama.vocab_size)
    logits[0, llama.token_to_id("▁the")] = 1
    monkeypatch.setattr(generator.model, "next_token_logits", lambda batch, cache=None: logits)
    for stop, options in ((" the", {}), (" the the", {"num_beams": 2})):
        written = generator(["a"], stop=[stop], max_new_tokens=4, **options)[0]
        assert (written.text, written.num_tokens, written.finish_reason) == ("", stop.count("the"), "stopped")
    assert list(generator.write("a", stop=[" the"])) == []
    assert generator.write_on([llama.encode("a")], stop=[" the"], max_new_tokens=4) == [""]


def test_pieces_join_to_the_text_and_no_character_comes_in_parts(tokenizer):
    tokens = tokenizer.encode(TEXT)
    stream = TextStream(tokenizer)
    pieces = [*map(stream.add, tokens), stream.finish()]
    assert "".join(pieces) == TEXT
    assert all("\ufffd" not in piece for piece in pieces)
    assert "" in pieces  # the bytes of an ideograph are several tokens here


def test_bytes_that_are_no_text_are_shown_as_such(tokenizer):
    """A model may write any bytes: what they spell comes through, late by a character at most."""
    byte = {character: tokenizer.token_to_id(character) for character in "ĠÃð"}
    tokens = [byte["ð"]] * 9 + tokenizer.encode("a") + [byte["Ã"]]
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in tokens]
    assert any(pieces[:6])
    whole = "".join(pieces) + stream.finish()
    assert whole == tokenizer.decode(tokens)
    assert whole.endswith("a\ufffd")


def test_stop_strings_across_tokens(tokenizer):
    stops = StopStrings(["beginning 🙂", "zzz"])
    tokens = tokenizer.encode(TEXT)
    ended = [n for n in range(1, len(tokens) + 1) if stops.ends(tokenizer, tokens[:n])]
    first = tokenizer.decode(tokens[: ended[0]])
    assert "beginning 🙂" in first and "beginning 🙂" not in tokenizer.decode(tokens[: ended[0] - 1])
    assert stops.cut(TEXT) == "In the "
    assert stops.safe_length("In the begin") == len("In the ")
    assert stops.safe_length("In the zz") == len("In the ")
    assert stops.safe_length("In the end") == len("In the end")
    with pytest.raises(ValueError, match="stop string is empty"):
        StopStrings(["a", ""])
    with pytest.raises(ValueError, match="stop must be several strings"):
        StopStrings("abc")


def all_of(pieces):
    """Return what a generator yields, and what it returns."""
    found = []
    while True:
        try:
            found.append(next(pieces))
        except StopIteration as end:
            return found, end.value


def test_texts_and_streams_agree(generator):
    prompts = ["In the beginning", "", "台灣", "the earth."]
    options = {"max_new_tokens": 20, "temperature": 0.9, "seed": 3}
    texts = generator(prompts, **options)
    assert [text.prompt for text in texts] == prompts
    for text in texts:
        pieces, whole = all_of(generator.write(text.prompt, **options))
        assert "".join(pieces) == text.text
        assert len(pieces) > 1
        assert whole == text
    assert list(generator.stream(iter(prompts), texts_at_once=1, **options)) == texts


def test_a_text_ends_in_front_of_its_stop_string(generator):
    options = {"max_new_tokens": 30, "min_new_tokens": 30, "temperature": 1.0, "seed": 1}
    for prompt in ("In the", "God", "earth"):
        free = generator([prompt], **options)[0].text
        stop = free[9:12]
        assert len(stop) == 3
        text = generator([prompt], stop=[stop], **options)[0]
        assert text.text == free[: free.index(stop)]
        assert text.finish_reason == "stopped"
        assert "".join(generator.write(prompt, stop=[stop], **options)) == text.text


def test_prompts_begin_as_their_tokenizer_begins_texts(directory, generator, tokenizer):
    """Ours do as training did; GPT-2's puts nothing in front."""
    bos = tokenizer.bounds.bos
    assert generator.encode("In the") == [bos, *tokenizer.encode("In the")]
    assert generator.encode("<|endoftext|>In") == [bos, *tokenizer.encode("In")]
    assert generator.encode("") == [bos]


def test_samples_and_beams(generator):
    texts = generator(["In the", "God"], num_samples=3, temperature=1.0, max_new_tokens=8)
    assert [(text.prompt, text.sample) for text in texts] == [(p, s) for p in ("In the", "God") for s in range(3)]
    beams = generator(["In the"], num_samples=2, num_beams=3, max_new_tokens=8)
    assert all(one.score >= other.score for one, other in pairwise(beams))


def test_the_pipeline(directory, generator):
    served = pipeline("text-generation", directory)
    assert served(["In the"], max_new_tokens=5) == generator(["In the"], max_new_tokens=5)


def test_a_stream_reads_no_more_than_it_writes_on_together(generator):
    taken = 0

    def endless():
        nonlocal taken
        for text in itertools.cycle(["In the", "God", "earth"]):
            taken += 1
            yield text

    ahead = []
    for number, text in enumerate(generator.stream(endless(), texts_at_once=4, max_new_tokens=2), start=1):
        assert text.prompt == ["In the", "God", "earth"][(number - 1) % 3]
        ahead.append(taken - number)
        if number == 13:
            break
    assert max(ahead) == 3


def test_many_threads_may_use_one_generator(generator):
    prompts = ["In the", "God", "earth", ""]
    expected = [generator([prompt], max_new_tokens=8, temperature=1.0) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: generator([prompts[n % 4]], max_new_tokens=8, temperature=1.0), range(16)))
    assert found == [expected[number % 4] for number in range(16)]


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_fewer_bits_write_on_too(directory, generator, dtype):
    """Of scores that lie far apart the likeliest stays the likeliest."""
    fewer = TextGenerator.load(directory, dtype=dtype)
    batch = PackedBatch.from_sequences([generator.encode(text) for text in ("In the", "God created")])
    with torch.no_grad():
        exact, near = (one.model.next_token_logits(batch).float() for one in (generator, fewer))
    assert (exact - near).abs().max() < 0.1 * exact.abs().max()
    assert not torch.equal(exact, near)
    texts = fewer(["In the", "God created"], max_new_tokens=12)
    assert [text.num_tokens for text in texts] == [12, 12] or any(t.finish_reason == "end_token" for t in texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 2, "temperature": 1.0}, "one text is written at a time here, got num_samples=2"),
        ({"num_beams": 2}, "beam search knows its texts only at the end"),
        ({"temperature": -1}, "temperature must be a number, at least 0"),
    ],
)
def test_bad_options(generator, arguments, message):
    with pytest.raises(ValueError, match=message):
        generator.write("a", **arguments)


def test_bad_prompts(generator):
    with pytest.raises(ValueError, match="prompts must be several strings, got one"):
        generator("In the")
    with pytest.raises(ValueError, match="texts must be several prompts, got one string"):
        generator.stream("In the")
    with pytest.raises(ValueError, match=r"prompt 0 has \d+ tokens, and the model has 64 positions"):
        generator([TEXT])
    with pytest.raises(ValueError, match="prompt 3 has"):
        list(generator.stream(["a", "b", "c", TEXT], texts_at_once=2, max_new_tokens=1))
    with pytest.raises(ValueError, match="prompt 1 has"):
        generator.write_on([[1], [1] * 64])
    with pytest.raises(ValueError, match="texts_at_once must be at least 1, got 0"):
        generator.stream(["a"], texts_at_once=0)


def test_the_command_line(directory, generator, capsys, monkeypatch):
    assert main(["generate", "--model", str(directory), "--prompt", "In the", "--max-new-tokens", "6"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"In the{generator(['In the'], max_new_tokens=6)[0].text}\n"
    assert "tokens/s" in shown.err
    flags = ["--prompt", "In the", "--max-new-tokens", "6", "--no-use-cache"]
    assert main(["generate", "--model", str(directory), *flags]) == 0
    assert capsys.readouterr().out == shown.out
    flags = ["--num-samples", "2", "--temperature", "0.7", "--max-new-tokens", "6", "--json"]
    assert main(["generate", "--model", str(directory), "--prompt", "God", "", *flags]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["prompt"], row["sample"]) for row in rows] == [("God", 0), ("God", 1), ("", 0), ("", 1)]


def give(monkeypatch, content: bytes) -> None:
    """Put bytes into standard input, which decodes them as it does in a plain locale."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii", errors="surrogateescape"))


@pytest.mark.parametrize("way", ["-", "interactive"])
def test_prompts_from_standard_input(directory, generator, capsys, monkeypatch, way):
    give(monkeypatch, "\ufeffIn the 台\r\n".encode())
    flags = ["--interactive"] if way == "interactive" else ["--prompt", "-"]
    assert main(["generate", "--model", str(directory), *flags, "--max-new-tokens", "6"]) == 0
    assert f"In the 台{generator(['In the 台'], max_new_tokens=6)[0].text}\n" in capsys.readouterr().out


def test_an_interactive_session_outlives_a_bad_prompt(directory, generator, capsys, monkeypatch):
    give(monkeypatch, f"{'In the ' * 40}\nGod\n\n".encode())
    assert main(["generate", "--model", str(directory), "--interactive", "--max-new-tokens", "6", "--json"]) == 0
    shown = capsys.readouterr()
    assert "fastssl: error: prompt 0 has" in shown.err
    assert [json.loads(line)["prompt"] for line in shown.out.splitlines()] == ["God"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", TEXT], "and the model has 64 positions"),
        (["--prompt", "a", "--stop", ""], "a stop string is empty"),
        (["--prompt", "-", "-"], "--prompt takes - once"),
        (["--prompt", "-"], "standard input is not UTF-8 at byte 4"),
        (["--prompt", "a", "--num-threads", "0"], "num_threads must be at least 1, got 0"),
    ],
)
def test_nothing_is_printed_before_an_error(directory, capsys, monkeypatch, flags, message):
    give(monkeypatch, b"caf\xe9")
    assert main(["generate", "--model", str(directory), *flags]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err


def test_characters_that_cannot_be_printed_are_told(directory, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    assert main(["generate", "--model", str(directory), "--prompt", "台", "--max-new-tokens", "2"]) == 1
    told = "fastssl: error: '台' cannot be printed in latin-1; set PYTHONIOENCODING=utf-8"
    assert capsys.readouterr().err.splitlines()[-1] == told


def test_texts_are_numbered_and_tokens_are_counted(directory, generator, capsys):
    flags = ["generate", "--model", str(directory), "--seed", "2", "--temperature", "2"]
    assert main([*flags, "--prompt", "In", "God", "--max-new-tokens", "9"]) == 0
    shown = capsys.readouterr()
    assert [line[:4] for line in shown.out.splitlines() if line.startswith("[")] == ["[1] ", "[2] "]
    # The bytes of half characters are no text that could be counted again.
    assert main([*flags, "--prompt", "In", "--max-new-tokens", "99"]) == 0
    written = generator(["In"], max_new_tokens=99, seed=2, temperature=2.0)[0]
    assert capsys.readouterr().err.startswith(f"{written.num_tokens} tokens in ")
    assert len(generator.tokenizer.encode(written.text)) != written.num_tokens


def test_a_full_context_is_told(directory, capsys):
    flags = ["--prompt", "In", "--max-new-tokens", "99", "--min-new-tokens", "99"]
    assert main(["generate", "--model", str(directory), *flags]) == 0
    assert capsys.readouterr().err.rstrip().endswith("; the model has no further position")


def test_the_command_line_wants_a_prompt(directory, capsys):
    assert main(["generate", "--model", str(directory)]) == 1
    assert 'expected either --prompt "..."' in capsys.readouterr().err


def test_published_sampling_is_told_where_nothing_was_said(directory, tmp_path, capsys):
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    said = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    flags = ["generate", "--model", str(tmp_path), "--prompt", "In", "--max-new-tokens", "2"]
    assert main(flags) == 0
    assert "generation_config.json means the model to be sampled, with --temperature 0.6 --top-p 0.9;" in (
        capsys.readouterr().err
    )
    assert main([*flags, "--temperature", "0"]) == 0
    assert "generation_config.json" not in capsys.readouterr().err
