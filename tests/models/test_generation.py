"""Generation: equal to `transformers`, with and without the cache, batched or alone; limits and errors."""

import pytest
import torch

from fastssl.models.generation.generate import generate, stream
from fastssl.models.generation.generated import GenerationConfig
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from tests.models.gpt_peers import PEERS, peer, sequences
from tests.models.test_gpt import EVERY_VARIANT, small_model

PROMPTS = sequences((7, 1, 23, 12))


def tokens_of(model, prompts=PROMPTS, **options) -> list[list[int]]:
    return [text.tokens for text in model.generate(prompts, **options)]


@pytest.mark.parametrize("name", PEERS)
def test_greedy_is_that_of_transformers(tmp_path, name):
    theirs = peer(name)
    theirs.save_pretrained(tmp_path)
    ours = GPTForCausalLM.from_pretrained(tmp_path)
    ours_written = ours.generate(PROMPTS, max_new_tokens=8)
    for prompt, text in zip(PROMPTS, ours_written, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        assert text.tokens == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("options", [{}, {"length_penalty": 0.3}, {"length_penalty": -1.0}, {"early_stopping": True}])
@pytest.mark.parametrize("num_beams", [2, 5])
def test_beams_are_those_of_transformers(tmp_path, num_beams, options):
    theirs = peer("gpt2", initializer_range=0.15)
    theirs.save_pretrained(tmp_path)
    ours = GPTForCausalLM.from_pretrained(tmp_path)
    free = tokens_of(ours, max_new_tokens=6, num_beams=num_beams)
    ended = 0
    for end in (95, free[0][2], free[2][3]):
        ours.gpt.config = _with_end(ours.config, end)
        texts = ours.generate(PROMPTS, max_new_tokens=6, num_beams=num_beams, num_samples=2, **options)
        for number, prompt in enumerate(PROMPTS):
            ids = torch.tensor([prompt])
            expected = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, num_beams=num_beams,
                num_return_sequences=2, eos_token_id=end, pad_token_id=1, return_dict_in_generate=True,
                output_scores=True, **options,
            )  # fmt: skip
            for own, row, score in zip(
                texts[2 * number : 2 * number + 2], expected.sequences, expected.sequences_scores, strict=True
            ):
                padded = own.tokens + [1] * (len(row) - len(prompt) - len(own.tokens))
                assert padded == row[len(prompt) :].tolist()
                assert own.score == pytest.approx(float(score), rel=1e-4)
                ended += own.finish_reason == "end_token"
    assert ended


def _with_end(config, token):
    from dataclasses import replace

    return replace(config, eos_token_id=token)


@EVERY_VARIANT
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_k": 20, "num_samples": 3, "seed": 5}])
def test_with_and_without_cache_batched_and_alone(variant, options):
    model = small_model(variant)
    expected = tokens_of(model, max_new_tokens=12, **options)
    assert tokens_of(model, max_new_tokens=12, use_cache=False, **options) == expected
    alone = [text for prompt in PROMPTS for text in tokens_of(model, [prompt], max_new_tokens=12, **options)]
    assert alone == expected
    assert model.training


