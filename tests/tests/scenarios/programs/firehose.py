import socket, struct, sys, threading

class Done(threading.Event):
    received = 0

def send(connection, done):
    number = 0
    while not done.is_set():
        connection.sendall(struct.pack(">4096Q", *range(number, number + 4096)))
        number += 4096
    connection.sendall(struct.pack(">QQ", 2**64 - 1, done.received))
    connection.shutdown(socket.SHUT_WR)

def receive(connection, done):
    number, rest = 0, b""
    while data := connection.recv(1 << 16):
        rest += data
        whole = len(rest) // 8
        if struct.unpack(f">{whole}Q", rest[:whole * 8]) != tuple(range(number, number + whole)):
            print("wrong after", number, flush=True)
            number = -whole
        number, rest = number + whole, rest[whole * 8:]
    done.received = number
    done.set()

def serve(connection):
    done = Done()
    threading.Thread(target=send, args=(connection, done)).start()
    threading.Thread(target=receive, args=(connection, done)).start()

listener = socket.create_server(("", 7000))
serve(socket.create_connection((sys.argv[1], 7000)))
print("ready", flush=True)
while True:
    serve(listener.accept()[0])
