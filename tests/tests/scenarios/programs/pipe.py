import os, signal, struct, sys
stop = False
def end(*_):
    global stop
    stop = True
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    signal.signal(signal.SIGUSR1, end)
    os.close(reader)
    number = 0
    while not stop:
        os.write(writer, b"".join(struct.pack(">Q", number + i) for i in range(64)))
        number += 64
    os.write(writer, struct.pack(">Q", number))
    os._exit(0)
os.close(writer)
signal.signal(signal.SIGUSR1, lambda *_: os.kill(child, signal.SIGUSR1))
expected = 0
while piece := os.read(reader, 8):
    number, = struct.unpack(">Q", piece)
    if number != expected:
        sys.exit(f"{number} instead of {expected}")
    expected += 1
    if expected % 20000 == 0:
        print("read", expected, flush=True)
pid, status = os.waitpid(child, 0)
print("end", expected, status, flush=True)
sys.exit(0 if (pid, status) == (child, 0) else 1)
