"""moto's S3 on a port. One request at a time, so that creating what is not there is one step."""
import io
import logging
import sys
import threading

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple

logging.getLogger("werkzeug").setLevel(logging.ERROR)
WSGIRequestHandler.protocol_version = "HTTP/1.1"
backend = DomainDispatcherApplication(create_backend_app)
turn = threading.Lock()


def application(environ, start_response):
    # Read first: a client that is slow to send holds up nobody.
    length = environ.get("CONTENT_LENGTH")
    if length:
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(length)))
    with turn:
        return list(backend(environ, start_response))


run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True)
