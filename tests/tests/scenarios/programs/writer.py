# Writes to its memory faster than a slow link takes it, and notes what a client tells it, which it acknowledges.
#
# Each page has random bytes, which no compression makes less, and a number that grows with every write to it. A line `note N` is answered
# with `N`; `check` with the count of notes and of the writes, or with what is wrong.

import array
import mmap
import os
import random
import socket
import struct
import sys
import threading
import time

PAGE = 4096
MIB, RATE = int(sys.argv[1]), int(sys.argv[2])  # of memory; a second

pages = MIB << 8
memory = mmap.mmap(-1, MIB << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, MIB << 20, 1 << 20):
    memory[at : at + (1 << 20)] = os.urandom(1 << 20)
numbers = array.array("Q", bytes(8 * pages))
for page in range(pages):
    struct.pack_into("<Q", memory, page * PAGE, 0)
lock, notes, writes = threading.Lock(), [], 0


def write():
    global writes
    began, done = time.monotonic(), 0
    while True:
        with lock:
            for _ in range(64):
                page = random.randrange(pages)
                numbers[page] += 1
                struct.pack_into("<Q", memory, page * PAGE, numbers[page])
            writes += 64
        done += 64 * PAGE
        behind = done / (RATE << 20) - (time.monotonic() - began)
        if behind > 0:
            time.sleep(behind)
        elif behind < -1:
            # It was frozen, and does not make up for it.
            began, done = time.monotonic(), 0


def check():
    with lock:
        for page in range(pages):
            found = struct.unpack_from("<Q", memory, page * PAGE)[0]
            if found != numbers[page]:
                return f"page {page} has {found} instead of {numbers[page]}"
        if sum(numbers) != writes:
            return f"{sum(numbers)} writes are in the pages, and {writes} were done"
        if notes != list(range(len(notes))):
            return "the notes are not one after the other"
        return f"{len(notes)} notes, {writes} writes"


listener = socket.create_server(("0.0.0.0", 7000))
threading.Thread(target=write, daemon=True).start()
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    for line in connection.makefile("r"):
        word, _, number = line.strip().partition(" ")
        if word == "note":
            notes.append(int(number))
            connection.sendall(f"{number}\n".encode())
        else:
            connection.sendall(f"{check()}\n".encode())
