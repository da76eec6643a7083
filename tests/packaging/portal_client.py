"""What a person does in a browser to enrol a node, for places with nothing but Python: prints a verification code.

Usage: portal_client.py SETUP_LINK, the one-time link that the portal printed.
"""

import http.cookiejar
import json
import ssl
import sys
import urllib.request
from urllib.parse import parse_qs, urlsplit

PERSON = {"name": "tester", "password": "correct-horse-battery-staple"}


def main(link: str) -> None:
    parts = urlsplit(link)
    # The test's portal has made its certificate itself; what is tested here is how it is started.
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=trusting),
        urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()),
    )

    def post(path: str, body: dict[str, str]) -> dict[str, str]:
        request = urllib.request.Request(
            f"{parts.scheme}://{parts.netloc}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with opener.open(request, timeout=20) as answer:
            return json.loads(answer.read() or b"{}")

    post("/api/setup", {"token": parse_qs(parts.query)["token"][0], **PERSON})
    post("/api/session", PERSON)
    print(post("/api/verification-codes", {})["code"])


if __name__ == "__main__":
    main(sys.argv[1])
