"""Names of arguments in messages, in Python (``max_time_s``) or as options (``--max-time``).

Shared code marks the name. The code that prints the message renders it.
"""

from __future__ import annotations

import re

_FLAGS = {
    "budget_s": "--budget",
    "confidence_percent": "--confidence",
    "contexts": "--context",
    "dims": "--dim",
    "energy_time_s": "--energy-time",
    "ep_options": "--ep-option",
    "formats": "--format",
    "free_dims": "--free-dim",
    "group_tolerance_percent": "--group-tolerance",
    "inputs": "--input",
    "limits": "--limit",
    "load_timeout_s": "--load-timeout",
    "max_block_s": "--max-time",
    "max_latency_ms": "--max-latency",
    "max_time_s": "--max-time",
    "model_timeout_s": "--timeout",
    "objectives": "--objective",
    "patience_s": "--patience",
    "precision_percent": "--precision",
    "probability": "--confidence",
    "provider": "--ep",
    "provider_options": "--ep-option",
    "reference_tolerance_percent": "--reference-tolerance",
    "run_order": "--protocol",
    "session_options": "--session-option",
    "shapes": "--shape",
    "spread_s": "--spread",
    "target_accuracy_percent": "--target-accuracy",
    "timeout_s": "--timeout",
    "tolerance_percent": "--tolerance",
    "wait=False": "--no-wait",
}

_MARK = "\0"
"""Character that no path and no program argument can contain."""

_MARKED = re.compile(f"{_MARK}(.*?){_MARK}(.*?){_MARK}", re.DOTALL)


def argument(name: str) -> str:
    """Mark the name of a Python argument for a message."""
    return either(name, flag(name))


def either(python: str, command: str) -> str:
    """Mark a text with two forms, for Python and for the command line."""
    return f"{_MARK}{python}{_MARK}{command}{_MARK}"


def of_agent(text: str) -> str:
    """Mark the arguments of which a failure's message speaks; an agent knows no names of them."""
    return _OF_AGENT.sub(lambda found: _AGENT_WORDS[found[0]], text)


def flag(name: str) -> str:
    """Return the command-line option of an argument."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def in_python(text: str) -> str:
    """Render marked names and texts for Python."""
    return _MARKED.sub(r"\1", text)


def on_command_line(text: str) -> str:
    """Render marked names and texts for the command line."""
    return _MARKED.sub(r"\2", text)


_AGENT_WORDS = {
    "a longer load timeout": f"a longer {argument('load_timeout_s')}",
    "a longer timeout": f"a longer {argument('timeout_s')}",
    "allow fallback to measure": f"give {argument('allow_fallback')} to measure",
}
_OF_AGENT = re.compile("|".join(_AGENT_WORDS))
