# Beside the server, in its container: memory of which every page is known. MIB of it are written again and again, RATE MiB a second;
# more of it comes and goes: a page that was given back is zeros, whatever it was before.
#
# Whoever connects is told in a line what was ever found wrong, after a look at everything; `right` if nothing was. One thread: nobody
# else maps anything where something has just been unmapped.

import ctypes
import os
import random
import select
import socket
import sys
import time

PAGE = 4096
PORT = 7001
# In seconds. So much happens in the last moment before any freeze.
TURN = 0.001
MIB, RATE = int(sys.argv[1]), int(sys.argv[2])

READ_WRITE, PRIVATE_ANONYMOUS, FIXED = 0x3, 0x22, 0x10  # <sys/mman.h>
MAY_MOVE_FIXED, DONTNEED = 0x3, 4
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]

wrong = []


def done(result):
    """What a system call has returned, which was not -1."""
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def new(length, at=None):
    """Maps memory, which is zeros; `at` an address where there is nothing."""
    return done(libc.mmap(at, length, READ_WRITE, PRIVATE_ANONYMOUS | (FIXED if at else 0), -1, 0))


class Written:
    """Pages of random bytes, which no compression makes less, written in turn. Each begins with the number of its last write."""

    def __init__(self, mib):
        self.pages = mib << 8
        self.start = new(mib << 20)
        for at in range(0, mib << 20, 1 << 20):
            ctypes.memmove(self.start + at, os.urandom(1 << 20), 1 << 20)
        self.words = [ctypes.c_uint64.from_address(self.start + page * PAGE) for page in range(self.pages)]
        for page, word in enumerate(self.words):
            word.value = page
        self.number = self.pages

    def look(self, page):
        # The newest number up to this one that belongs to the page.
        right = self.number - 1 - (self.number - 1 - page) % self.pages
        if self.words[page].value != right:
            wrong.append(f"written page {page} has {self.words[page].value} instead of {right}")

    def turn(self):
        page = self.number % self.pages
        self.look(page)
        self.words[page].value = self.number
        self.number += 1

    def look_at_all(self):
        for page in range(self.pages):
            self.look(page)


class Fleeting:
    """Pieces of some pages that are written, given back, and so on. Each byte of them is known."""

    def __init__(self, name, pieces, pages, give_back):
        self.name, self.give_back = name, give_back
        self.length = pages * PAGE
        self.start = new(pieces * self.length)
        # What was written to a piece; 0 where it was given back since.
        self.numbers = [0] * pieces

    def content(self, number):
        return number.to_bytes(8, "little") * (self.length // 8)

    def look(self, piece):
        self.look_at(f"piece {piece}", self.start + piece * self.length, self.numbers[piece])

    def look_at(self, what, address, number):
        found = ctypes.string_at(address, self.length)
        if found != self.content(number):
            words = {int.from_bytes(found[at : at + 8], "little") for at in range(0, self.length, 8)}
            wrong.append(f"{self.name}: {what} at {address:x} has {sorted(words)[:4]} instead of {number}")

    def turn(self, number):
        piece = random.randrange(len(self.numbers))
        self.look(piece)
        address = self.start + piece * self.length
        if self.numbers[piece]:
            self.give_back(address, self.length)
            self.numbers[piece] = 0
        else:
            ctypes.memmove(address, self.content(number), self.length)
            self.numbers[piece] = number

    def look_at_all(self):
        for piece in range(len(self.numbers)):
            self.look(piece)


class Wandering(Fleeting):
    """Pieces that are written, or move to their other address. Where they are not there are zeros."""

    def __init__(self, name, pieces, pages):
        super().__init__(name, pieces, pages, None)
        other = new(pieces * self.length)
        at = range(0, pieces * self.length, self.length)
        self.places = [(self.start + offset, other + offset) for offset in at]

    def look(self, piece):
        here, there = self.places[piece]
        self.look_at(f"piece {piece}", here, self.numbers[piece])
        self.look_at(f"where piece {piece} is not,", there, 0)

    def turn(self, number):
        piece = random.randrange(len(self.numbers))
        self.look(piece)
        here, there = self.places[piece]
        if random.random() < 0.5:
            ctypes.memmove(here, self.content(number), self.length)
            self.numbers[piece] = number
        else:
            done(libc.mremap(here, self.length, self.length, MAY_MOVE_FIXED, there))
            new(self.length, here)
            self.places[piece] = there, here


def drop(address, length):
    done(libc.madvise(address, length, DONTNEED))


def map_anew(address, length):
    done(libc.munmap(address, length))
    new(length, address)


written = Written(MIB)
fleeting = [
    # A page stays for a quarter of a second, longer than many a round takes.
    Fleeting("dropped", 256, 1, drop),
    Fleeting("mapped anew", 64, 4, map_anew),
    Wandering("moved", 32, 8),
]
listener = socket.create_server(("0.0.0.0", PORT))
number, due = 0, time.monotonic()
while True:
    number += 1
    for area in fleeting:
        area.turn(number)
    for _ in range(int(RATE * 256 * TURN)):
        written.turn()
    now = time.monotonic()
    # After a freeze nothing is made up for.
    due = max(due + TURN, now)
    if select.select([listener], [], [], due - now)[0]:
        for area in [written, *fleeting]:
            area.look_at_all()
        connection, _ = listener.accept()
        with connection:
            connection.sendall(f"{'; '.join(wrong[:8]) or 'right'}\n".encode())
