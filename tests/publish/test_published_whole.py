"""A published folder is complete or absent, also after a kill; embedding-atlas shows one, where it is installed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from portal_data import write_archive

KILLED = """
import os, signal, sys
from nenya.cli import run_command
from nenya.publish.geoparquet import GeoParquetWriter

add = GeoParquetWriter.add

def killed(self, block, encoded):
    add(self, block, encoded)
    os.kill(os.getpid(), signal.SIGKILL)

GeoParquetWriter.add = killed
run_command("publish", sys.argv[1:])
"""


def test_a_killed_run_leaves_no_folder_and_the_next_one_clears_up(nenya_cli, tmp_path):
    (tmp_path / "source").mkdir()
    table, vectors, _ = write_archive(tmp_path / "source")
    args = [f"latents={vectors}", f"table={table}", "out=published"]
    done = subprocess.run([sys.executable, "-c", KILLED, *args], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == 2 and "published" not in names  # what the killed run wrote is under a temporary name
    code, said = nenya_cli("publish", args)
    assert code == 0, said
    assert {path.name for path in tmp_path.iterdir()} == {"source", "published"}


@pytest.mark.slow
def test_embedding_atlas_loads_the_file(nenya_cli, tmp_path):
    program = shutil.which("embedding-atlas")
    if program is None:
        pytest.skip("embedding-atlas is not installed")
    table, vectors, _ = write_archive(tmp_path)
    assert nenya_cli("publish", [f"latents={vectors}", f"table={table}", "out=published", "partition=[]"])[0] == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    args = ["published/geoparquet/part-0.parquet", "--x", "US0", "--y", "US1", "--vector", "latent"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(
        [program, *args, "--host", "127.0.0.1", "--port", str(port)],
        cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/metadata.json") as answer:
                    assert json.load(answer)["props"]["data"]["projection"] == {"x": "US0", "y": "US1"}
                break
            except OSError:
                assert server.poll() is None, "embedding-atlas ended"
                time.sleep(0.5)
        query = {"type": "json", "sql": "SELECT count(*) AS n, max(len(latent)) AS d FROM dataset"}
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/data/query", json.dumps(query).encode(),
                                       {"Content-Type": "application/json"})  # fmt: skip
        with urllib.request.urlopen(asked) as answer:
            assert json.load(answer) == [{"n": 299, "d": 12}]
    finally:
        server.terminate()
        server.wait(30)
