"""A real S3-compatible server (moto's) on loopback, in a process of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import s3fs

BUCKET = "bucket"
SECRET = "dGhpcyBpcyBhIHNlY3JldA"  # nothing may write it down


@contextlib.contextmanager
def s3(host: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """A running server with an empty bucket; gives the environment variables by which clients find
    it."""
    with socket.create_server((host, 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(environment["AWS_ENDPOINT_URL"], timeout=5).close()
                break
            assert server.poll() is None
            time.sleep(0.1)
        make = "import boto3, sys; boto3.client('s3').create_bucket(Bucket=sys.argv[1])"
        subprocess.run(
            [sys.executable, "-c", make, BUCKET], env={**os.environ, **environment}, check=True
        )
        # of clients that this process made for an earlier server
        s3fs.S3FileSystem.clear_instance_cache()
        yield environment
    finally:
        server.kill()
        server.wait()
