"""Keys are found in each spelling in which a server may quote them."""

import base64
from urllib.parse import quote

import openai
import pytest

from rfx_agent.samplers.openai.secrets import in_headers, in_url, of_client, redact, spellings

KEY = "k3y.Vault/9a+8b7c=Zz?ÿ"
CODED = {
    "plain": KEY,
    "url": quote(KEY, safe=""),
    "url in lower case": "k3y.Vault%2f9a%2b8b7c%3dZz%3f%c3%bf",
    "url twice": quote(quote(KEY, safe=""), safe=""),
    "json": "".join(f"\\u{ord(c):04x}" for c in KEY),
    "hex": KEY.encode().hex(),
}


@pytest.mark.parametrize("coded", CODED.values(), ids=list(CODED))
def test_a_key_is_taken_out(coded: str) -> None:
    assert redact(f"bad key '{coded}', said {coded}", spellings(KEY, least=8)) == "bad key '[key]', said [key]"


@pytest.mark.parametrize("before", ["", "u:", "user:", "Bearer ", "a"])
@pytest.mark.parametrize("behind", ["", "\n", ":x", "abc"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_key_is_taken_out_of_what_was_coded_together_with_it(before: str, behind: str, encode) -> None:  # type: ignore[no-untyped-def]
    coded = encode(f"{before}{KEY}{behind}".encode()).decode()
    left = redact(coded, spellings(KEY, least=8)).replace("[key]", " ")
    assert max(map(len, left.split()), default=0) <= len(f"{before}{behind}") * 4 / 3 + 4


def test_a_placeholder_is_no_key() -> None:
    assert spellings("EMPTY", least=8) == ()


def test_what_a_client_sends_is_known_by_its_name() -> None:
    assert in_headers({"X-Custom-Token": "Bearer abc", "Accept": "text", "api-key": "def"}) == ("abc", "def")
    assert in_url("https://user:p%40ss@host/v1?api-key=a%2Bb&api-version=2024-01-01") == ("p@ss", "a+b")
    assert in_url("no [url") == ()
    client = openai.OpenAI(
        base_url="https://u:secret-pass@host/v1",
        api_key="the-key",
        default_headers={"X-Token": "the-token"},
        default_query={"sig": "the-sig", "version": "1"},
    )
    assert {"the-key", "the-token", "the-sig", "secret-pass"} <= {*of_client(client)}
    assert "1" not in of_client(client)
