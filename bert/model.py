"""BERT and its line."""

from bert.original import BERT, bert_base, bert_large, bert_mini, bert_tiny

__all__ = ["BERT", "MODELS"]

MODELS = {
    "bert_base": bert_base,
    "bert_large": bert_large,
    "bert_mini": bert_mini,
    "bert_tiny": bert_tiny,
}
