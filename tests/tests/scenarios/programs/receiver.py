# Hears webhooks that are signed as Standard Webhooks 1.0 has it, on port 8099 of this host, but not the first. Writes the type of each into
# /tmp/told once it has answered, and "forged" for what is not signed.
import base64, hashlib, hmac, http.server, json, sys

key = base64.b64decode(sys.argv[1].removeprefix("whsec_"))


class Receiver(http.server.BaseHTTPRequestHandler):
    calls = 0

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Receiver.calls += 1
        if Receiver.calls == 1:
            self.send_response(503)
            self.end_headers()
            return
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + body
        tag = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        right = hmac.compare_digest(tag, self.headers["webhook-signature"])
        self.send_response(204)
        self.end_headers()
        with open("/tmp/told", "a") as told:
            print(json.loads(body)["type"] if right else "forged", file=told, flush=True)


http.server.HTTPServer(("127.0.0.1", 8099), Receiver).serve_forever()
