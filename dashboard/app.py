"""The dashboard: `attnviz dashboard RUNS`, or `streamlit run dashboard/app.py -- RUNS`.

The pages are files, so that each has an address and can be tested by itself. The links on the left
carry what was chosen (runs, metric, image) from page to page; Streamlit's own menu would drop it.
Their folder must not be called `pages`: Streamlit would run a file of it by itself, without this
one, whenever the first visit of a new server is a deep link.
"""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

_HERE = Path(__file__).resolve().parent
if str(_HERE.parent) not in sys.path:  # the pages use `from dashboard.x import …`
    sys.path.insert(0, str(_HERE.parent))

from attnviz.errors import AttnvizError  # noqa: E402
from attnviz.runs.storage import LocalStore  # noqa: E402
from dashboard import heap, lazy, query, run_cache  # noqa: E402
from dashboard.address import plain, quoted  # noqa: E402
from dashboard.controls import dress, root  # noqa: E402 - the path comes first
from dashboard.navigation import navigation  # noqa: E402
from dashboard.pages import listed  # noqa: E402
from dashboard.theme import follow_theme  # noqa: E402

_EVERY = 5.0  # seconds between two looks at the folder
_WITH_PAGE = "app_with_page"  # set where the look runs with the page, not by itself


def main() -> None:
    """Set the page up, draw the links, and run the page that the address names."""
    st.set_page_config(page_title="attnviz", page_icon=str(_HERE / "icon.png"), layout="wide")
    dress()
    known = listed()
    pages = {
        page: st.Page(
            f"views/{page.name}.py", title=page.title, icon=page.icon, default=not number,
            url_path=page.name if number else "first",
        )
        for number, page in enumerate(known)
    }  # fmt: skip
    named = st.Page(f"views/{known[0].name}.py", title=known[0].title, url_path=known[0].name)
    page = st.navigation([*pages.values(), named], position="hidden")  # the first has two addresses
    current = next((one for one, target in pages.items() if target is page), known[0])
    lazy.entered(current.name)
    query.entered(current.name)
    with st.sidebar:
        st.markdown("**attnviz** · where does a model look?")
        navigation(pages, current)
        st.caption(f"Runs in {quoted(root())}")
        follow_theme()
        if note := _note():
            st.caption(plain(note))
    if _known():
        page.run()
        st.session_state[_WITH_PAGE] = True
        st.fragment(_watch, run_every=_EVERY)(run_cache.state_of(root()))
    heap.settle()


def _watch(shown: int) -> None:
    """Run the page again once the folder has other runs, or a run has ended.

    The first time it runs with the page, which has just looked at the folder.
    """
    if not st.session_state.pop(_WITH_PAGE, False):
        run_cache.listing(root())
    if run_cache.state_of(root()) != shown:
        st.rerun()


def _note() -> str:
    """What a `README.txt` beside the runs says of them, up to 600 characters."""
    if "://" in root():
        return ""
    try:
        content = LocalStore(Path(root())).read("README.txt", 4096)
    except AttnvizError:  # there is none, or it is no plain file
        return ""
    return " ".join(content.decode(errors="replace").split())[:600]


def _known() -> bool:
    """Whether this user may see the runs: with Streamlit's log-in configured, only when logged in.

    It is configured by `[auth]` in `.streamlit/secrets.toml`, see docs/sharing.md.
    """
    set_up = st.secrets.load_if_toml_exists() and "auth" in st.secrets
    if not set_up or st.user.get("is_logged_in"):
        return True
    st.title("Log in")
    st.markdown("These runs are shown to those who have logged in.")
    st.button("Log in", on_click=st.login, type="primary")
    return False


main()
