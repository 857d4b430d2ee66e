"""A container's health check: does this address answer, and not with an error of its own? The images have no curl.

usage: python ops/alive.py URL
"""

import sys
import urllib.error
import urllib.request


def alive(url: str, timeout_s: float = 4) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310 — an address of the compose file
            return answer.status < 500
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(not alive(sys.argv[1]))
