"""Whether something listens at an address: one connection, with TLS where the address says so, and nothing is sent."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from runners.doctor.facts import Reach
from runners.doctor.watching import Address

#: Seconds for the connection and the TLS handshake.
PATIENCE = 3.0


async def reach(address: Address, environment: Mapping[str, str], *, seconds: float = PATIENCE) -> Reach:
    """Connect, and close. Where the environment names a proxy for it, that is what is connected to.

    Never raises: what goes wrong is in the answer.
    """
    proxy = proxy_for(address, environment)
    at = proxy or address
    name = f"{at.host}:{at.port}" + (" (the proxy)" if proxy else "")
    context = ssl.create_default_context() if at.tls else None
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(at.host, at.port, ssl=context)
    except TimeoutError:
        return Reach(reached=False, detail=f"{name} does not answer within {seconds:g} s")
    except ssl.SSLCertVerificationError as error:
        return Reach(reached=False, detail=f"the certificate of {name} is not valid: {error.verify_message}")
    except ssl.SSLError as error:
        return Reach(reached=False, detail=f"{name} speaks no TLS: {error.reason or 'the handshake failed'}")
    except OSError as error:
        return Reach(reached=False, detail=f"{name} cannot be reached: {_reason(error)}")
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(seconds):
            await writer.wait_closed()
    return Reach(reached=True, detail=f"{name} answers")


def proxy_for(address: Address, environment: Mapping[str, str]) -> Address | None:
    """The proxy that the variables name for it, if any."""
    scheme = "https" if address.tls else "http"
    url = next(
        (environment[name] for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY") if name in environment), ""
    )
    without = {"no": environment.get("no_proxy") or environment.get("NO_PROXY") or ""}
    if not url or proxy_bypass_environment(f"{address.host}:{address.port}", without):
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname:
        return None
    return Address(parts.hostname, port or (443 if parts.scheme == "https" else 80), parts.scheme == "https")


def _reason(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return (error.strerror or type(error).__name__).lower()
