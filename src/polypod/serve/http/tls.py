"""How the certificate of an engine elsewhere is checked."""

import ssl
from functools import cache


@cache
def tls_context() -> ssl.SSLContext:
    """Against the certificates this system trusts (`SSL_CERT_FILE` names others), and the host's name. Reading them takes milliseconds, so it is done once."""
    return ssl.create_default_context()
