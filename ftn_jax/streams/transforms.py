"""The six deterministic text transformations of the style stream (section 3, Experiment 2; appendix E).

Each takes a text and returns its target. Two kinds:

* letter level (`upper`, `lower`, `starred_vowels`): whitespace, digits and punctuation stay as they are;
* word level (`reverse_words`, `double_words`, `pirate`): a word is a run of anything but whitespace, so that
  punctuation and apostrophes stay attached to it; words are joined by single spaces, which drops leading,
  trailing and repeated whitespace.

The empty text stays empty, except that `pirate` gives "Arr! matey!".
"""

from collections.abc import Callable

_STARRED = str.maketrans(dict.fromkeys("aeiouAEIOU", "*"))


def upper(text: str) -> str:
    """Upper-cases by Unicode's rules, which can lengthen the text ("ß" gives "SS")."""
    return text.upper()


def lower(text: str) -> str:
    """Lower-cases by Unicode's rules."""
    return text.lower()


def reverse_words(text: str) -> str:
    """Reverses the order of the words, not their letters: "The cat sat." gives "sat. cat The"."""
    return " ".join(reversed(text.split()))


def double_words(text: str) -> str:
    """Prints each word twice: "The cat sat." gives "The The cat cat sat. sat."."""
    return " ".join(f"{word} {word}" for word in text.split())


def starred_vowels(text: str) -> str:
    """Replaces each of aeiouAEIOU by "*"; y and accented letters stay. The length is kept."""
    return text.translate(_STARRED)


def pirate(text: str) -> str:
    """Wraps the words: "The cat sat." gives "Arr! The cat sat. matey!"."""
    return " ".join(["Arr!", *text.split(), "matey!"])


TRANSFORMS: dict[str, Callable[[str], str]] = {
    "upper": upper,
    "lower": lower,
    "reverse_words": reverse_words,
    "double_words": double_words,
    "starred_vowels": starred_vowels,
    "pirate": pirate,
}
"""By task name, in the order of the paper's stream."""
