# A unix listener that does not accept a connection with data in it.
import socket, time

listener = socket.socket(socket.AF_UNIX)
listener.bind("/tmp/listener")
listener.listen()
client = socket.socket(socket.AF_UNIX)
client.connect("/tmp/listener")
client.send(b"hello")
print("ready", flush=True)
while True:
    time.sleep(1000)
