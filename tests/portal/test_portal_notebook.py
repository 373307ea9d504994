"""The portal in a notebook: a frame with a secret address, the selection as a DataFrame, an end with the object."""

import gc
import http.client
import json
import re
import subprocess
import sys
import threading

import h5py
import numpy as np
import pandas as pd
import pytest
from portal_data import latents_of, write_archive

pytest.importorskip("panel", reason="the portal's packages are not installed: nenya[portal]")

import nenya
from nenya.errors import InputFileError
from nenya.portal import notebook


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("notebook"))


@pytest.fixture(scope="module")
def shown(archive):
    table, latents, cutouts = map(str, archive)
    found = nenya.view(pd.read_parquet(table), latents, images=cutouts)
    yield found
    found.close()


def ask(view, path, **headers):
    """Return status, headers and body of an answer of a view's server."""
    connection = http.client.HTTPConnection("127.0.0.1", view._server.port, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


def test_only_who_knows_the_address_sees_the_page(shown):
    token = shown.url.split("/")[-2]
    status, headers, body = ask(shown, f"/{token}/")
    assert status == 200 and "<title>Nenya portal</title>" in body and len(token) >= 32
    assert "frame-ancestors" not in headers["content-security-policy"] and "x-frame-options" not in headers
    assert "script-src 'nonce-" in headers["content-security-policy"] and headers["referrer-policy"] == "no-referrer"
    for path in ("/", "/login", f"/{token}", f"/{token[:-1]}x/", "/x/page/page.css", f"//{token}/"):
        assert ask(shown, path)[0] == 403, path
    assert ask(shown, f"/{token}/page/page.css")[0] == 200 and ask(shown, f"/{token}/login")[0] == 404
    assert ask(shown, f"/{token}/", Origin="http://evil.example")[0] == 403
    host = "hub.example.org"  # as a proxy sends it
    assert ask(shown, f"/{token}/", Host=host, Origin=f"https://{host}")[0] == 200


def test_the_frame_and_the_words_for_other_places(shown, monkeypatch):
    frame = shown._repr_html_()
    assert re.fullmatch(
        r'<iframe src="http://127\.0\.0\.1:\d+/[\w-]+/" title="nenya: 300 cutouts" [^<]*></iframe>', frame
    )
    assert repr(shown) == f"nenya.view of 300 rows: open {shown.url}"
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/a&b/")
    assert f'src="/user/a&amp;b/proxy/{shown._server.port}/' in shown._repr_html_()


def test_the_proxy_is_that_of_the_kernels_own_server(monkeypatch, tmp_path):
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX", raising=False)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("JPY_PARENT_PID", "1234")
    (tmp_path / "jpserver-1234.json").write_text(json.dumps({"base_url": "/lab7/"}))
    assert notebook._base(5000, None) == "http://127.0.0.1:5000/"  # jupyter-server-proxy is not installed here
    assert notebook._base(5000, True) == "/lab7/proxy/5000/" and notebook._base(5000, False).startswith("http://127")
    (tmp_path / "jpserver-1234.json").write_text("{")
    assert notebook._base(5000, True) == "/proxy/5000/"


def test_the_selection_is_a_part_of_the_own_table(shown):
    from nenya.portal.state import View, make_range

    assert shown.selection is shown.table and shown.chosen is None
    shown._server.shown = View((make_range("T90", 11, 12),), row=17)
    expected = shown.table[(shown.table["T90"] >= 11) & (shown.table["T90"] <= 12)]
    pd.testing.assert_frame_equal(shown.selection, expected)
    assert 0 < len(expected) < 300 and shown.chosen.equals(shown.table.iloc[17])
    shown._server.shown = View()


def test_arrays_serve_in_place_of_files(archive):
    table, _, cutouts = archive
    frame = pd.read_parquet(table).drop(columns=["pp_file", "pp_type", "pp_idx"])
    with h5py.File(cutouts) as file:
        images = np.concatenate([file["train"][:, 0], file["valid"][:, 0]])
    vectors = latents_of(images)
    vectors[3] = np.nan
    found = nenya.view(frame, vectors, images[:, None])
    dataset, folder = found._dataset, found._server._folder
    np.testing.assert_array_equal(dataset.cutouts.of(np.array([250, 9]))[0], images[250])
    np.testing.assert_array_equal(dataset.latents.take(dataset.latent_of[[9, 250]]), vectors[[9, 250]])
    found.close()
    assert not notebook.Path(folder).exists() and repr(found) == "nenya.view of 300 rows, closed"
    assert found._repr_html_() == "nenya.view of 300 rows, closed"


@pytest.mark.parametrize("keys", [{}, {"pp_type": 0}, {"pp_type": 1, "pp_file": "of/another.h5"}])
def test_two_selections_are_compared_by_the_latents_in_order(keys):
    from nenya.portal.jobs import Ticket
    from nenya.portal.pair import Pair
    from nenya.portal.pair_compare import compare_pair
    from nenya.portal.state import make_range

    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 4)) + np.where(np.arange(200) < 100, 9, 0)[:, None] * np.eye(4)[0]
    frame = pd.DataFrame({"lat": np.arange(200) / 10})
    if keys:
        frame = frame.assign(pp_idx=rng.permutation(200), **keys)
    found = nenya.view(frame, vectors)
    pair = Pair((make_range("lat", 0, 9.95),), (make_range("lat", 9.95, 20),))
    try:
        difference = compare_pair(found._dataset, pair, 500, 0, Ticket(lambda _: None))
    finally:
        found.close()
    assert difference.compared.latents["auc"].value > 0.95


def test_what_cannot_be_shown_is_refused_in_a_line(archive, tmp_path):
    frame = pd.read_parquet(archive[0])
    before = threading.active_count()
    for given, said in (
        ((frame, np.zeros((299, 4))), r"latents as numbers of shape \(N, D\), a row for each of the 300 rows.*299, 4"),
        ((frame, None, np.zeros((300, 4))), r"images as numbers of shape \(N, H, W\)"),
        ((frame, np.array(["a"] * 300)[:, None]), "latents as numbers"),
        (([1, 2],), "expected a DataFrame or the path of a table, got list"),
        ((frame[:0],), "got an empty one"),
        ((tmp_path / "none.parquet",), "no such table"),
        ((frame.assign(mixed=[1, "a"] * 150),), "cannot be shown"),
    ):
        with pytest.raises(InputFileError, match=said):
            nenya.view(*given)
    assert threading.active_count() == before


def test_a_view_ends_with_its_object(archive):
    found = nenya.view(archive[0])
    port, thread = found._server.port, found._server._thread
    assert ask(found, "/")[0] == 403 and thread.is_alive()
    del found
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()
    with pytest.raises(OSError):
        http.client.HTTPConnection("127.0.0.1", port, timeout=5).connect()


def test_importing_nenya_loads_nothing_for_it():
    code = "import sys, nenya; nenya.view; print([n for n in ('torch', 'pandas', 'panel', 'h5py') if n in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
