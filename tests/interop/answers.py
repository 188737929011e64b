"""What a server answers to every command, flag and option, a line each, for a comparison of servers.

Run with the URI of a writable export of 96 MiB, and with the flags that the server must not be asked with, as it would
not survive. A line says what was asked, and the answer: ok, the errno, or that the connection ended.
"""

import errno
import sys

import nbd

URI = sys.argv[1]
SIZE = 96 << 20
MIB = 1 << 20

FLAGS = (
    ("fua", 1),
    ("no-hole", 2),
    ("df", 4),
    ("req-one", 8),
    ("fast-zero", 16),
    ("unknown", 0x8000),
)
LEFT_OUT = sys.argv[2:]


def connect(structured):
    client = nbd.NBD()
    client.set_request_structured_replies(structured)
    client.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE | nbd.HANDSHAKE_FLAG_NO_ZEROES)
    if structured:
        client.add_meta_context("base:allocation")
    client.set_uri_allow_local_file(True)  # Of credentials for TLS.
    client.connect_uri(URI)
    # The server judges, not the library.
    client.set_strict_mode(0)
    return client


class Asking:

    def __init__(self, structured):
        self.structured = structured
        self.client = connect(structured)

    def ask(self, what, call):
        answer = "ok"
        try:
            result = call(self.client)
            if result is not None:
                answer += " " + result
        except nbd.Error as error:
            answer = errno.errorcode.get(error.errnum, "no errno")
        # The library may see the end only with the next request.
        try:
            self.client.pread(1, 0)
        except nbd.Error:
            answer = "the connection ended"
            self.client = connect(self.structured)
        print("%s, %s: %s" % ("structured" if self.structured else "simple", what, answer))


def nothing(call):

    def quiet(client):
        call(client)

    return quiet


def content(length, offset, flags=0):

    def read(client):
        data = client.pread(length, offset, flags)
        return "zeroes" if not data.strip(b"\0") else "data"

    return read


def status(length, offset, flags=0):

    def query(client):
        seen = []
        client.block_status(length, offset, lambda name, at, entries, error: seen.append((name, at, entries)) or 0,
                            flags)
        return " ".join("%s %d+%s" % (name, at, entries) for name, at, entries in seen)

    return query


