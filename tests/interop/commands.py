"""Every command and flag as libnbd speaks them, on a writable export of 64 MiB. Run with its URI."""

import errno
import random
import sys

import nbd

URI = sys.argv[1]
SIZE = 64 << 20


def check(what, seen, expected):
    if seen != expected:
        sys.exit("%s: %.200r instead of %.200r" % (what, seen, expected))


def fails(what, code, call):
    try:
        call()
    except nbd.Error as error:
        check(what + "'s error", error.errnum, code)
        return
    sys.exit("%s did not fail" % what)


def connect(structured=True):
    client = nbd.NBD()
    client.set_request_structured_replies(structured)
    if structured:
        client.add_meta_context("base:allocation")
    client.set_uri_allow_local_file(True)  # Of credentials for TLS.
    client.connect_uri(URI)
    # The server judges, not the library.
    client.set_strict_mode(0)
    return client


def extents(client, length, offset, flags=0):
    seen = []

    def take(context, start, entries, error):
        check("context", context, "base:allocation")
        check("start", start, offset)
        seen.extend(zip(entries[::2], entries[1::2]))
        return 0

    client.block_status(length, offset, take, flags=flags)
    return seen


for structured in (True, False):
    h = connect(structured)
    check("size", h.get_size(), SIZE)
    data = bytearray(random.Random(structured).randbytes(3 << 20))

    # WRITE and READ, at odd offsets, and the largest payload.
    h.pwrite(data, 12345)
    check("read back", h.pread(len(data), 12345), data)
    check("read in part", h.pread(1, 12346), data[1:2])
    check("before it", h.pread(1, 12344), bytearray(1))
    h.pwrite(b"y" * (32 << 20), 16 << 20)
    check("largest read", h.pread(32 << 20, 16 << 20), bytearray(b"y" * (32 << 20)))
    h.pwrite(b"last", SIZE - 4)
    check("last bytes", h.pread(4, SIZE - 4), bytearray(b"last"))

    # FUA on every command that may have it.
    h.pwrite(b"fua", 1, nbd.CMD_FLAG_FUA)
    check("FUA write", h.pread(3, 1), bytearray(b"fua"))
    h.zero(3, 1, nbd.CMD_FLAG_FUA)
    check("FUA zero", h.pread(3, 1), bytearray(3))
    h.trim(4096, 0, nbd.CMD_FLAG_FUA)
    h.flush()

    # WRITE_ZEROES: NO_HOLE and FAST_ZERO.
    for flags in (0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA):
        h.pwrite(b"z" * 70000, 20 << 20)
        h.zero(65536, 20 << 20, flags)
        check("zeroed", h.pread(65536, 20 << 20), bytearray(65536))
        check("beyond", h.pread(1, (20 << 20) + 65536), bytearray(b"z"))
    if h.can_fast_zero():
        h.pwrite(b"z" * 4096, 20 << 20)
        h.zero(4096, 20 << 20, nbd.CMD_FLAG_FAST_ZERO)
        check("fast zeroed", h.pread(4096, 20 << 20), bytearray(4096))
    # Larger than any payload.
    h.zero(SIZE, 0)
    check("all zeroed", h.pread(32 << 20, 16 << 20), bytearray(32 << 20))

    # TRIM and CACHE.
    h.pwrite(b"t" * (1 << 20), 0)
    h.trim(1 << 20, 0)
    h.pread(1 << 20, 0)
    h.cache(1 << 20, 0)
    h.cache(SIZE, 0)

    # Errors, each with its number; the connection lives on.
    for what, call in (
        ("read past the end", lambda: h.pread(2, SIZE - 1)),
        ("read far away", lambda: h.pread(1, 1 << 63)),
        ("trim past the end", lambda: h.trim(2, SIZE - 1)),
        ("cache past the end", lambda: h.cache(2, SIZE - 1)),
        ("zero of 4 GiB", lambda: h.zero(0xFFFFFFFF, 0)),
    ):
        try:
            call()
            sys.exit("%s did not fail" % what)
        except nbd.Error as error:
            if error.errnum not in (errno.EINVAL, errno.ENOSPC):
                sys.exit("%s: errno %s" % (what, error.errnum))
    fails("write past the end", errno.ENOSPC, lambda: h.pwrite(b"xx", SIZE - 1))
    fails("zero past the end", errno.ENOSPC, lambda: h.zero(2, SIZE - 1))
    check("alive", h.pread(1, 0) is not None, True)

    if structured:
        # DF: one chunk.
        chunks = []
        h.zero(1 << 20, 0)
        h.pwrite(b"d" * 65536, 65536)
        buffer = h.pread_structured(1 << 20, 0, lambda b, o, s, e: chunks.append((o, len(b), s)) or 0, nbd.CMD_FLAG_DF)
        check("chunks with DF", chunks, [(0, 1 << 20, nbd.READ_DATA)])
        check("data with DF", buffer, bytearray(65536) + b"d" * 65536 + bytearray((1 << 20) - 131072))
        pieces = bytearray(b"?" * (1 << 20))

        def take(subbuf, offset, status, error):
            pieces[offset:offset + len(subbuf)] = bytes(len(subbuf)) if status == nbd.READ_HOLE else subbuf
            return 0

        h.pread_structured(1 << 20, 0, take)
        check("data in chunks", pieces, buffer)

        # BLOCK_STATUS: holes, data, REQ_ONE.
        h.zero(SIZE, 0)
        h.pwrite(b"d" * 65536, 1 << 20)
        h.flush()
        seen = extents(h, 4 << 20, 0)
        total = 0
        for length, flags in seen:
            data = total == 1 << 20
            check("extent at %d" % total, flags & nbd.STATE_ZERO, 0 if data else nbd.STATE_ZERO)
            total += length
        if total < (1 << 20) + 65536:
            sys.exit("extents cover %d bytes only: %r" % (total, seen))
        seen = extents(h, 2 << 20, 1 << 20, nbd.CMD_FLAG_REQ_ONE)
        check("REQ_ONE", seen, [(65536, 0)])
        seen = extents(h, 4096, 1 << 20, nbd.CMD_FLAG_REQ_ONE)
        check("REQ_ONE within", seen, [(4096, 0)])
        fails("status past the end", errno.EINVAL, lambda: extents(h, 2, SIZE - 1))
    else:
        check("DF", h.can_df(), False)
        fails("status without a context", errno.EINVAL, lambda: extents(h, 512, 0))

    # Many in flight.
    cookies = []
    for i in range(200):
        cookies.append(h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i]) * 4096), i * 4096))
    while cookies:
        h.poll(-1)
        cookies = [c for c in cookies if not h.aio_command_completed(c)]
    for i in range(200):
        check("write %d" % i, h.pread(4096, i * 4096), bytearray([i]) * 4096)
    h.zero(SIZE, 0)
    h.shutdown()
    check("closed", h.aio_is_closed(), True)

# NBD_FLAG_CAN_MULTI_CONN: what one connection wrote, another sees.
one, two = connect(), connect()
check("multi-conn", one.can_multi_conn(), True)
for i in range(100):
    one.pwrite(b"%04d" % i, i)
    two.flush()
    check("seen by the other", two.pread(4, i), bytearray(b"%04d" % i))
one.shutdown()
two.shutdown()
