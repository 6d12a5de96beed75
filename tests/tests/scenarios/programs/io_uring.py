import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
ring = libc.syscall(425, 8, ctypes.create_string_buffer(120))
print("ring" if ring >= 0 else f"no ring: {ctypes.get_errno()}", flush=True)
time.sleep(1000)
