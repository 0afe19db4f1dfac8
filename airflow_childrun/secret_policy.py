"""What may not be recorded: the two presets that tell a secret from data.

A policy never repeats what it found: it names the path, by keys and indices that are no secrets themselves.

``standard`` refuses

* a non-empty string under one of the key names of :data:`SECRET_KEYS`, compared whole and without regard to case
  (``nextPageToken`` and ``PasswordLastUsed`` are none of them; a value of asterisks only is a mask, not a secret),
* in any key or string: what :data:`SECRET_PATTERNS` names, and the registered secrets of 12 characters or more.

``strict`` refuses, as the original engine does, any key or string that contains a marker word such as ``password``, or
that consists of 12 to 24 lower-case words. It refuses much that is harmless.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from airflow_childrun.canonical import MAX_DEPTH, json_path
from airflow_childrun.errors import CanonicalError, ErrorInfo, SecretsDetectedError

REDACTED_MESSAGE = "error details redacted"
REDACTED_CODE = "redacted"
MIN_REGISTERED_LENGTH = 12
"""Registered secrets shorter than this are not looked for: a short password may be a word of everyday data."""

_KEY_WORDS = """
    password, passwd, passphrase, secret, mnemonic, seed phrase, authorization, proxy authorization,
    user password, db password, database password, admin password, root password, master password, login password,
    new password, old password, current password, smtp password, ssh password, key password, ssl password,
    keystore password, truststore password, private key passphrase, key passphrase, ssh passphrase,
    api key, x api key, x auth token, x vault token, x amz security token, api secret, api secret key, api token,
    access key, access token, access token secret, auth token, bearer token, refresh token, id token, session token,
    oauth token, oauth token secret, personal access token, token secret, security token, sas token, bot token,
    client secret, consumer secret, app secret, shared secret, signing secret, webhook secret, secret value,
    secret key, secret access key, private key, private key pem, ssh private key, signing key, encryption key,
    account key, storage account key, shared access key, fernet key, master key, service account key,
    aws secret access key, aws secret key, aws session token, aws access key id,
    azure client secret, github token, gitlab token, slack token, openai api key, anthropic api key
"""


def _spellings(words: str) -> Iterator[str]:
    """Yield snake_case, kebab-case and camelCase (in lower case) of each name."""
    for name in words.split(","):
        yield from (separator.join(name.split()) for separator in ("_", "-", ""))


SECRET_KEYS: frozenset[str] = frozenset(_spellings(_KEY_WORDS))
"""Key names that ``standard`` refuses, in lower case. Closed: a name that is missing here is let through."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Pattern:
    """A kind of secret: text can only match ``rule`` if its lower-case form holds one of ``markers``."""

    about: str
    markers: tuple[str, ...]
    rule: re.Pattern[str]
    confirm: Callable[[re.Match[str]], bool] = lambda match: True  # noqa: ARG005


