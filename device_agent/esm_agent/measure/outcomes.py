"""Typed outcomes of models that fail, with the runtime's message in short form."""

from __future__ import annotations

import re

from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from esm_protos.messages import Failure, FailureKind

_LONGEST = 500
_MEMORY_WORDS = ("bad_alloc", "failed to allocate", "out of memory", "status_alloc_failed")
_LACKING_WORDS = re.compile(
    r"no op registered|is not (?:a registered function|currently registered)|"
    r"unrecognized attribute|kernel not found|"
    r"not (?:yet )?(?:supported|implemented)|unsupported|only supports?\b|"
    r"type 'tensor\(\w+\)' of input parameter|failed to construct locale"
)
"""Messages of the runtime about unsupported operators, types, layouts and attributes."""


class ModelError(Exception):
    """Error of a model that cannot be measured.

    Attributes:
        failure: Outcome to report.
    """

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


def outcome(error: Exception) -> Failure:
    """Return the outcome of a model that raised ``error``."""
    if isinstance(error, ModelError):
        return error.failure
    if isinstance(error, MemoryError):
        return Failure(FailureKind.OUT_OF_MEMORY, "the model does not fit into memory")
    text = one_line(error)
    named = isinstance(error, RuntimeError) or type(error).__module__ == ort_errors.__name__
    return Failure(failure_kind(error), text if named else f"{type(error).__name__}: {text}")


def failure_kind(error: Exception) -> FailureKind:
    """Return the kind of failure of an error of the runtime."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in _MEMORY_WORDS):
        return FailureKind.OUT_OF_MEMORY
    if isinstance(error, ort_errors.NotImplemented) or _LACKING_WORDS.search(text):
        return FailureKind.UNSUPPORTED_OP
    return FailureKind.INVALID_MODEL


def one_line(error: BaseException) -> str:
    """Return the runtime's message on one line, without values of tensors.

    Paths, signatures and conditions of the runtime's source are removed. The runtime quotes
    shapes, indices and sizes that it read from a model's data, which the client may not be allowed
    to see. Versions, error codes, names, and the given and declared dimensions of inputs stay.
    """
    text = _sentence(" ".join(str(error).split()))
    text = _LISTED.sub("…", _NUMBERS.sub(lambda match: match["kept"] or "…", text))
    return text[:_LONGEST] or type(error).__name__


_NUMBERS = re.compile(
    r"(?P<kept>"
    r"(?:Got invalid dimensions|Invalid rank) for input: .*?Expected: \d+"
    r"(?: index: \d+ Got: \d+ Expected: \d+)*"
    r"|\b(?:opset|version|\w+ failure):? \d+"
    r"|[A-Za-z]\(\d+\)"  # an operator and its version
    r"|\.(?:cc|cpp|cu|cuh|h|hpp):\d+"
    r")|(?<!\w)(?<!\w\.)(?<![A-Za-z_]/)[-+]?\.?\d[\w.+-]*",
    re.IGNORECASE,
)
_LISTED = re.compile(r"…(?:\s*,\s*…)+")
_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : "
    r"|Load model from .*? failed: ?"
    r"|Exception during initialization: ?"
    r"|Fatal error: ?"
    r"|This is an invalid model\. (?:In Node, .{0,1000}? , Error )?"
    r"| with name ''"
    r"| If you need support create a github issue.*"
    r"| Encountered following errors:.*"
    r"| ?Stacktrace:.*"
)
_NODE = re.compile(
    r"Non-zero status code returned while running (?P<op>\S+) node\. "
    r"Name:'(?P<name>[^']*)' Status Message: "
)
_SOURCE = re.compile(r"(?:/\S*/)?[\w.+-]+\.(?:cc|cpp|cu|cuh|h|hpp):\d+ (?=\S)")
_PLAIN_FUNCTION = re.compile(r"(?:operator\(\)|[A-Za-z_~][\w:~]*) (?=\S)")
_AFTER_SIGNATURE = re.compile(r">?(?: (?:const|noexcept|override))?(?: \[with [^\]]*\])?\s*")
_CONDITION = re.compile(r"\S.{0,300}? was false\. ?(?=\S)")


def _sentence(text: str) -> str:
    """Return the runtime's message without locations in its source."""
    text = _NODE.sub(lambda match: f"{match['op']} {match['name']!r}: ", _NOISE.sub("", text))
    text = text.replace(" '': ", ": ")
    parts, at = [], 0
    for match in _SOURCE.finditer(text):
        if match.start() >= at:
            parts.append(text[at : match.start()])
            at = _after_function(text, match.end())
            condition = _CONDITION.match(text, at)
            at = condition.end() if condition else at
    return "".join([*parts, text[at:]]).strip()


def _after_function(text: str, start: int) -> int:
    """Return the index at which the message begins, after a function's name or signature."""
    plain = _PLAIN_FUNCTION.match(text, start)
    opened = text.find("(", start)
    # A signature has types before its parentheses, and no punctuation of a sentence.
    if opened < 0 or (plain and not _looks_like_signature(text[start:opened])):
        return plain.end() if plain else start
    depth, place = 0, opened
    while place < len(text):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        place += 1
        if depth == 0 and text[place : place + 1] != "(" and text[place : place + 2] != "::":
            break
        if depth == 0 and text[place : place + 2] == "::":
            following = text.find("(", place)
            if following < 0:
                break
            depth, place = 0, following
    rest = _AFTER_SIGNATURE.match(text, place)
    return rest.end() if rest else place


def _looks_like_signature(before: str) -> bool:
    return "::" in before and not re.search(r"[.!?'\"=] ?|\bwas\b", before.replace("...", ""))
