"""Text as XML 1.0 carries it. Pure, no imports of ours: gateway.errors and gateway.xml
both stand on it."""

from __future__ import annotations

import re

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
XML_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'

# XML 1.0 cannot carry most control characters; S3 writes them as character references
# all the same (clients that must read such keys ask for encoding-type=url). Carriage
# return is legal but would be normalised to a newline, so it is always a reference.
_SPECIAL = re.compile('[&<>"\x00-\x08\x0b-\x1f\x7f\ufffe\uffff\ud800-\udfff]')
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


def _reference(match: re.Match[str]) -> str:
    character = match.group()
    return _NAMED.get(character) or f"&#x{ord(character):X};"


def escape(text: str) -> str:
    """`text` as element content."""
    return _SPECIAL.sub(_reference, text)
