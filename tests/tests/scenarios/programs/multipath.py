# A socket of multipath TCP that is neither connected nor bound.
import socket, time

unconnected = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
print("ready", flush=True)
while True:
    time.sleep(1000)
