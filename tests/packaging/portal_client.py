"""What a person does in a browser, for places with nothing but Python's own library.

Usage: portal_client.py SETUP_LINK enrol              print the command that the portal shows for a new node
       portal_client.py SETUP_LINK assign NODE NAME   let NODE run the library's service NAME

SETUP_LINK is the one-time link that the portal printed; the first use makes the person.
"""

import http.cookiejar
import json
import ssl
import sys
import urllib.error
import urllib.request
from urllib.parse import parse_qs, urlsplit

PERSON = {"name": "tester", "password": "correct-horse-battery-staple"}


class Portal:
    def __init__(self, link: str) -> None:
        self._link = urlsplit(link)
        # The portal has made its certificate itself, and that is not what is tested with this.
        trusting = ssl.create_default_context()
        trusting.check_hostname = False
        trusting.verify_mode = ssl.CERT_NONE
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=trusting),
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()),
        )

    def sign_in(self) -> None:
        try:
            self.post("/api/session", PERSON)
        except urllib.error.HTTPError:
            self.post("/api/setup", {"token": parse_qs(self._link.query)["token"][0], **PERSON})
            self.post("/api/session", PERSON)

    def post(self, path: str, body: dict[str, object]) -> dict[str, str]:
        request = urllib.request.Request(
            f"{self._link.scheme}://{self._link.netloc}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with self._opener.open(request, timeout=20) as answer:
            return json.loads(answer.read() or b"{}")


def main(link: str, command: str, *arguments: str) -> None:
    portal = Portal(link)
    portal.sign_in()
    if command == "enrol":
        print(portal.post("/api/verification-codes", {})["command"])  # noqa: T201 - its answer
    else:
        node, name = arguments
        service = portal.post("/api/services", {"name": name, "file": f"{name}.py", "from": f"library:{name}"})
        activity = {"service_id": service["id"], "host": node, "static": {}}
        portal.post("/api/flows", {"name": name, "activities": [activity]})


if __name__ == "__main__":
    main(*sys.argv[1:])
