"""The scorer of rouge_score, imported without nltk, which takes 1.6 s of processor time (with scipy and scikit-learn).

rouge_score needs nltk only for its stemmer and to split summaries into sentences. Here its names of nltk's modules are
modules that are imported when something of them is first used.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


def rouge_scorer(kinds: list[str]) -> Any:
    """`rouge_score.rouge_scorer.RougeScorer` of these kinds of ROUGE, without stemmer."""
    if "rouge_score.rouge_scorer" not in sys.modules and "nltk" not in sys.modules:
        nltk, stem = _ImportedOnUse("nltk"), _ImportedOnUse("nltk.stem")
        vars(stem)["porter"] = _ImportedOnUse("nltk.stem.porter")
        sys.modules |= {"nltk": nltk, "nltk.stem": stem}
        try:
            importlib.import_module("rouge_score.rouge_scorer")
        finally:
            _forget()
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(kinds, use_stemmer=False)


class _ImportedOnUse(ModuleType):
    """Module that is imported when an attribute of it is first read."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for these
            raise AttributeError(name)
        _forget()
        return getattr(importlib.import_module(self.__name__), name)


def _forget() -> None:
    """Removes these modules from those that are imported, so that others import nltk itself."""
    for name in [name for name, module in sys.modules.items() if isinstance(module, _ImportedOnUse)]:
        del sys.modules[name]
