#include "control/berth_nbd/format_probe.h"

#include <cstring>

namespace berth::control {
namespace {

struct Magic {
  absl::string_view format;
  size_t offset;
  absl::string_view bytes;
};

constexpr Magic kMagics[] = {
    {"luks", 0, absl::string_view("LUKS\xba\xbe", 6)},
    {"vmdk", 0, "KDMV"},
    {"vmdk", 0, "COWD"},
    {"vmdk", 0, "# Disk DescriptorFile"},
    {"vhdx", 0, "vhdxfile"},
    {"vpc", 0, "conectix"},
    {"qed", 0, absl::string_view("QED\0", 4)},
    {"vdi", 64, absl::string_view("\x7f\x10\xda\xbe", 4)},
    {"parallels", 0, "WithoutFreeSpace"},
    {"parallels", 0, "WithouFreSpacExt"},
    {"bochs", 0, "Bochs Virtual HD Image"},
    {"cloop", 0, "#!/bin/sh\n#V2.0 Format\nmodprobe cloop"},
};

bool Holds(absl::Span<const uint8_t> head, size_t offset, absl::string_view bytes) {
  return head.size() >= offset + bytes.size() &&
         std::memcmp(head.data() + offset, bytes.data(), bytes.size()) == 0;
}

}  // namespace

absl::string_view ProbeFormat(absl::Span<const uint8_t> head) {
  if (Holds(head, 0, absl::string_view("QFI\xfb", 4)) && head.size() >= 8) {
    // Version 1 is another format, which is called qcow.
    return head[7] >= 2 || head[4] != 0 || head[5] != 0 || head[6] != 0 ? "qcow2" : "qcow";
  }
  for (const Magic& magic : kMagics) {
    if (Holds(head, magic.offset, magic.bytes)) return magic.format;
  }
  return "";
}

}  // namespace berth::control
