"""Numbers as others write them: read exactly, bounded, in ASCII."""

import re
from decimal import Decimal

MAX_TEXT = 64
"""Characters of a number in text; more say nothing that anybody means."""

_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?", re.ASCII)


def read_number(value: object) -> Decimal | None:
    """Returns the number that a value is, or that a text says, exactly; None where it is or says none.

    No number is what only some programs take for one: true, `1_0`, digits of other scripts, infinity, NaN. Nor are
    numbers of more than 64 characters, or with an exponent of more than two digits.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, int) and value.bit_length() > 4 * MAX_TEXT:  # else its text may be refused, or take long
        return None
    text = str(value).strip()
    return Decimal(text) if len(text) <= MAX_TEXT and _NUMBER.fullmatch(text) is not None else None
