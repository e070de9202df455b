"""A failed download from the Hub as one line: the reason, the Hub's own words and what to do."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator

from pipelines.core.errors import one_line

_MAX_CHARACTERS = 240
_PROXY_VARIABLES = (
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
)


def describe_hub_error(base: str, revision: str | None, error: BaseException) -> str:
    """The line for an exception of huggingface_hub, its HTTP client or the operating system."""
    from huggingface_hub import constants

    causes = list(_causes(error))
    reason = _http_line(base, revision, constants.ENDPOINT, causes)
    reason = reason or _answer_line(constants.ENDPOINT, causes)
    reason = reason or _network_line(constants.ENDPOINT, causes)
    reason = reason or _disk_line(constants.HF_HUB_CACHE, causes)
    reason = reason or (
        f"not a folder, and the Hub did not give it ({_text(error)}); "
        "set a folder, or check the id, the network and HF_TOKEN"
    )
    return f"model.base={base}: {reason}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it, the outermost first."""
    while error is not None:
        yield error
        error = error.__cause__


def _names(error: BaseException) -> set[str]:
    """The names of an error's classes; huggingface_hub's releases differ in the HTTP library."""
    return {each.__name__ for each in type(error).__mro__}


def _http_line(
    base: str, revision: str | None, endpoint: str, causes: list[BaseException]
) -> str | None:
    """The line for an answer with an HTTP error status; None without one."""
    error = next((each for each in causes if getattr(each, "response", None) is not None), None)
    if error is None:
        return None
    names, status = _names(error), int(error.response.status_code)  # type: ignore[attr-defined]
    words = _hub_words(error)
    quoted = f' ("{words}")' if words else ""
    page = f"{endpoint}/{base}"
    if "GatedRepoError" in names and status == 403:
        return (
            f"your account is not on the model's access list{quoted}; ask for access at {page} and "
            "wait until it is granted, or set HF_TOKEN to a token of an account that has it"
        )
    if "GatedRepoError" in names:
        return (
            f"the model is gated{quoted}; accept its terms at {page}, then set HF_TOKEN to a token "
            "of that account (or run `hf auth login`)"
        )
    if status == 401 and re.search(r"token|credential|expired", words, re.IGNORECASE):
        return (
            f"the Hub refused your token{quoted}; make a new one at {endpoint}/settings/tokens and "
            "set HF_TOKEN to it, or unset HF_TOKEN and run `hf auth logout` for a public model"
        )
    if "RevisionNotFoundError" in names:
        return (
            f"the model has no revision {revision}{quoted}; set model.revision to one of "
            f"{page}/commits"
        )
    if "DisabledRepoError" in names:
        return f"its author or the Hub has disabled the model{quoted}; set another base"
    if status == 407:
        return _proxy_line(f"407 Proxy Authentication Required{quoted}")
    if "RepositoryNotFoundError" in names or status in (401, 404):
        hub = "the Hub" if endpoint == "https://huggingface.co" else endpoint
        return (
            f"neither a folder nor a model that {hub} shows you (HTTP {status}{quoted}); check the "
            "spelling, and for a private model set HF_TOKEN to a token that may read it"
        )
    if status == 403:
        return (
            f"access is forbidden (HTTP 403{quoted}); give the token of HF_TOKEN permission to "
            f"read {page}, or ask the owner of the network whether a proxy blocks {endpoint}"
        )
    if status == 429:
        return (
            f"too many requests (HTTP 429{quoted}); wait some minutes, or set HF_TOKEN for a "
            "higher limit"
        )
    if status >= 500:
        return (
            f"{endpoint} failed (HTTP {status}{quoted}) and the cache has no complete copy; try "
            f"again later{_or_endpoint()}"
        )
    return f"{endpoint} answered HTTP {status}{quoted}; check the id and HF_TOKEN{_or_endpoint()}"


