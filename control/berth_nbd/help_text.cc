#include "absl/strings/str_cat.h"
#include "control/berth_nbd/command_line.h"
#include "control/version/version.h"

namespace berth::control {
namespace {

constexpr char kOptions[] = R"(
Serves a disk image to NBD clients, attaches it as /dev/nbdN, or lists the exports of a server. The options
are those of qemu-nbd; docs/qemu-nbd.md says where the two differ.

  -h, --help                this text
  -V, --version             the version

Clients:
  -p, --port=PORT           TCP port to listen on, or with -L to connect to (10809)
  -b, --bind=HOST           address to listen on, or with -L to connect to (0.0.0.0)
  -k, --socket=PATH         a Unix socket instead of TCP; absolute
  -e, --shared=N            clients at a time; others wait; 0 for any number (1)
  -t, --persistent          go on after the last client has left
  -x, --export-name=NAME    name of the export (empty)
  -D, --description=TEXT    description of the export
      --handshake-limit=S   seconds that a client has to choose its export; 0 for no limit (10)
      --selinux-label=LABEL SELinux label of the Unix socket

What of the image they see:
  -o, --offset=BYTES        from there on
  -P, --partition=N         one partition: of an MBR 1 to 4, logical ones from 5 on; or of a GPT
  -r, --read-only           no changes
  -A, --allocation-depth    the context qemu:allocation-depth
  -B, --bitmap=NAME         the context qemu:dirty-bitmap:NAME; may be repeated
  -s, --snapshot            changes go to a temporary file and are forgotten
  -l, --load-snapshot=S     an internal snapshot, read-only: ID_OR_NAME, or
                            snapshot.id=ID,snapshot.name=NAME, or one of them

The image:
  -f, --format=FORMAT       raw or qcow2; without it the format is probed
      --image-opts          FILE is a description: driver=qcow2,file.driver=file,file.filename=PATH
      --cache=MODE          none, writeback, writethrough, directsync, unsafe (writeback)
  -n, --nocache             --cache=none
      --aio=MODE            threads, native, io_uring: taken and not needed, I/O is io_uring's
      --discard=MODE        ignore (off) or unmap (on) (ignore)
      --detect-zeroes=MODE  off, on, or with --discard=unmap unmap: writes of zeroes become zeroing (off)

The kernel's device:
  -c, --connect=DEV         attach the image as /dev/nbdN; auto takes a free one and prints its name
  -d, --disconnect          detach the device FILE
      --connections=N       sockets between the device and this program

TLS and secrets:
      --object TYPE,id=ID,...   secret, tls-creds-x509, tls-creds-psk, tls-creds-anon,
                            throttle-group, authz-simple, authz-list, authz-list-file
      --tls-creds=ID        serve with TLS only, or with -L connect with it
      --tls-authz=ID        who may use the export
      --tls-hostname=NAME   with -L: the name in the server's certificate

General:
  -L, --list                list the exports of a server
      --fork                go to the background once clients can be served
      --pid-file=PATH       write the server's process ID there
  -v, --verbose             say more; with -c stay in the foreground
  -T, --trace [enable=]PATTERN[,events=FILE][,file=FILE]
                            print events; "-T help" names them
      --json                errors, and the list of -L, as JSON
      --metrics=HOST:PORT   serve metrics for Prometheus there
)";

}  // namespace

std::string HelpText(const std::string& program) {
  return absl::StrCat("Usage: ", program, " [OPTION]... FILE\n       ", program, " -L [OPTION]...\n       ",
                      program, " -d DEVICE\n", kOptions);
}

std::string VersionText(const std::string& program) {
  return absl::StrCat(program, " ", kVersion, " (Berth)\n");
}

}  // namespace berth::control
