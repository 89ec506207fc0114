"""A client generated from openapi.json, against a running server: python tests/field/openapi_client.py

It makes an environment of its own (pip needs an index) with openapi-python-client, starts `serve`, generates
the client, and scores with it: a picture as bytes and as a form, a batch, no picture, and without the token.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import venv
from pathlib import Path

TOKEN = "s3cret-s3cret-s3cret"

# Run in the environment, beside the generated package `client`.
USE = """
import sys
from io import BytesIO
from client import AuthenticatedClient, Client
from client.api.default import batch, healthz, readyz, score
from client.models import BatchBody, ErrorAnswer, ScoreAnswer, ScoreFilesBody
from client.types import File
at, token, path = sys.argv[1:]
png = open(path, "rb").read()
file = lambda data, name="a.png": File(payload=BytesIO(data), file_name=name, mime_type="image/png")
with AuthenticatedClient(base_url=at, token=token) as client:
    one = score.sync(client=client, body=file(png), tiles=True)
    assert isinstance(one, ScoreAnswer) and 0 <= one.value <= 1 and one.tiles, one
    form = score.sync(client=client, body=ScoreFilesBody(file=file(png)))
    assert form.value == one.value and form.source == "a.png", form
    both = batch.sync(client=client, body=BatchBody(files=[file(png), file(b"no", "b.png")])).results
    assert both[0].value == one.value and both[1].status == 415, both
    refused = score.sync(client=client, body=file(b"text"))
    assert isinstance(refused, ErrorAnswer) and "not a supported format" in refused.detail, refused
    assert healthz.sync(client=client)["live"] and readyz.sync(client=client)["ready"]
with Client(base_url=at) as client:
    refused = score.sync_detailed(client=client, body=file(png))
    assert refused.status_code == 401 and "token" in refused.parsed.detail, refused
print(f"a generated client scores {one.value:.4f}, reads a batch, an error and a refusal")
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv/bin/python"
        subprocess.run([python, "-m", "pip", "install", "-q", "openapi-python-client>=0.24"], check=True)
        command = [sys.executable, "-m", "grmp_edge"]
        subprocess.run([*command, "data", "sample", "-o", folder / "data", "--pictures", "12"], check=True)
        server = subprocess.Popen(
            [*command, "serve", "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "GRMP_EDGE_TOKEN": TOKEN},
        )
        try:
            assert server.stderr is not None
            found = None
            while found is None:
                found = re.search(r" at (http://\S+);", server.stderr.readline())
            request = urllib.request.Request(
                f"{found[1]}/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"}
            )
            described = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).read()
            (folder / "openapi.json").write_bytes(described)
            generate = ["generate", "--path", "openapi.json", "--output-path", "client", "--meta", "none"]
            path = f"{folder / 'venv/bin'}{os.pathsep}{os.environ['PATH']}"
            subprocess.run(
                [folder / "venv/bin/openapi-python-client", *generate],
                cwd=folder,
                check=True,
                env={**os.environ, "PATH": path},
            )
            picture = folder / "data/samples/street_clean.png"
            subprocess.run([python, "-c", USE, found[1], TOKEN, picture], cwd=folder, check=True)
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
