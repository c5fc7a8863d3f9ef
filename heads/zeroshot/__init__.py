"""Zero-shot methods: prompts, allowed lists of labels, what answers mean, and the controls that such a score needs.

Nothing here trains. What a model answers is cached like features (`featurecache/backbones/asking.py`); here are the
words that are asked, and plain arrays from answers to scores.
"""
