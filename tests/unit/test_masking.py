"""Masking of secrets."""

from __future__ import annotations

import base64
import json
import random
import string
import time
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.masking import LONGEST_HOLD, MASK, Masker, patterns_of, url_password, without_url_passwords
from shared.masking import masked as masked_document


def masked(secrets: list[str], *chunks: bytes) -> bytes:
    masker = Masker(patterns_of(secrets))
    return b"".join(masker.feed(chunk).kept for chunk in chunks) + masker.finish().kept


def test_t62_a_secret_split_over_chunks_is_masked() -> None:
    text = b"before s3cr3t-token after"
    for cut in range(len(text)):
        assert masked(["s3cr3t-token"], text[:cut], text[cut:]) == b"before *** after"
    assert masked(["s3cr3t-token"], *(bytes([byte]) for byte in text)) == b"before *** after"


def test_t62_short_secrets_do_not_blank_the_log() -> None:
    assert masked(["a", "ab", "abc", " x ", ""], b"abc abracadabra") == b"abc abracadabra"
    assert masked(["abcd"], b"abc abcd") == b"abc ***"


def test_t62_multi_line_secrets_are_masked_whole_and_by_line() -> None:
    secret = "-----BEGIN-----\nMIIabcdef\n}\n-----END-----\n"
    assert masked([secret], secret.encode() + b"x") == b"***\nx"
    assert masked([secret], secret.replace("\n", "\r\n").encode() + b"x") == b"***\r\nx"
    assert masked([secret], b"  MIIabcdef  }") == b"  ***  }"


@pytest.mark.parametrize("around", [("", ""), ("user:", ""), ("u:", "@host"), ("x", "yz")])
def test_t62_base64_is_masked_wherever_the_secret_stands_in_it(around: tuple[str, str]) -> None:
    secret = "p\xe4ssw?rd>~secret"
    encoded = base64.b64encode(f"{around[0]}{secret}{around[1]}".encode())
    for form in (encoded, base64.urlsafe_b64encode(f"{around[0]}{secret}{around[1]}".encode())):
        hidden = masked([secret], form)
        assert MASK in hidden
        assert len(hidden) <= len(form) - 4 * len(secret.encode()) // 3 + 8


@pytest.mark.parametrize("width", [64, 76])
@pytest.mark.parametrize("length", [12, 48, 57, 58, 60, 120, 1000, 4096])
@pytest.mark.parametrize("end", ["", "\n"])
def test_t62_base64_in_lines_is_masked(width: int, length: int, end: str) -> None:
    secret = "".join(random.Random(length).choices(string.printable.strip(), k=length))
    encoded = base64.b64encode((secret + end).encode()).decode()
    lines = [encoded[at : at + width] for at in range(0, len(encoded), width)]
    *hidden, last = masked([secret], "\n".join(lines).encode()).split(b"\n")
    assert hidden == [MASK] * (len(lines) - 1)
    # What is too short to be masked for itself, or depends on what follows.
    assert len(last.removeprefix(MASK)) <= 12
    for line in lines[:-1]:
        assert masked([secret], b"x " + line.encode() + b" y") == b"x *** y"


@pytest.mark.parametrize("width", [64, 76])
def test_t55_base64_in_lines_is_masked_wherever_the_stream_is_cut(width: int) -> None:
    secret = "".join(random.Random(1).choices(string.printable.strip(), k=130))
    encoded = base64.b64encode(secret.encode())
    text = b"".join(b"key: " + encoded[at : at + width] + b" word\n" for at in range(0, len(encoded), width))
    whole = masked([secret], text)
    assert whole.startswith(b"key: *** word\nkey: *** word\nkey: ")
    assert masked([secret], *(bytes([byte]) for byte in text)) == whole
    for cut in range(len(text)):
        assert masked([secret], text[:cut], text[cut:]) == whole
        first, second = Masker(patterns_of([secret])), Masker(patterns_of([secret]))
        begun = first.feed(text[:cut])
        assert begun.kept + second.feed(text[begun.consumed :]).kept + second.finish().kept == whole


@pytest.mark.parametrize("write", [urllib.parse.quote, urllib.parse.quote_plus, lambda text: json.dumps(text)[1:-1]])
def test_secrets_in_urls_and_json_are_masked(write: object) -> None:
    assert masked(['a b"c/ü@d'], write('a b"c/ü@d').encode()) == MASK  # type: ignore[operator]


SECRETS = st.lists(st.text("abc", min_size=4, max_size=7), min_size=1, max_size=3)
STREAM = st.lists(st.text("abc \n", max_size=12).map(str.encode), max_size=8)


