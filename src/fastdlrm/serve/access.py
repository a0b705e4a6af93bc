"""Who may ask: a bearer token, compared in a time that does not tell how much of it is right."""

import hmac
from pathlib import Path

from fastdlrm.errors import ConfigError

_PREFIX = b"bearer "


def read_token(file: str, variable: str, value: str | None) -> bytes | None:
    """The token that requests must bring; None where none is asked.

    Args:
        file: File that holds it; empty: none.
        variable: Name of the environment variable that holds it; empty: none.
        value: The variable's value; None where it is not set.

    Raises:
        ConfigError: The file cannot be read, the variable is not set, or the token is empty.
    """
    if not file and not variable:
        return None
    if file:
        where = f"security.token_file {file}"
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            raise ConfigError(f"{where}: cannot be read: {problem}") from problem
    else:
        where = f"security.token_env {variable}"
        if value is None:
            raise ConfigError(f"{where}: the environment variable is not set; set it to the token")
        text = value
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where}: a token is one word of ASCII characters; found none such")
    return token.encode()


class Access:
    """Checks the Authorization of requests.

    Args:
        token: What they must bring; None: nothing.
    """

    def __init__(self, token: bytes | None) -> None:
        self._token = token

    @property
    def is_open(self) -> bool:
        """Whether no token is asked."""
        return self._token is None

    def allows(self, authorization: bytes | None) -> bool:
        """Whether a request may go on.

        Args:
            authorization: Value of its header (HTTP) or metadata entry (gRPC) "authorization".
        """
        if self._token is None:
            return True
        given = authorization or b""
        if given[: len(_PREFIX)].lower() != _PREFIX:
            return False
        return hmac.compare_digest(given[len(_PREFIX) :].strip(), self._token)
