from __future__ import annotations

import pytest

from portal.web.visit import safe_next


@pytest.mark.parametrize("address", ["/", "/nodes", "/flows/new?host=pump-1&service=a_py", "/nodes/1#main"])
def test_address_of_this_portal_is_where_signing_in_leads(address: str) -> None:
    assert safe_next(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "nodes",
        "https://evil.example",
        "javascript:alert(1)",
        "//evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "/\r\\evil.example",
        "\t//evil.example",
    ],
)
def test_address_that_a_browser_takes_for_another_site_leads_to_the_overview(address: str) -> None:
    assert safe_next(address) == "/"
