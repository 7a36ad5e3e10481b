"""fastssl: pretrain, adapt, serve and measure BERT- and GPT-style language models, fast, on the machine you have.

What most programs need can be had from here, as ``from fastssl import BertForPreTraining``; all operators are in
`fastssl.ops`, the training loop in `fastssl.training`. Names are looked up when they are first used, so importing
fastssl costs nothing, and never builds, downloads or probes a device.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastssl.allocator import keep_freed_memory
    from fastssl.data.batch import PackedBatch
    from fastssl.data.causal import CausalData, CausalObjectiveConfig
    from fastssl.data.dataset import PretrainingData
    from fastssl.data.loader import Loader
    from fastssl.data.objectives import ObjectiveConfig
    from fastssl.data.shards import TokenShards
    from fastssl.data.tokenizer import Tokenizer
    from fastssl.models.bert import BertForMaskedLM, BertForPreTraining, BertModel
    from fastssl.models.bert_classifier import BertForSequenceClassification
    from fastssl.models.bert_config import BertConfig
    from fastssl.models.bert_embedder import BertForSentenceEmbedding
    from fastssl.models.bert_question_answering import BertForQuestionAnswering
    from fastssl.models.bert_tagger import BertForTokenClassification
    from fastssl.models.embedding_files import EmbeddingConfig
    from fastssl.models.generation.generated import GeneratedTokens, GenerationConfig
    from fastssl.models.gpt import GPTModel
    from fastssl.models.gpt_causal_lm import GPTForCausalLM
    from fastssl.models.gpt_config import GPTConfig
    from fastssl.models.likelihood import Likelihood, loglikelihoods, rolling_loglikelihoods
    from fastssl.models.presets import PRESETS, preset
    from fastssl.nn.quantized import quantize
    from fastssl.ops.attention.api import attention
    from fastssl.ops.layer_norm.api import layer_norm
    from fastssl.ops.linear_cross_entropy.api import linear_cross_entropy
    from fastssl.tasks.classification.classifier import Classifier
    from fastssl.tasks.embedding.embedder import SentenceEmbedder, embed
    from fastssl.tasks.embedding.search import SentenceSearch
    from fastssl.tasks.fill_mask import FillMask
    from fastssl.tasks.generation.text_generator import TextGenerator
    from fastssl.tasks.in_context.config import InContextConfig
    from fastssl.tasks.in_context.experiment import measure_in_context
    from fastssl.tasks.pipelines import pipeline
    from fastssl.tasks.pseudo_likelihood import PseudoLikelihoodScorer, pseudo_log_likelihoods
    from fastssl.tasks.question_answering.answerer import QuestionAnswerer
    from fastssl.tasks.tagging.tagger import Tagger

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "BertConfig",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSentenceEmbedding",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "CausalData",
    "CausalObjectiveConfig",
    "Classifier",
    "EmbeddingConfig",
    "FillMask",
    "GPTConfig",
    "GPTForCausalLM",
    "GPTModel",
    "GeneratedTokens",
    "GenerationConfig",
    "InContextConfig",
    "Likelihood",
    "Loader",
    "ObjectiveConfig",
    "PackedBatch",
    "PretrainingData",
    "PseudoLikelihoodScorer",
    "QuestionAnswerer",
    "SentenceEmbedder",
    "SentenceSearch",
    "Tagger",
    "TextGenerator",
    "TokenShards",
    "Tokenizer",
    "attention",
    "embed",
    "keep_freed_memory",
    "layer_norm",
    "linear_cross_entropy",
    "loglikelihoods",
    "measure_in_context",
    "pipeline",
    "preset",
    "pseudo_log_likelihoods",
    "quantize",
    "rolling_loglikelihoods",
]

_HOMES = {
    "fastssl.allocator": ("keep_freed_memory",),
    "fastssl.data.batch": ("PackedBatch",),
    "fastssl.data.causal": ("CausalData", "CausalObjectiveConfig"),
    "fastssl.data.dataset": ("PretrainingData",),
    "fastssl.data.loader": ("Loader",),
    "fastssl.data.objectives": ("ObjectiveConfig",),
    "fastssl.data.shards": ("TokenShards",),
    "fastssl.data.tokenizer": ("Tokenizer",),
    "fastssl.models.bert": ("BertForMaskedLM", "BertForPreTraining", "BertModel"),
    "fastssl.models.bert_classifier": ("BertForSequenceClassification",),
    "fastssl.models.bert_config": ("BertConfig",),
    "fastssl.models.bert_question_answering": ("BertForQuestionAnswering",),
    "fastssl.models.bert_tagger": ("BertForTokenClassification",),
    "fastssl.models.bert_embedder": ("BertForSentenceEmbedding",),
    "fastssl.models.embedding_files": ("EmbeddingConfig",),
    "fastssl.models.generation.generated": ("GeneratedTokens", "GenerationConfig"),
    "fastssl.models.gpt": ("GPTModel",),
    "fastssl.models.gpt_causal_lm": ("GPTForCausalLM",),
    "fastssl.models.gpt_config": ("GPTConfig",),
    "fastssl.models.likelihood": ("Likelihood", "loglikelihoods", "rolling_loglikelihoods"),
    "fastssl.models.presets": ("PRESETS", "preset"),
    "fastssl.nn.quantized": ("quantize",),
    "fastssl.ops.attention.api": ("attention",),
    "fastssl.ops.layer_norm.api": ("layer_norm",),
    "fastssl.ops.linear_cross_entropy.api": ("linear_cross_entropy",),
    "fastssl.tasks.classification.classifier": ("Classifier",),
    "fastssl.tasks.embedding.embedder": ("SentenceEmbedder", "embed"),
    "fastssl.tasks.fill_mask": ("FillMask",),
    "fastssl.tasks.question_answering.answerer": ("QuestionAnswerer",),
    "fastssl.tasks.tagging.tagger": ("Tagger",),
    "fastssl.tasks.generation.text_generator": ("TextGenerator",),
    "fastssl.tasks.pipelines": ("pipeline",),
    "fastssl.tasks.in_context.config": ("InContextConfig",),
    "fastssl.tasks.in_context.experiment": ("measure_in_context",),
    "fastssl.tasks.pseudo_likelihood": ("PseudoLikelihoodScorer", "pseudo_log_likelihoods"),
    "fastssl.tasks.embedding.search": ("SentenceSearch",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fastssl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