@given(SECRETS, STREAM)
def test_how_the_stream_is_cut_makes_no_difference_and_nothing_gets_through(
    secrets: list[str], chunks: list[bytes]
) -> None:
    whole = masked(secrets, b"".join(chunks))
    assert masked(secrets, *chunks) == whole
    for secret in secrets:
        assert secret.encode() not in whole


@given(SECRETS, STREAM, st.integers(0, 8))
def test_t55_a_fresh_masker_goes_on_where_another_has_been(
    secrets: list[str], chunks: list[bytes], died_after: int
) -> None:
    patterns = patterns_of(secrets)
    first = Masker(patterns)
    kept, consumed = b"", 0
    for chunk in chunks[:died_after]:
        part = first.feed(chunk)
        kept, consumed = kept + part.kept, consumed + part.consumed
    second = Masker(patterns)
    rest = b"".join(chunks)[consumed:]
    assert kept + second.feed(rest).kept + second.finish().kept == masked(secrets, b"".join(chunks))


@given(SECRETS, STREAM)
def test_consumed_bytes_add_up(secrets: list[str], chunks: list[bytes]) -> None:
    masker = Masker(patterns_of(secrets))
    assert sum(masker.feed(chunk).consumed for chunk in chunks) + masker.finish().consumed == sum(map(len, chunks))


def test_what_is_held_back_is_bounded() -> None:
    masker = Masker(patterns_of(["aaaa"]))
    fed = kept = 0
    for _ in range(40):
        part = masker.feed(b"a" * 8192)
        fed, kept = fed + 8192, kept + part.consumed
        assert fed - kept <= LONGEST_HOLD + 8 + 8192


def test_without_secrets_nothing_is_held_back_or_copied() -> None:
    chunk = b"x" * 1000
    assert Masker(()).feed(chunk).kept is chunk


def test_masking_is_quick() -> None:
    secrets = [f"secret-number-{number}-{'x' * 20}" for number in range(20)]
    masker = Masker(patterns_of(secrets))
    line = b"2026-01-01T00:00:00Z some ordinary output of a build, with words and numbers 1234567890\n"
    chunk = line * (262144 // len(line))
    begin = time.perf_counter()
    for _ in range(8):
        masker.feed(chunk)
    assert time.perf_counter() - begin < 4  # 2 MiB; 0.3 s when nobody else uses the machine


def test_t62_a_long_secret_in_base64_does_not_hold_up_a_log() -> None:
    secret = "".join(random.Random(0).choices(string.ascii_letters, k=65536))
    masker = Masker(patterns_of([secret]))
    line = b"2026-01-01T00:00:00Z some ordinary output of a build, with words and numbers 1234567890\n"
    begin = time.process_time()
    for _ in range(8):
        masker.feed(line * (262144 // len(line)))
    assert time.process_time() - begin < 4  # 2 MiB; 0.05 s, and 3 s if each were looked for everywhere


def test_passwords_of_clone_urls_are_found() -> None:
    assert url_password("https://user:p%40ss@host/x.git") == "p@ss"
    assert url_password("git@host:x.git") == url_password("https://[broken") == url_password("") == ""


def test_passwords_of_urls_are_not_shown() -> None:
    shown = {
        "a": ["https://bot:***@host/r.git", 1, None],
        "b": "see ssh://:***@[bad and http://u:***@h and https://u@h:80/p@q",
    }
    assert shown == without_url_passwords(
        {
            "a": ["https://bot:p:w@x@host/r.git", 1, None],
            "b": "see ssh://:p@[bad and http://u:pw@h and https://u@h:80/p@q",
        }
    )


def test_documents_are_masked_in_texts_and_names_and_keep_their_shape() -> None:
    patterns = patterns_of(["s3cr3t/ü"])
    document = {"a": ["x s3cr3t/ü", 7, None, True], "s3cr3t/ü": {"url": "http://u:s3cr3t%2F%C3%BC@h/é"}}
    assert masked_document(document, patterns) == {"a": ["x ***", 7, None, True], "***": {"url": "http://u:***@h/é"}}
    assert masked_document(document, ()) == document


def test_t62_a_long_secret_with_many_lines_costs_little_whether_it_is_there_or_not() -> None:
    """Found in review: a document of 50 texts and a certificate held up the console for seconds."""
    lines = [
        base64.b64encode(f"line {number} of a certificate, unlike others".encode()).decode() for number in range(50)
    ]
    patterns = patterns_of(["\n".join(lines), "x" * 65536])
    begin = time.perf_counter()
    document = masked_document({f"K{number}": f"value {lines[number]} {'x' * 70000}" for number in range(50)}, patterns)
    assert time.perf_counter() - begin < 10  # 0.5 s when nobody else uses the machine; 40 s before
    assert document["K7"].startswith("value *** ***")
