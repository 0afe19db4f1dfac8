"""Secret policies: what each preset refuses, what it lets through, and that no refusal repeats the secret."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_childrun.canonical import decode_outside
from airflow_childrun.errors import CanonicalError, ErrorInfo, SecretsDetectedError
from airflow_childrun.secret_policy import REDACTED_MESSAGE, SECRET_KEYS, STRICT_MARKERS, SecretPolicy, standard, strict

GOLDEN = Path(__file__).parents[1] / "golden" / "canonical.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in GOLDEN.read_text("utf-8").splitlines()]
SECRET = [row["text"] for row in ROWS if row.get("error") == "secret"]
CLEAN = [row["text"] for row in ROWS if "canonical" in row]
PHRASE = " ".join(["abandon"] * 11 + ["about"])
REGISTERED = "correct-horse-battery"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"


def fake(*parts: str) -> str:
    """Put a made-up token together, so that no scanner of repositories takes this file for a leak."""
    return "".join(parts)


TOKENS = {
    "bearer": fake("Bearer ", "mF_9.B5f-4.1JqM2cX7"),
    "bearer in a header line": fake("curl -H 'Authorization: bearer ", "abcdefgh12345678' https://example.com"),
    "basic": "Basic " + base64.b64encode(b"user:pass word").decode(),
    "basic in a header line": "Authorization: Basic " + base64.b64encode(b"aladdin:opensesame").decode(),
    "basic after the word": "basic\nbasic basic " + base64.b64encode(b"aladdin:opensesame").decode(),
    "pem": fake("-----BEGIN ", "PRIVATE KEY-----\nMIIE\n"),
    "rsa pem in a json string": fake('{"k": "-----BEGIN RSA ', 'PRIVATE KEY-----\\nMIIE"}'),
    "openssh": fake("-----BEGIN OPENSSH ", "PRIVATE KEY-----"),
    "pgp": fake("-----BEGIN PGP ", "PRIVATE KEY BLOCK-----"),
    "aws": fake("AKIA", "IOSFODNN7EXAMPLE"),
    "aws temporary": fake("id=ASIA", "IOSFODNN7EXAMPLE;"),
    "google api": fake("AIza", "A" * 35),
    "google oauth": fake("ya29.", "a0AfH6SMBx" * 3),
    "google client secret": fake("GOCSPX-", "a1" * 14),
    "github": fake("ghp_", "a1B2" * 9),
    "github app": fake("https://x/?t=ghs_", "a1B2" * 9),
    "github fine-grained": fake("github_pat_", "11ABCDEFG0" * 5),
    "gitlab": fake("glpat-", "x1Y2z3X4y5Z6w7V8u9T0"),
    "slack": fake("xoxb-", "123456789012-abcdefghijkl"),
    "slack webhook": fake("https://hooks.slack.com/services/", "T00000000/B00000000/", "X1" * 12),
    "azure": fake("DefaultEndpointsProtocol=https;AccountName=a;AccountKey=", "q1" * 43, "=="),
    "stripe": fake("sk_live_", "4eC39HqLyjWDarjtT1zd"),
    "anthropic": fake("sk-ant-", "api03-abcdefghijklmnop"),
    "databricks": fake("dapi", "0123456789abcdef" * 2),
    "vault": fake("hvs.", "CAESIJ1234567890abcdefgh"),
    "jwt": JWT,
    "url": "postgresql+psycopg://alice:s3cr3t@db:5432/app",
    "url without a user": "see redis://:s3cr3t@cache/0 for more",
}

EVERYDAY: list[Any] = [
    "please reset your password, or ask for a new secret word",
    "the quick brown fox jumps over the lazy dog and then it runs away",
    "no basic income and no bearer of good news",
    "Basic authentication and Bearer authentication are schemes",
    "basic training starts on Monday",
    "token_type=Bearer",
    {"owner": "admin", "note": "the admin signed"},
    {"nextPageToken": "CAUQAA", "PasswordLastUsed": "2026-01-01T00:00:00Z", "continuation_token": "abc"},
    {"token": "the", "tokens": ["a", "b"], "key": "k", "primary_key": "id", "public_key": "ssh-ed25519 AAAA"},
    {"password": "", "client_secret": None, "api_key": 0, "authorization": {"scheme": "x"}, "secret": True},
    {"password": "***", "access_token": "********"},
    {"password_policy": "strict", "secret_name": "db", "private_key_id": "abc", "has_password": "yes"},
    {"http://host:8080/path@2": 1, "git": "ssh://git@github.com/org/repo.git"},
    "https://example.com/a:b@c",
    '{"base":"http://api:8080","owner":"ann@example.com"}',
    '{"href":"http://api","time":"12:30","owner":"ann@example.com"}',
    "name,url,mail\nx,http://api:8080,ann@example.com",
    "['http://api:8080','ann@example.com'] and (http://api:8080)ann@example.com",
    "postgresql://app@db/app",
    "postgresql://app:{password}@db/app and postgresql://app:***@db/app and postgresql://app:${PW}@db/app",
    "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
    "-----BEGIN CERTIFICATE-----",
    {"etag": "d41d8cd98f00b204e9800998ecf8427e", "sha": "a" * 64, "uuid": "78b85994-fad4-5e3f-abda-66681a2c91d6"},
    "risk-free task-force disk-image sk-learn eyJust eyJ.eyJ.x",
    "xoxo, dapifer, AKIAK, asiatic ASIAN markets",
    [None, True, 1, 1.5, [], {}],
    "Grüße 😀 \u2028 \x00",
]


def both() -> list[SecretPolicy]:
    return [strict(), standard(lambda: [REGISTERED])]


# --- strict


@pytest.mark.parametrize("text", SECRET, ids=ascii)
def test_strict_refuses_what_the_original_refuses(text: str) -> None:
    assert strict().find(decode_outside(text)) is not None


@pytest.mark.parametrize("text", CLEAN, ids=lambda text: ascii(text)[:40])
def test_strict_accepts_what_the_original_accepts(text: str) -> None:
    assert strict().find(decode_outside(text)) is None


def test_the_golden_secrets_are_complete() -> None:
    assert len(SECRET) == 33


@pytest.mark.parametrize(
    "text", ["password=123", "MNEMONIC", "seed phrase: a b", "AWS_SECRET_ACCESS_KEY=x", "X-API-Key"]
)
def test_s15_markers_are_found_whatever_their_case(text: str) -> None:
    assert strict().is_secret_text(text)
    assert strict().find({"a": [text]}) == "$.a[0]"


@pytest.mark.parametrize(
    "text", ["artifact_written", "seeding_database", "bearer", "pass word", "to\u212aen api_\u212aey"]
)
def test_s15_text_without_markers_is_clean(text: str) -> None:
    """Case is folded in ASCII only: the Kelvin sign is no k."""
    assert not strict().is_secret_text(text)
    assert strict().find([text]) is None


@pytest.mark.parametrize("marker", STRICT_MARKERS)
def test_s15_every_marker_counts_in_keys_and_values(marker: str) -> None:
    assert strict().find({f"x{marker.upper()}x": 1}) == "$[key 0]"
    assert strict().find({"a": f"x{marker}x"}) == "$.a"


@pytest.mark.parametrize("words", [12, 13, 24])
def test_s16_twelve_to_twenty_four_lower_case_words_are_a_phrase(words: int) -> None:
    assert strict().is_secret_text(" ".join(["word"] * words))


@pytest.mark.parametrize(
    "text",
    [
        " ".join(["word"] * 11),
        " ".join(["word"] * 25),
        " ".join(["word"] * 11 + ["Word"]),
        " ".join(["word"] * 11 + ["word."]),
        " ".join(["word"] * 11 + ["wörd"]),
        "\x1c".join(["word"] * 12),
    ],
)
def test_s16_other_sentences_are_no_phrase(text: str) -> None:
    assert not strict().is_secret_text(text)


def test_s17_the_scan_is_recursive_and_over_keys_before_values() -> None:
    value = {"a": [{"b": PHRASE}], "Password_hash": 1}
    assert strict().find(value) == "$[key 1]"
    assert strict().find({"ok": value}) == "$.ok[key 1]"
    assert strict().find({"a": [1, ({"b": PHRASE},)]}) == "$.a[1][0].b"


@pytest.mark.parametrize("value", [0, 1.5, None, True, [], {}, [[{"a": None}]]])
def test_s17_what_is_no_text_never_matches(value: Any) -> None:
    assert all(policy.find(value) is None for policy in both())


# --- standard


@pytest.mark.parametrize("value", EVERYDAY, ids=lambda value: ascii(value)[:40])
def test_standard_lets_everyday_data_through(value: Any) -> None:
    assert standard(lambda: ["admin", "yes", "strict"]).find(value) is None
    assert standard().find({"a": [value]}) is None


def test_standard_lets_all_everyday_data_through_at_once() -> None:
    assert standard().find(EVERYDAY) is None


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS.keys())
def test_standard_refuses_tokens_in_values_keys_and_messages(token: str) -> None:
    policy = standard()
    assert policy.is_secret_text(token)
    assert policy.find({"rows": [1, {"note": token}]}) == "$.rows[1].note"
    assert policy.find({"rows": {"ok": 1, token: 1}}) == "$.rows[key 1]"
    assert policy.find(["basic", "bearer", "Basic", token, "x"]) == "$[3]"


@pytest.mark.parametrize(
    "key",
    ["password", "PASSWORD", "apiKey", "api-key", "X-Api-Key", "clientSecret", "aws_secret_access_key", "idToken"],
)
def test_standard_refuses_strings_under_the_names_of_secrets(key: str) -> None:
    path = f"$.connections[0].{key}"
    assert standard().find({"connections": [{"login": "a", key: "x"}]}) == path


def test_the_names_of_secrets_are_lower_case_and_spelt_in_three_ways() -> None:
    assert all(key == key.lower() and key.isascii() for key in SECRET_KEYS)
    assert {"refresh_token", "refresh-token", "refreshtoken", "passwd", "authorization"} <= SECRET_KEYS
    assert SECRET_KEYS.isdisjoint({"token", "key", "cookie", "pwd", "nextpagetoken", "passwordlastused", "owner"})


def test_registered_secrets_are_found_inside_keys_and_strings() -> None:
    policy = standard(lambda: ["short", REGISTERED, ""])
    assert policy.find({"a": f"dsn={REGISTERED};"}) == "$.a"
    assert policy.find({"a": {f"x{REGISTERED}": 1}}) == "$.a[key 0]"
    assert policy.is_secret_text(f"failed for {REGISTERED}")
    assert policy.find({"owner": "short"}) is None
    assert policy.find(REGISTERED[:-1]) is None


def test_a_registered_secret_has_twelve_characters_or_more() -> None:
    assert standard(lambda: ["x" * 11]).find("x" * 40) is None
    assert standard(lambda: ["x" * 12]).find("x" * 40) == "$"


def test_secrets_that_are_registered_later_count_from_then_on() -> None:
    known: list[str] = []
    policy = standard(lambda: known)
    assert policy.find([REGISTERED]) is None
    known.append(REGISTERED)
    assert policy.find([REGISTERED]) == "$[0]"


def test_no_secret_is_made_of_two_neighbouring_strings() -> None:
    policy = standard(lambda: ["one-half-and-the-other"])
    assert policy.find(["one-half-", "and-the-other"]) is None
    assert policy.find(["Bearer", "abcdefgh12345678"]) is None
    assert strict().find(["pass", "word"]) is None


# --- allow_keys


def test_an_allowed_key_is_let_through_with_its_string() -> None:
    policy, allowed = standard(lambda: [REGISTERED]), frozenset({"password"})
    assert policy.find({"password": "x"}, allowed) is None
    assert policy.find({"password": TOKENS["bearer"]}, allowed) is None
    assert policy.find({"password": "x", "secret": "y"}, allowed) == "$.secret"
    assert policy.find({"Password": "x"}, allowed) == "$.Password"
    assert policy.find({"password": {"secret": "x"}}, allowed) == "$.password.secret"
    assert policy.find({"password": [TOKENS["bearer"]]}, allowed) == "$.password[0]"


def test_a_registered_secret_is_refused_even_under_an_allowed_key() -> None:
    policy = standard(lambda: [REGISTERED])
    assert policy.find({"password": f"a{REGISTERED}"}, frozenset({"password"})) == "$.password"
    assert policy.find({REGISTERED: 1}, frozenset({REGISTERED})) == "$[key 0]"


def test_strict_lets_an_allowed_key_through() -> None:
    allowed = frozenset({"password_hash"})
    assert strict().find({"password_hash": "password"}, allowed) is None
    assert strict().find({"password_hash": ["password"]}, allowed) == "$.password_hash[0]"


# --- what a refusal says


@pytest.mark.parametrize(
    ("policy", "value", "secret"),
    [
        *((standard(), {"a": [token]}, token) for token in TOKENS.values()),
        *((standard(), {"a": [{token: 1}]}, token) for token in TOKENS.values()),
        (standard(), {"password": "hunter2"}, "hunter2"),
        (standard(lambda: [REGISTERED]), {"a": {f"k {REGISTERED}": {"b": 1}}}, REGISTERED),
        (strict(), {"password=hunter2": 1}, "hunter2"),
        (strict(), {"x": {PHRASE: {"deeper": 1}}}, "abandon"),
        (strict(), [PHRASE], "abandon"),
    ],
)
def test_a_refusal_never_repeats_the_secret(policy: SecretPolicy, value: Any, secret: str) -> None:
    with pytest.raises(SecretsDetectedError) as caught:
        policy.check(value, "the result of step load")
    error = caught.value
    said = f"{error!s} {error!r} {error.info!r} {error.args!r}"
    assert secret not in said
    assert repr(secret) not in said
    assert error.__cause__ is None


def test_a_refusal_names_the_place_the_path_and_the_remedy() -> None:
    with pytest.raises(SecretsDetectedError) as caught:
        standard().check({"rows": [{"api_key": "x"}]}, "the result of step load")
    info = caught.value.info
    assert (info.code, info.retryable, info.details) == ("secrets_detected", False, {"path": "$.rows[0].api_key"})
    assert "the result of step load" in info.message
    assert "$.rows[0].api_key" in info.message
    assert "allow_keys" in info.message


def test_a_clean_value_passes_the_check() -> None:
    for policy in both():
        policy.check({"a": ["ok"]}, "here")
        with pytest.raises(SecretsDetectedError):
            policy.check({"a": ["ok", {"api_key": "x"}]}, "here")


def test_recorded_errors_lose_their_details_and_a_message_that_holds_a_secret() -> None:
    info = ErrorInfo("http_failed", "Rpc", retryable=True, message="401 for login a", details={"body": "x"})
    kept = ErrorInfo("http_failed", "Rpc", retryable=True, message="401 for login a")
    assert all(policy.redact_info(info) == kept for policy in both())
    for policy, message in ((strict(), "wrong password"), (standard(), TOKENS["url"])):
        said = policy.redact_info(ErrorInfo("x", message=message, details=message))
        assert said == ErrorInfo("x", message=REDACTED_MESSAGE)
    assert standard().redact_info(ErrorInfo("x", message="wrong password")).message == "wrong password"


# --- robustness


def test_values_too_deep_to_be_recorded_are_refused_even_if_they_hold_themselves() -> None:
    loop: list[Any] = []
    loop += [loop, loop]
    for policy in both():
        with pytest.raises(CanonicalError) as caught:
            policy.find(loop)
        assert caught.value.code == "too_deep"


def test_odd_keys_and_values_are_left_to_canonical_json() -> None:
    assert standard().find({1: "a", None: b"x", "\ud800": object()}) is None
    assert standard().find({1: {"password": "x"}}) == '$["1"].password'
    assert strict().find({"\ud800": "\udfff"}) is None


def test_policies_are_values_without_secrets_in_their_repr() -> None:
    policy = standard(lambda: [REGISTERED])
    assert (policy.name, strict().name) == ("standard", "strict")
    assert REGISTERED not in repr(policy)


@pytest.mark.parametrize(
    "unit",
    ["eyJ-", "eyJaaaaaaaaaa.", "Basic basic ", "-----BEGIN A ", "://a:", "a:", "bearer ", "xoxb-1-", "word ", "A="],
)
def test_no_text_makes_the_scan_slow(unit: str) -> None:
    """A hostile answer of 300 kB takes milliseconds; a quadratic rule would take minutes."""
    text = unit * (300_000 // len(unit))
    started = time.perf_counter()
    for policy in both():
        policy.is_secret_text(text)
        policy.find([text, {"a": "://" + text}])
    assert time.perf_counter() - started < 10