def _answer_line(endpoint: str, causes: list[BaseException]) -> str | None:
    """The line for an answer that is not the Hub's: a login page, or another service's JSON."""
    for error in causes:
        if isinstance(error, json.JSONDecodeError):
            if "<" not in error.doc[:200]:
                return _no_hub_line(endpoint, f'it is not JSON: "{_text(error.doc)}"')
            title = re.search(r"<title[^>]*>(.*?)</title>", error.doc, re.IGNORECASE | re.DOTALL)
            text = title[1] if title else re.sub(r"<[^>]*>", " ", error.doc)
            return (
                f'{endpoint} answered with a web page ("{_text(text)}") instead of JSON: a '
                "network's login page or a proxy answers for it; open it in a browser and log in, "
                f"or set HTTPS_PROXY{_or_endpoint()}"
            )
        names = _names(error)
        if "FileMetadataError" in names or isinstance(
            error, AssertionError | KeyError | TypeError | AttributeError
        ):
            return _no_hub_line(endpoint, f"{type(error).__name__}: {_text(error)}")
        if isinstance(error, OSError) and "Consistency check failed" in str(error):
            return (
                f"a file from {endpoint} has another size than the Hub announced "
                f"({_text(error)}); run the command again{_or_endpoint()}"
            )
        if "HFValidationError" in names:
            return f"neither a folder nor a Hub id ({_text(error)}); an id is like org/name"
    return None


def _no_hub_line(endpoint: str, detail: str) -> str:
    advice = (
        "set HF_ENDPOINT to a mirror of the Hub, or unset it"
        if os.environ.get("HF_ENDPOINT")
        else "check whether a proxy answers for it (HTTPS_PROXY)"
    )
    return f"{endpoint} answers, but not as the Hub does ({detail}); {advice}"


def _network_line(endpoint: str, causes: list[BaseException]) -> str | None:
    """The line for a Hub that cannot be reached or must not be; None for another error."""
    for error in reversed(causes):
        names = _names(error)
        if "OfflineModeIsEnabled" in names:
            partial = "IncompleteSnapshotError" in _names(causes[0])
            return (
                "HF_HUB_OFFLINE is set and the copy in the Hub's cache is "
                f"{'not complete' if partial else 'not there'}; unset HF_HUB_OFFLINE, point "
                "HF_HOME to a cache that has the model, or set a folder"
            )
        if "ProxyError" in names:
            return _proxy_line(_text(error))
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return (
                f"the certificate of {endpoint} is not trusted ({_text(error)}); if a proxy "
                "inspects TLS here, set SSL_CERT_FILE to its certificate bundle"
            )
        if names & {"TransportError", "ConnectionError", "TimeoutException"}:
            return (
                f"{endpoint} cannot be reached ({type(error).__name__}: {_text(error)}) and the "
                "cache has no complete copy; check the network and HTTPS_PROXY, or set a folder"
                f"{_or_endpoint()}"
            )
    return None


def _proxy_line(words: str) -> str:
    variables = [name for name in _PROXY_VARIABLES if os.environ.get(name)]
    proxy = f"{variables[0]}={os.environ[variables[0]]}" if variables else "the network's proxy"
    proxy = re.sub(r"//[^@/]*@", "//***@", proxy)  # no password in a log
    return f"{proxy} refused the connection ({words}); check the proxy's address, user and password"


def _disk_line(cache: str, causes: list[BaseException]) -> str | None:
    for error in causes:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"the disk of the Hub's cache {cache} is full; free space or set HF_HOME elsewhere"
            )
        if isinstance(error, PermissionError | NotADirectoryError) or (
            getattr(error, "errno", 0) == errno.EROFS
        ):
            return f"the Hub's cache {cache} cannot be written ({_text(error)}); set HF_HOME"
    return None


def _or_endpoint() -> str:
    return ", or unset HF_ENDPOINT" if os.environ.get("HF_ENDPOINT") else ""


def _hub_words(error: BaseException) -> str:
    """The server's own message: its X-Error-Message header, else the body's."""
    headers = error.response.headers  # type: ignore[attr-defined]
    words = headers.get("X-Error-Message") or getattr(error, "server_message", "")
    return _text(words) if words else ""


def _text(text: object) -> str:
    return one_line(text, _MAX_CHARACTERS)