for structured in (True, False):
    asking = Asking(structured)
    ask = asking.ask
    ask("write", nothing(lambda h: h.pwrite(b"x" * 65536, MIB)))
    ask("flush", nothing(lambda h: h.flush()))

    # Each command with each flag.
    for name, flag in FLAGS:
        if name in LEFT_OUT:
            continue
        ask("read with " + name, content(512, MIB, flag))
        ask("write with " + name, nothing(lambda h: h.pwrite(b"x" * 512, MIB, flag)))
        ask("flush with " + name, nothing(lambda h: h.flush(flag)))
        ask("trim with " + name, nothing(lambda h: h.trim(4096, 8 * MIB, flag)))
        ask("cache with " + name, nothing(lambda h: h.cache(4096, MIB, flag)))
        ask("zero with " + name, nothing(lambda h: h.zero(4096, 8 * MIB, flag)))
        ask("zero of data with " + name, nothing(lambda h: (h.pwrite(b"x" * 4096, 9 * MIB), h.zero(4096, 9 * MIB, flag))))
        ask("status with " + name, status(MIB, MIB, flag))
    if "fast-zero" not in LEFT_OUT:
        ask("zero with no-hole and fast-zero", nothing(lambda h: h.zero(4096, 8 * MIB, 2 | 16)))

    # The end, what is beyond, and lengths of 0.
    for length, offset, where in (
        (1, SIZE - 1, "the last byte"),
        (2, SIZE - 1, "across the end"),
        (1, SIZE, "at the end"),
        (512, 1 << 62, "far away"),
        (512, (1 << 64) - 512, "the last offsets"),
        (0, 0, "no length"),
        (0, SIZE, "no length at the end"),
        (0, SIZE + 512, "no length beyond the end"),
    ):
        ask("read of " + where, content(length, offset))
        ask("write of " + where, nothing(lambda h: h.pwrite(b"\0" * length, offset)))
        ask("trim of " + where, nothing(lambda h: h.trim(length, offset)))
        ask("cache of " + where, nothing(lambda h: h.cache(length, offset)))
        ask("zero of " + where, nothing(lambda h: h.zero(length, offset)))
        ask("status of " + where, status(length, offset))

    # Alignment, and sizes up to the largest that the library sends.
    ask("write of 3 bytes", nothing(lambda h: h.pwrite(b"abc", 4095)))
    ask("read of 3 bytes", content(3, 4095))
    ask("zero of 3 bytes", nothing(lambda h: h.zero(3, 4095)))
    ask("trim of 3 bytes", nothing(lambda h: h.trim(3, 4095)))
    ask("cache of 3 bytes", nothing(lambda h: h.cache(3, 4095)))
    ask("read of zeroed bytes", content(3, 4095))
    ask("status from an odd offset", status(4096, MIB + 1))
    for mib in (32, 33, 64):
        ask("read of %d MiB" % mib, content(mib * MIB, 2 * MIB))
        ask("write of %d MiB" % mib, nothing(lambda h: h.pwrite(b"\0" * (mib * MIB), 2 * MIB)))
    ask("zero of everything", nothing(lambda h: h.zero(SIZE, 0)))
    ask("read after it", content(MIB, MIB))
    ask("trim of everything", nothing(lambda h: h.trim(SIZE, 0)))
    ask("cache of everything", nothing(lambda h: h.cache(SIZE, 0)))
    ask("status of everything", status(SIZE, 0))
    ask("zero of 4 GiB", nothing(lambda h: h.zero(0xFFFFFFFF, 0)))
    ask("trim of 4 GiB", nothing(lambda h: h.trim(0xFFFFFFFF, 0)))
    asking.client.shutdown()


def haggle():
    client = nbd.NBD()
    client.set_opt_mode(True)
    client.set_uri_allow_local_file(True)  # Of credentials for TLS.
    client.connect_uri(URI)
    return client


# The options, all of one connection, and its end.
h = haggle()


def option(what, call):
    try:
        print("option, %s: %s" % (what, call()))
    except nbd.Error as error:
        print("option, %s: %s" % (what, errno.errorcode.get(error.errnum, "no errno")))


def contexts(*queries):
    h.clear_meta_contexts()
    for query in queries:
        h.add_meta_context(query)
    seen = []
    h.opt_list_meta_context(lambda name: seen.append(name) or 0)
    return sorted(seen)


def listed():
    names = []
    h.opt_list(lambda name, description: names.append((name, description)) or 0)
    return names


def info(name):
    h.set_export_name(name)
    h.opt_info()
    return h.get_size()


NAME = h.get_export_name()
option("list", listed)
option("info", lambda: info(NAME))
option("info of nothing", lambda: info("none"))
option("info of a name of 4096 bytes", lambda: info("n" * 4096))
option("info of text", lambda: info("F\u00fc\u00dfe"))
h.set_export_name(NAME)
option("contexts", contexts)
option("contexts of base:", lambda: contexts("base:"))
option("contexts of base:allocation", lambda: contexts("base:allocation"))
option("contexts of base:none", lambda: contexts("base:none"))
option("contexts of x-none:", lambda: contexts("x-none:"))
option("contexts of no colon", lambda: contexts("nothing"))
option("contexts of three", lambda: contexts("base:allocation", "x-none:", "base:allocation"))
option("abort", lambda: (h.opt_abort(), h.aio_is_closed())[1])
for handshake_flags in range(4):
    h = nbd.NBD()
    h.set_handshake_flags(handshake_flags)
    h.set_uri_allow_local_file(True)  # Of credentials for TLS.
    h.connect_uri(URI)
    print("handshake flags %d: %s, %d" % (handshake_flags, h.get_protocol(), h.get_size()))
    h.shutdown()
