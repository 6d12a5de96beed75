# What a service sends that signs its webhooks as Standard Webhooks 1.0 has it. Prints the status and the body of the answer.
#
# saas.py ADDRESS PORT NAME CA SECRET ID AGE_SECONDS BODY [FORGED_BODY]
import base64, hashlib, hmac, http.client, socket, ssl, sys, time

address, port, name, ca, secret, event, age, body = sys.argv[1:9]
stamp = str(int(time.time()) - int(age))
key = base64.b64decode(secret.removeprefix("whsec_"))
tag = hmac.new(key, f"{event}.{stamp}.{body}".encode(), hashlib.sha256).digest()

connection = http.client.HTTPConnection(name)
context = ssl.create_default_context(cafile=ca)
connection.sock = context.wrap_socket(socket.create_connection((address, int(port)), timeout=10), server_hostname=name)
connection.request(
    "POST",
    "/v1/webhooks/saas",
    body=sys.argv[9] if len(sys.argv) > 9 else body,
    headers={
        "Content-Type": "application/json",
        "webhook-id": event,
        "webhook-timestamp": stamp,
        "webhook-signature": "v1," + base64.b64encode(tag).decode(),
    },
)
answer = connection.getresponse()
print(answer.status, answer.read().decode())
