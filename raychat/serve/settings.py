"""The settings of the HTTP server: address, keys and limits."""

import ipaddress
import os
from dataclasses import dataclass, field
from typing import Any, Self

API_KEYS_VARIABLE = "RAYCHAT_API_KEYS"


@dataclass(frozen=True)
class ServerSettings:
    """How the HTTP server listens, whom it answers, and what it refuses.

    Raises:
        ValueError: the host is not loopback and there are no API keys, or a limit is not positive.
    """

    host: str = "127.0.0.1"
    port: int = 8000  # 0 = a free one
    api_keys: tuple[str, ...] = field(default=(), repr=False)  # () = no key is asked for
    requests_per_minute: int | None = None  # of one API key; None = no limit
    cors_origins: tuple[str, ...] = ()  # web pages of these origins may call the API; ("*",) = all
    max_body_bytes: int = 4 * 2**20
    max_messages: int = 1_000  # of a request, parts of their contents included
    max_characters: int = 1_000_000  # in all texts of a request
    max_queued: int = 128  # answers that wait for their first token; more requests are refused

    @classmethod
    def from_environment(cls, **settings: Any) -> Self:
        """Return settings with the API keys of RAYCHAT_API_KEYS, which are separated by commas."""
        keys = os.environ.get(API_KEYS_VARIABLE, "").split(",")
        return cls(**{"api_keys": tuple(key.strip() for key in keys if key.strip()), **settings})

    def __post_init__(self) -> None:
        if not self.api_keys and not is_loopback(self.host):
            raise ValueError(
                f"host is {self.host!r}, which lets other machines in without an API key; set {API_KEYS_VARIABLE} to "
                "one or more keys, separated by commas, or keep the host 127.0.0.1"
            )
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port is {self.port}; expected 0 (a free one) to {2**16 - 1}")
        if self.requests_per_minute is not None and not self.api_keys:
            raise ValueError(f"requests_per_minute counts per API key, and there are none; set {API_KEYS_VARIABLE}")
        for name in ("requests_per_minute", "max_body_bytes", "max_messages", "max_characters", "max_queued"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}; expected a whole number >= 1")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server on the host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False
