import os, socket, threading
token, count, lock = os.urandom(8).hex(), 0, threading.Lock()
def serve(connection):
    global count
    try:
        while connection.recv(1):
            with lock:
                count += 1
                connection.sendall(f"{token} {count}\n".encode())
    except OSError:
        pass
listener = socket.create_server(("", 7000))
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
