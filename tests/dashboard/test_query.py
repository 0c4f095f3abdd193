"""The address: what was written stays, though a browser's next action comes with an older one."""

from __future__ import annotations

from typing import Any

import pytest

from dashboard import query

AppTest = pytest.importorskip("streamlit.testing.v1").AppTest


def page() -> None:
    import streamlit as st

    from dashboard import query

    query.entered(st.query_params.get("page", "one"))
    st.button("first", on_click=query.put, args=({"a": "1", "gone": None},))
    st.button("second", on_click=query.put, args=({"b": "1"},))
    st.button("third", on_click=query.put, args=({"a": "3"},))
    st.json(dict(query.params()))


@pytest.fixture
def app() -> Any:
    made = AppTest.from_function(page)
    arrives(made, gone="x", kept="k")
    return made.run()


def arrives(app: Any, **address: str) -> None:
    """The address that a browser sends with its next action."""
    app.query_params.clear()
    app.query_params.update(address)


def press(app: Any, label: str) -> None:
    next(one for one in app.button if one.label == label).click().run()


def shown(app: Any) -> dict[str, str]:
    import json

    assert not app.exception
    found: dict[str, str] = json.loads(app.json[0].value)
    written = {name: app.query_params[name] for name in app.query_params}
    assert {name: "".join(value) for name, value in written.items()} == found
    return found


def test_a_second_action_keeps_what_the_first_wrote(app: Any):
    press(app, "first")
    assert shown(app) == {"kept": "k", "a": "1"}
    arrives(app, gone="x", kept="k")  # the browser does not know of it yet
    press(app, "second")
    assert shown(app) == {"kept": "k", "a": "1", "b": "1"}


def test_a_run_without_an_action_keeps_it_too(app: Any):
    press(app, "first")
    press(app, "third")
    arrives(app, gone="x", kept="k")
    app.run()
    assert shown(app) == {"kept": "k", "a": "3"}
    arrives(app, kept="k", a="1")  # it knows of the first alone
    app.run()
    assert shown(app) == {"kept": "k", "a": "3"}


def test_back_is_followed(app: Any, monkeypatch: pytest.MonkeyPatch):
    press(app, "first")
    arrives(app, gone="x", kept="k")
    monkeypatch.setattr(query, "_went_back", lambda: True)
    app.run()
    assert shown(app) == {"gone": "x", "kept": "k"}
    monkeypatch.setattr(query, "_went_back", lambda: False)
    app.run()
    assert shown(app) == {"gone": "x", "kept": "k"}


def test_another_value_or_another_page_is_followed(app: Any):
    press(app, "first")
    arrives(app, gone="x", kept="k", a="7")
    app.run()
    assert shown(app)["a"] == "7"
    arrives(app, page="two", gone="x")
    app.run()
    assert shown(app) == {"page": "two", "gone": "x"}