class Adapter(torch.nn.Linear):
    """Adds a low-rank map of its input, as LoRA does."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__(linear.in_features, linear.out_features)
        self.weight, self.bias = linear.weight, linear.bias
        self.change = torch.nn.Parameter(torch.randn_like(linear.weight))

    def forward(self, x):
        return super().forward(x) + x @ self.change.T


def replace_a_layer(model):
    model.gpt.blocks[1].attention.output = Adapter(model.gpt.blocks[1].attention.output)


def replace_a_forward(model):
    linear = model.gpt.blocks[0].mlp.up
    linear.forward = lambda x: torch.nn.functional.linear(x, -2 * linear.weight)


def steer(model):
    direction = 9 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    model.gpt.blocks[0].register_forward_hook(lambda module, inputs, outputs: (outputs[0] + direction, outputs[1]))


@pytest.mark.parametrize("change", [replace_a_layer, replace_a_forward, steer])
def test_what_somebody_adds_to_a_layer_counts_for_every_token(change):
    model = small_model().eval()
    before = tokens_of(model, max_new_tokens=9)
    change(model)
    after = tokens_of(model, max_new_tokens=9)
    assert after != before
    assert tokens_of(model, max_new_tokens=9, use_cache=False) == after


def test_a_hook_that_comes_between_two_tokens_is_called():
    model, calls = small_model().eval(), []
    steps = stream(model, [[1, 2, 3]], GenerationConfig(max_new_tokens=5))
    next(steps), next(steps)
    model.gpt.blocks[2].mlp.down.register_forward_hook(lambda *_: calls.append(1))
    assert len(list(steps)) == len(calls)


def test_parts_that_are_frozen_stay_so():
    model = small_model().train()
    model.gpt.blocks[0].eval()
    tokens_of(model, max_new_tokens=2)
    assert model.training and model.gpt.blocks[1].mlp.up.training and not model.gpt.blocks[0].mlp.up.training


def test_beams_with_and_without_cache():
    model = small_model("llama")
    expected = tokens_of(model, max_new_tokens=9, num_beams=3)
    assert tokens_of(model, max_new_tokens=9, num_beams=3, use_cache=False) == expected


def test_samples_differ_and_repeat_with_their_seed():
    model = small_model()
    options = {"temperature": 1.0, "num_samples": 4, "max_new_tokens": 10}
    first = tokens_of(model, seed=1, **options)
    assert first == tokens_of(model, seed=1, **options)
    assert first != tokens_of(model, seed=2, **options)
    assert len({tuple(tokens) for tokens in first[:4]}) == 4
    # A temperature of 0 and a single candidate are the likeliest token.
    assert tokens_of(model, temperature=0, max_new_tokens=10) == tokens_of(model, max_new_tokens=10)
    assert tokens_of(model, top_k=1, max_new_tokens=10) == tokens_of(model, max_new_tokens=10)


def test_texts_end_at_an_end_token_and_leave_the_batch():
    model = small_model()
    free = tokens_of(model, max_new_tokens=12)
    end = free[0][3]
    model.gpt.config = _with_end(model.config, end)
    texts = model.generate(PROMPTS, max_new_tokens=12)
    for text, unbounded in zip(texts, free, strict=True):
        cut = unbounded.index(end) + 1 if end in unbounded else 12
        assert text.tokens == unbounded[:cut]
        assert text.finish_reason == ("end_token" if end in unbounded else "max_new_tokens")
    assert len({len(text.tokens) for text in texts}) > 1
    longer = model.generate(PROMPTS, max_new_tokens=12, min_new_tokens=6)
    assert all(end not in text.tokens[:6] and len(text.tokens) >= 6 for text in longer)


def test_a_receiver_may_stop_a_text():
    model = small_model()
    texts = generate(model, PROMPTS, GenerationConfig(max_new_tokens=9), stop=lambda text: len(text.tokens) == 4)
    assert [(len(text.tokens), text.finish_reason) for text in texts] == [(4, "stopped")] * 4


def test_the_context_ends():
    """40 positions are read, and one token more is written behind them; with and without the cache."""
    model = small_model()
    for use_cache in (True, False):
        texts = model.generate(PROMPTS, max_new_tokens=100, use_cache=use_cache)
        assert [len(text.tokens) for text in texts] == [41 - len(prompt) for prompt in PROMPTS]
        assert {text.finish_reason for text in texts} == {"context"}
    texts = model.generate([PROMPTS[2]], max_new_tokens=100, num_beams=2)
    assert (len(texts[0].tokens), texts[0].finish_reason) == (18, "context")


def test_steps_are_streamed():
    model = small_model()
    steps = [
        [(text.prompt, text.tokens[-1], text.finish_reason) for text in step]
        for step in stream(model, PROMPTS[:2], GenerationConfig(max_new_tokens=3))
    ]
    assert [[text[0] for text in step] for step in steps] == [[0, 1]] * 3
    written = tokens_of(model, PROMPTS[:2], max_new_tokens=3)
    assert [[step[row][1] for step in steps] for row in range(2)] == written
    assert [text[2] for text in steps[-1]] == ["max_new_tokens"] * 2


def test_an_empty_prompt_begins_with_the_first_token():
    model = small_model()
    assert tokens_of(model, [[]], max_new_tokens=5) == tokens_of(model, [[96]], max_new_tokens=5)
    assert model.generate([]) == []
    with pytest.raises(ValueError, match="prompt 0 is empty, and the model has no bos_token_id"):
        small_model(bos_token_id=None).generate([[]])


def test_repetition_penalty_is_that_of_transformers(tmp_path):
    theirs = peer("gpt2")
    theirs.save_pretrained(tmp_path)
    ours = GPTForCausalLM.from_pretrained(tmp_path)
    for prompt, tokens in zip(
        PROMPTS, tokens_of(ours, max_new_tokens=8, repetition_penalty=1.7, use_cache=True), strict=True
    ):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, repetition_penalty=1.7,
            pad_token_id=0,
        )  # fmt: skip
        assert tokens == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1, 97]], {}, "prompt 0 has the token 97, and the model's vocabulary ends at 97"),
        ([[1], [2] * 40], {}, "prompt 1 has 40 tokens, and the model has 40 positions"),
        ([1, 2], {}, "prompt 0 must be a sequence of token ids, got 1; give several of them"),
        (["abc"], {}, "prompt 0 must be a sequence of token ids, got 'abc'"),
        ([[1, 2.5]], {"num_beams": 2}, "prompt 0 must be a sequence of token ids"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens must be a whole number, at least 1, got 0"),
        ([[1]], {"max_new_tokens": 2.5}, "max_new_tokens must be a whole number, at least 1, got 2.5"),
        ([[1]], {"max_new_tokens": 3, "min_new_tokens": 9}, "min_new_tokens must be at most max_new_tokens=3, got 9"),
        ([[1]], {"temperature": -1.0}, "temperature must be a number, at least 0, got -1.0"),
        ([[1]], {"temperature": "hot"}, "temperature must be a number, at least 0, got 'hot'"),
        ([[1]], {"top_p": 0.0}, "top_p must be a number above 0 and at most 1"),
        ([[1]], {"min_p": 1.5}, "min_p must be a number, at least 0 and at most 1"),
        ([[1]], {"top_k": 0}, "top_k must be a whole number, at least 1"),
        ([[1]], {"top_k": 2.5}, "top_k must be a whole number, at least 1, got 2.5"),
        ([[1]], {"seed": None}, "seed must be a whole number, got None"),
        ([[1]], {"num_beams": 2, "length_penalty": float("nan")}, "length_penalty must be a finite number, got nan"),
        ([[1]], {"num_beams": 2, "temperature": 1.0}, "num_beams above 1 takes the likeliest texts"),
        ([[1]], {"early_stopping": True}, "length_penalty and early_stopping are of a beam search"),
        ([[1]], {"length_penalty": 0.5, "temperature": 1.0}, "length_penalty and early_stopping are of a beam search"),
        ([[1]], {"num_samples": 2}, "num_samples=2 texts would all be the same"),
        ([[1]], {"num_samples": 2, "temperature": 0}, "num_samples=2 texts would all be the same"),
        ([[1]], {"num_beams": 2, "num_samples": 3}, "num_samples must be at most num_beams=2, got 3"),
    ],
)
def test_bad_input(prompts, options, message):
    with pytest.raises(ValueError, match=message):
        small_model().generate(prompts, **options)


def test_beams_are_not_streamed():
    with pytest.raises(ValueError, match="beam search knows its texts only at the end"):
        stream(small_model(), [[1]], GenerationConfig(num_beams=2))
