"""Splits PTX text into lists, bodies and statements."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .faults import Fault

LABEL = re.compile(r"\s*([\w$]+)\s*:(?!:)")
LINE_DIRECTIVE = re.compile(r"\.(?:loc|file)\s")


def split_list(text: str) -> list[str]:
    """Splits at commas that are not in brackets."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "{[(") - (character in "}])")
        if character == "," and not depth:
            parts.append(text[start:position].strip())
            start = position + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def matching_braces(text: str, start: int) -> str:
    """The text from `start` to the closing brace. The opening one is before `start`."""
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if not depth:
            return text[start : match.start()]
    raise Fault("the kernel's body has no end")


def outside_braces(text: str) -> str:
    """The text of a module without the bodies of its functions."""
    kept, depth, start = [], 0, 0
    for match in re.finditer(r"[{}]", text):
        if match[0] == "{":
            if not depth:
                kept.append(text[start : match.start()])
            depth += 1
        else:
            depth -= 1
            start = match.end()
    return " ".join([*kept, text[start:]])


def statements(body: str) -> Iterator[str]:
    """Yields statements without the semicolon, labels with their colon, and braces for scopes. A
    .loc or .file is a line of its own."""
    position, token = 0, re.compile(r"[;{}]")
    while True:
        position += len(body[position:]) - len(body[position:].lstrip())
        if position >= len(body):
            return
        label = LABEL.match(body, position)
        if label:
            yield label[1] + ":"
            position = label.end()
        elif body[position] in "{};":
            if body[position] != ";":
                yield body[position]
            position += 1
        elif LINE_DIRECTIVE.match(body, position):
            end = (body + "\n").index("\n", position)
            yield body[position:end].strip()
            position = end
        else:
            end, depth = position, 0
            while True:
                found = token.search(body, end)
                if found is None:
                    raise Fault(f"statement without end: {body[position : position + 60]}")
                end = found.end()
                depth += (found[0] == "{") - (found[0] == "}")
                if found[0] == ";" and not depth:
                    break
            yield body[position : end - 1].strip()
            position = end
