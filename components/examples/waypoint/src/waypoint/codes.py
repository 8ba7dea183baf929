"""Short codes: numbers in disguise.

Links are numbered 0, 1, 2, ...; a code is the number, scrambled so that neighbours do not look alike, in an alphabet
without look-alikes, followed by a check letter. Nothing is random, so there are no collisions to handle, and a
mistyped code is told apart from one that never existed.
"""

ALPHABET = "23456789abcdefghijkmnpqrstuvwxyz"
LETTERS = 6
LIMIT = len(ALPHABET) ** LETTERS
"""One more than the largest number: about a thousand million links."""

# Any odd factor can be undone modulo a power of two.
_FACTOR = 0x2545F491
_OFFSET = 0x1B873593
_INVERSE = pow(_FACTOR, -1, LIMIT)


class BadCodeError(ValueError):
    """Not a code of ours: wrong length, strange letters, or a typing error."""


def encode(number: int) -> str:
    """The code of link `number`. Raises ValueError outside 0 <= number < LIMIT."""
    if not 0 <= number < LIMIT:
        raise ValueError(f"{number} is not between 0 and {LIMIT - 1}")
    rest = (number * _FACTOR + _OFFSET) % LIMIT
    letters = []
    for _ in range(LETTERS):
        rest, index = divmod(rest, len(ALPHABET))
        letters.append(ALPHABET[index])
    body = "".join(letters)
    return body + _check_letter(body)


def decode(code: str) -> int:
    """The number behind a code, in any case. Raises BadCodeError."""
    code = code.lower()
    body, check = code[:-1], code[-1:]
    if len(body) != LETTERS or any(letter not in ALPHABET for letter in code):
        raise BadCodeError(f"{code!r} cannot be a code: {LETTERS + 1} letters or digits, without 0, 1, l and o")
    if check != _check_letter(body):
        raise BadCodeError(f"{code!r} has a typing error")
    scrambled = sum(ALPHABET.index(letter) * len(ALPHABET) ** place for place, letter in enumerate(body))
    return (scrambled - _OFFSET) * _INVERSE % LIMIT


def _check_letter(body: str) -> str:
    # Odd weights that differ from place to place: one wrong letter always shows, most swapped neighbours too.
    total = sum((2 * place + 1) * ALPHABET.index(letter) for place, letter in enumerate(body))
    return ALPHABET[total % len(ALPHABET)]
