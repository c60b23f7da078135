"""What the server says it honours is what it has, in JSON and in the docs."""

import pytest

from distaff.server.protocol.meanings import MEANINGS, ROUTES, describe

from ..tools.api_tables import PAGE, filled


def test_every_parameter_is_explained_and_no_other():
    """Those that are honoured or checked; of refused ones there is nothing to explain."""
    explained = {name for route in ROUTES.values() for name in route.honoured | route.checked}
    assert explained == MEANINGS.keys()


@pytest.mark.parametrize("route", ROUTES)
def test_no_parameter_has_two_fates(route):
    """Honoured, checked or refused."""
    parameters = ROUTES[route]
    assert not parameters.honoured & parameters.checked
    assert not (parameters.honoured | parameters.checked) & parameters.refused.keys()


def test_the_tables_in_the_docs_are_the_codes():
    """`python -m tests.tools.api_tables` writes them."""
    assert filled(PAGE.read_text()) == PAGE.read_text()
    assert PAGE.read_text().count("| parameter | here | |") == len(ROUTES)


def test_the_server_tells_the_same(http):
    """With the model, its context and its way of calling tools."""
    told = http.get("/v1/capabilities").json()
    assert told["routes"] == {f"POST {route}": describe(parameters) for route, parameters in ROUTES.items()}
    assert told["model"] == "org/fake-model" and told["max_model_len"] == 4096
    assert told["tool_format"] == "hermes" and told["prompt_scores"] is True


@pytest.mark.parametrize("status", ["refused", "no effect"])
def test_the_table_is_true(ask, status):
    """A refused parameter is refused by name, and passes with each value that the table accepts."""
    told = [entry for entry in describe(ROUTES["/v1/chat/completions"]) if entry["status"] == status]
    assert told
    for entry in told if status == "refused" else []:
        error = ask(**{entry["name"]: ["no such value"]}).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", entry["name"])
        for value in entry["accepted"]:
            assert ask(**{entry["name"]: value}).status_code == 200
    for entry in told if status == "no effect" else []:
        wrong = 5 if entry["name"] not in ("prompt_cache_options", "metadata") else "text"
        assert ask(**{entry["name"]: wrong}).status_code == 400, entry