def _is_basic_auth(match: re.Match[str]) -> bool:
    """Tell words such as ``basic training`` from base64 of ``user:password``."""
    try:
        login = base64.b64decode(match["token"], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return False
    return ":" in login and login.isprintable()


def _pattern(about: str, markers: str, rule: str, **more: Any) -> _Pattern:
    return _Pattern(about, tuple(markers.split("|")), re.compile(rule), **more)


# Each rule begins with its marker and starts only where the run of characters that it scans begins: a search takes time
# in proportion to the text, whatever the text is. None may match across a line break that hides another match.
SECRET_PATTERNS: tuple[_Pattern, ...] = (
    _pattern("Bearer credentials", "bearer", r"(?i:\bbearer)\s+(?=\S*[0-9])[A-Za-z0-9._~+/=-]{16,}"),
    _pattern(
        "Basic credentials",
        "basic",
        r"(?i:\bbasic)[ \t]+(?=(?P<token>[A-Za-z0-9+/]{4,}={0,2})(?![A-Za-z0-9+/=]))",
        confirm=_is_basic_auth,
    ),
    _pattern(
        "PEM or PGP private key", "private key", r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----"
    ),
    # A quote never stands in it, and a port that punctuation follows begins no password: JSON and CSV inside a text.
    _pattern("URL with a password", "://", r"://[^\s/?#:@\"]*:(?!\*+@|[{<$%]|[0-9]{1,5}[,;|)\]}'`])[^\s/?#@\"]+@"),
    _pattern(
        "JSON Web Token", "eyj", r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{16,}"
    ),
    _pattern("AWS access key id", "akia|asia", r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b"),
    _pattern(
        "Azure key", "accountkey=|sharedaccesskey=", r"(?i:\b(?:AccountKey|SharedAccessKey)=)[A-Za-z0-9+/]{40,}={0,2}"
    ),
    _pattern("Google API key", "aiza", r"\bAIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    _pattern("Google OAuth token or secret", "ya29.|gocspx-", r"\b(?:ya29\.|GOCSPX-)[A-Za-z0-9_-]{20,}"),
    _pattern("GitHub token", "ghp_|gho_|ghu_|ghs_|ghr_", r"\bgh[pousr]_[A-Za-z0-9]{36,}"),
    _pattern("GitHub fine-grained token", "github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{36,}"),
    _pattern("GitLab token", "glpat-", r"\bglpat-[A-Za-z0-9_-]{20,}"),
    _pattern("Slack token", "xox", r"\bxox[abeoprs]-[0-9A-Za-z]+-[0-9A-Za-z-]{10,}"),
    _pattern("Slack webhook", "hooks.slack.com", r"hooks\.slack\.com/services/T\w+/B\w+/\w{16,}"),
    _pattern("Stripe key", "k_live_", r"\b[rs]k_live_[0-9A-Za-z]{16,}"),
    _pattern("OpenAI or Anthropic key", "sk-", r"\bsk-(?:proj|ant|svcacct)-[A-Za-z0-9_-]{20,}"),
    _pattern("Databricks token", "dapi", r"\bdapi[0-9a-f]{32}\b"),
    _pattern("Vault token", "hvs.", r"\bhvs\.[A-Za-z0-9_-]{24,}"),
)
"""What ``standard`` looks for in keys and strings."""

STRICT_MARKERS: tuple[str, ...] = (
    "password",
    "passphrase",
    "mnemonic",
    "private_key",
    "privatekey",
    "seed phrase",
    "seed_phrase",
    "seedphrase",
    "api_key",
    "apikey",
    "x-api-key",
    "x_api_key",
    "access_key",
    "accesskey",
    "secret_key",
    "secretkey",
    "aws_access_key_id",
    "aws_secret_access_key",
    "access_token",
    "refresh_token",
    "id_token",
    "authorization",
    "bearer ",
)
"""What ``strict`` looks for in the ASCII-lower-cased form of keys and strings."""


def _by_sign() -> tuple[tuple[str, tuple[tuple[str, _Pattern], ...]], ...]:
    """Group the markers by the first sign in them that is no letter and no digit: to look for one sign costs next to nothing."""
    groups: dict[str, list[tuple[str, _Pattern]]] = {}
    for pattern in SECRET_PATTERNS:
        for marker in pattern.markers:
            sign = next((char for char in marker if not char.isalnum()), "")
            groups.setdefault(sign, []).append((marker, pattern))
    return tuple((sign, tuple(marked)) for sign, marked in groups.items())


_MARKED_PATTERNS = _by_sign()

# Unicode White_Space, written out: Python's own notion of it adds U+001C to U+001F.
_SPACE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_MNEMONIC = re.compile(rf"{_SPACE}*[a-z]+(?:{_SPACE}+[a-z]+){{11,23}}{_SPACE}*\Z")
_NO_KEYS: frozenset[str] = frozenset()
_SILENT = frozenset({int, float, bool, type(None)})


class Rules(Protocol):
    """One preset's judgement; ``registered`` are the secrets to be looked for inside texts."""

    def is_secret(self, text: str, registered: tuple[str, ...]) -> bool:
        """Tell whether a string, or a key by itself, is secret-bearing."""

    def names_secret(self, key: str, value: Any) -> bool:
        """Tell whether ``key`` makes a secret of ``value``."""

    def may_hold_secret(self, keys: list[str], texts: list[str], registered: tuple[str, ...]) -> bool:
        """Tell quickly whether a document may hold a secret; never False where one of the others is True.

        :param keys: all keys of the document
        :param texts: all its strings
        """


class StrictRules:
    """The original engine's rules."""

    def is_secret(self, text: str, registered: tuple[str, ...]) -> bool:  # noqa: ARG002
        """Tell whether ``text`` contains a marker or looks like a seed phrase."""
        lowered = text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")
        return any(marker in lowered for marker in STRICT_MARKERS) or _MNEMONIC.match(text) is not None

    def names_secret(self, key: str, value: Any) -> bool:  # noqa: ARG002
        """Return False: a key is judged by itself."""
        return False

    def may_hold_secret(self, keys: list[str], texts: list[str], registered: tuple[str, ...]) -> bool:  # noqa: ARG002
        """Look for the markers in everything at once."""
        texts = keys + texts
        lowered = "\n".join(texts).lower()
        return any(marker in lowered for marker in STRICT_MARKERS) or any(map(_MNEMONIC.match, texts))


class StandardRules:
    """Exact key names, patterns and registered secrets."""

    def is_secret(self, text: str, registered: tuple[str, ...]) -> bool:
        """Tell whether ``text`` holds a registered secret or matches a pattern."""
        for secret in registered:
            if secret in text:
                return True
        lowered = text.lower()
        for sign, marked in _MARKED_PATTERNS:
            if sign not in lowered:
                continue
            for marker, pattern in marked:
                if marker in lowered and any(map(pattern.confirm, pattern.rule.finditer(text))):
                    return True
        return False

    def names_secret(self, key: str, value: Any) -> bool:
        """Tell whether ``key`` is a secret's name and ``value`` a string that is neither empty nor masked."""
        return isinstance(value, str) and value.strip("*") != "" and key.lower() in SECRET_KEYS

    def may_hold_secret(self, keys: list[str], texts: list[str], registered: tuple[str, ...]) -> bool:
        """Look for key names, patterns and registered secrets in everything at once."""
        if not SECRET_KEYS.isdisjoint(map(str.lower, keys)):
            return True
        return self.is_secret("\n".join(keys + texts), registered)


@dataclasses.dataclass(frozen=True)
class SecretPolicy:
    """Judges values before they are recorded; made by :func:`strict` or :func:`standard`."""

    name: str
    rules: Rules
    known_secrets: Callable[[], Iterable[str]] = tuple

    def find(self, value: Any, allow_keys: frozenset[str] = _NO_KEYS) -> str | None:
        """Return the JSON path of the first secret in ``value``, or None.

        The keys of an object come before its values. Only strings and object keys are looked at.

        :param allow_keys: keys, spelt exactly, that are let through with the string that stands directly under them;
            a registered secret is refused even there
        :raises CanonicalError: ``too_deep``, if ``value`` is nested too deeply to be recorded
        """
        registered = self._registered()
        keys: list[str] = []
        texts: list[str] = []
        _gather(value, keys, texts, 0)
        if not self.rules.may_hold_secret(keys, texts, registered):
            return None
        return next(self._secrets(value, [], registered, allow_keys), None)

    def check(self, value: Any, where: str, allow_keys: frozenset[str] = _NO_KEYS) -> None:
        """Refuse ``value`` if it holds a secret.

        :param where: what the value is to the author, such as ``the result of step load``
        :raises SecretsDetectedError: naming ``where`` and the path, never the secret
        :raises CanonicalError: as :meth:`find`
        """
        path = self.find(value, allow_keys)
        if path is not None:
            msg = f"{where}: a secret at {path}; hand it over by a connection, or let its key through with allow_keys"
            raise SecretsDetectedError(msg, details={"path": path})

    def is_secret_text(self, text: str) -> bool:
        """Tell whether a text by itself is secret-bearing."""
        return self.rules.is_secret(text, self._registered())

    def redact_info(self, info: ErrorInfo) -> ErrorInfo:
        """Return what may be recorded of an error: never its details, its code and its message only if they hold no secret."""
        message = REDACTED_MESSAGE if self.is_secret_text(info.message) else info.message
        code = REDACTED_CODE if self.is_secret_text(info.code) else info.code
        return dataclasses.replace(info, code=code, message=message, details=None)

    def _registered(self) -> tuple[str, ...]:
        known = self.known_secrets()
        return tuple(secret for secret in known if len(secret) >= MIN_REGISTERED_LENGTH) if known else ()

    def _secrets(
        self, value: Any, trail: list[str | int], registered: tuple[str, ...], allow_keys: frozenset[str]
    ) -> Iterator[str]:
        """Yield the paths of all secrets, in order."""
        if isinstance(value, str):
            if self.rules.is_secret(value, registered):
                yield json_path(trail)
        elif isinstance(value, dict):
            yield from self._secret_keys(value, trail, registered, allow_keys)
            for key, item in value.items():
                if key not in allow_keys or not isinstance(item, str) or _holds(item, registered):
                    yield from self._secrets(item, [*trail, str(key)], registered, allow_keys)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                yield from self._secrets(item, [*trail, index], registered, allow_keys)

    def _secret_keys(
        self, value: dict[Any, Any], trail: list[str | int], registered: tuple[str, ...], allow_keys: frozenset[str]
    ) -> Iterator[str]:
        """Yield the paths of the keys of one object that are secret, by number where the key itself may be one."""
        for index, (key, item) in enumerate(value.items()):
            if not isinstance(key, str):
                continue
            if key in allow_keys:
                refused = _holds(key, registered)
            elif self.rules.names_secret(key, item):
                yield json_path([*trail, key])
                continue
            else:
                refused = self.rules.is_secret(key, registered)
            if refused:
                yield f"{json_path(trail)}[key {index}]"


def _holds(text: str, registered: tuple[str, ...]) -> bool:
    return any(secret in text for secret in registered)


def _gather(value: Any, keys: list[str], texts: list[str], depth: int) -> None:
    """Collect all keys and all strings of ``value``."""
    items: Iterable[Any]
    if isinstance(value, dict):
        keys.extend(key for key in value if isinstance(key, str))
        items = value.values()
    elif isinstance(value, list | tuple):
        items = value
    else:
        if isinstance(value, str):
            texts.append(value)
        return
    if depth >= MAX_DEPTH:
        msg = f"more than {MAX_DEPTH} arrays and objects inside one another"
        raise CanonicalError(msg, code="too_deep", details={"path": "$"})
    depth += 1
    for item in items:
        kind = type(item)
        if kind is str:
            texts.append(item)
        elif kind not in _SILENT:
            _gather(item, keys, texts, depth)


def strict() -> SecretPolicy:
    """Return the original engine's policy: marker words and seed phrases."""
    return SecretPolicy("strict", StrictRules())


def standard(known_secrets: Callable[[], Iterable[str]] = tuple) -> SecretPolicy:
    """Return the default policy.

    :param known_secrets: asked at every judgement for the secrets that are registered now
    """
    return SecretPolicy("standard", StandardRules(), known_secrets)
