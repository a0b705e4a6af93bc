"""What a server says of itself and of its model, asked before a run."""

import http.client
import ssl
from urllib.parse import quote, urlsplit

import msgspec

from fastdlrm.contracts.server_info import ModelMetadata
from fastdlrm.contracts.wire import decode_error
from fastdlrm.errors import LoadError
from fastdlrm.load.client import Address
from fastdlrm.load.plan import Plan

TIMEOUT_S = 30.0


def address_of(url: str) -> Address:
    """Where the server of a URL listens."""
    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    return Address(parts.hostname or "", parts.port or (443 if is_tls else 80), is_tls)


def model_path(plan: Plan, native: bool = False) -> str:
    """Path of the model under `/v2`, or that of the native routes under `/v1`."""
    prefix = urlsplit(plan.url).path.rstrip("/")
    version = f"/versions/{quote(plan.version, safe='')}" if plan.version else ""
    return f"{prefix}/{'v1' if native else 'v2'}/models/{quote(plan.model, safe='')}{version}"


def read_metadata(plan: Plan) -> ModelMetadata:
    """Ask for a model's inputs and outputs.

    Raises:
        LoadError: The server is not there, does not know the model, or speaks another protocol.
    """
    path = model_path(plan)
    status, _, body = ask(plan, "GET", path)
    if status != http.client.OK:
        raise LoadError(f"{plan.url}{path}: status {status}, {decode_error(body)}")
    try:
        # Metadata as such: another server may say more, and leave versions out.
        found = msgspec.json.decode(body, type=dict)
        found = {"name": plan.model, "versions": (), "platform": "", "outputs": (), **found}
        return msgspec.convert(
            {key: value for key, value in found.items() if value is not None}, ModelMetadata
        )
    except msgspec.DecodeError as problem:
        raise LoadError(
            f"{plan.url}{path}: no metadata of a model ({problem}); does the server speak the "
            "Open Inference Protocol?"
        ) from None


def ask(
    plan: Plan, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Send one request and wait for its answer.

    Returns:
        Status, headers (lower-case names), body.

    Raises:
        LoadError: The server is not there, or its answer is no HTTP.
    """
    address = address_of(plan.url)
    connection: http.client.HTTPConnection
    if address.is_tls:
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(
            address.host, address.port, timeout=TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body or None, {**dict(plan.headers), **(headers or {})})
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, answer.read()
    except (OSError, http.client.HTTPException) as problem:
        raise LoadError(
            f"{plan.url}: no answer ({problem}); is the server running there?"
        ) from None
    finally:
        connection.close()
