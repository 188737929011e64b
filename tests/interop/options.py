"""The handshake as libnbd speaks it: options in all orders, and old clients. Run with the URI of 'disk'."""

import sys

import nbd

URI = sys.argv[1]


def check(what, seen, expected):
    if seen != expected:
        sys.exit("%s: %r instead of %r" % (what, seen, expected))


def refused(what, call, text):
    try:
        call()
    except nbd.Error as error:
        if text not in str(error):
            sys.exit("%s: %r does not say %r" % (what, str(error), text))
        return
    sys.exit("%s was not refused" % what)


def haggle():
    client = nbd.NBD()
    client.set_opt_mode(True)
    client.set_full_info(True)
    client.connect_uri(URI)
    return client


# Options, several on one connection.
h = haggle()
check("protocol", h.get_protocol(), "newstyle-fixed")
check("structured replies", h.get_structured_replies_negotiated(), True)
exports = []
check("opt_list", h.opt_list(lambda name, text: exports.append((name, text)) or 0), 2)
check("exports", exports, [("cdrom", "the second"), ("disk", "the first")])
h.set_export_name("cdrom")
h.opt_info()
check("size", h.get_size(), 2 << 20)
check("read-only", h.is_read_only(), True)
check("canonical name", h.get_canonical_export_name(), "cdrom")
check("description", h.get_export_description(), "the second")
h.set_export_name("none")
refused("opt_info of nothing", h.opt_info, "No such file")
refused("opt_go of nothing", h.opt_go, "No such file")
refused("opt_go of a long name", lambda: (h.set_export_name("n" * 4096), h.opt_go()), "No such file")
h.set_export_name("")
refused("opt_go of no default", h.opt_go, "No such file")
h.set_export_name("disk")
for queries, expected in (
    ([], ["base:allocation"]),
    (["base:"], ["base:allocation"]),
    (["base:allocation"], ["base:allocation"]),
    (["qemu:", "x-none:leaf"], []),
):
    h.clear_meta_contexts()
    for query in queries:
        h.add_meta_context(query)
    seen = []
    h.opt_list_meta_context(lambda name: seen.append(name) or 0)
    check("opt_list_meta_context of %s" % queries, seen, expected)
h.clear_meta_contexts()
h.add_meta_context("base:allocation")
h.opt_go()
check("size", h.get_size(), 1 << 20)
check("read-only", h.is_read_only(), False)
check("block sizes", [h.get_block_size(i) for i in range(3)], [1, 4096, 32 << 20])
check("context", h.can_meta_context("base:allocation"), True)
check("data", h.pread(512, 0), bytearray(512))
h.shutdown()

# NBD_OPT_ABORT.
h = haggle()
h.opt_abort()
check("closed", h.aio_is_closed(), True)

# A client that does not want structured replies has no DF and no contexts.
h = nbd.NBD()
h.set_request_structured_replies(False)
h.add_meta_context("base:allocation")
h.connect_uri(URI)
check("structured replies", h.get_structured_replies_negotiated(), False)
check("DF", h.can_df(), False)
check("context", h.can_meta_context("base:allocation"), False)
h.pwrite(b"simple", 100)
check("data", h.pread(6, 100), bytearray(b"simple"))
h.shutdown()

# Clients of before fixed newstyle come by NBD_OPT_EXPORT_NAME, with and without the zeroes.
for flags in (0, nbd.HANDSHAKE_FLAG_NO_ZEROES):
    h = nbd.NBD()
    h.set_handshake_flags(flags)
    h.connect_uri(URI)
    check("protocol", h.get_protocol(), "newstyle")
    check("size", h.get_size(), 1 << 20)
    check("data", h.pread(6, 100), bytearray(b"simple"))
    h.shutdown()

# TLS is refused: one who only asks goes on in the clear, one who insists does not.
h = nbd.NBD()
h.set_tls(nbd.TLS_ALLOW)
h.connect_uri(URI)
check("TLS", h.get_tls_negotiated(), False)
h.shutdown()
h = nbd.NBD()
h.set_tls(nbd.TLS_REQUIRE)
refused("TLS", lambda: h.connect_uri(URI), "TLS")
