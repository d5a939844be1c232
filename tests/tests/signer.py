"""A signer of certificates: cfssl's /sign over HTTPS, for clients that show a certificate. Arguments: address, folder."""

import http.server
import json
import os
import ssl
import subprocess
import sys
import tempfile

ADDRESS, FOLDER = sys.argv[1:3]


def sign(ask):
    names = ",".join(("URI:" if "://" in host else "DNS:") + host for host in ask["hosts"])
    with tempfile.TemporaryDirectory() as here:
        csr, extensions = os.path.join(here, "csr"), os.path.join(here, "ext")
        with open(csr, "w") as f:
            f.write(ask["certificate_request"])
        with open(extensions, "w") as f:
            f.write(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
        serial = "0x" + os.urandom(15).hex()
        ca = ["-CA", f"{FOLDER}/ca.pem", "-CAkey", f"{FOLDER}/ca.key", "-set_serial", serial]
        made = subprocess.run(
            ["openssl", "x509", "-req", "-in", csr, *ca, "-days", "1", "-extfile", extensions],
            check=True,
            capture_output=True,
        )
    print("signed", ask["hosts"], flush=True)
    return made.stdout.decode()


class Signer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        ask = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body = json.dumps({"success": True, "result": {"certificate": sign(ask)}, "errors": [], "messages": []}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{FOLDER}/server.pem", f"{FOLDER}/server.key")
context.verify_mode = ssl.CERT_REQUIRED
context.load_verify_locations(f"{FOLDER}/clients.pem")
server = http.server.ThreadingHTTPServer((ADDRESS, 8443), Signer)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", flush=True)
server.serve_forever()
