import itertools, os, signal, sys, threading, time
signal.signal(signal.SIGUSR1, lambda *_: print("heard", flush=True))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("begin", os.isatty(0), os.isatty(1), flush=True)
def read():
    for line in sys.stdin:
        print("read", line.strip(), flush=True)
threading.Thread(target=read, daemon=True).start()
for number in itertools.count():
    print("number", number, flush=True)
    time.sleep(0.1)
