#include "control/berthctl/image_text.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "control/berthctl/option_values.h"
#include "control/berthctl/size_text.h"
#include "control/berthctl/time_text.h"

namespace berth::berthctl {
namespace {

// "base.qcow2 (qcow2), /srv/images/base.qcow2".
std::string NamedFile(const std::string& name, const std::string& format, const std::string& full) {
  std::string text = name;
  if (!format.empty()) absl::StrAppend(&text, " (", format, ")");
  if (full != name) absl::StrAppend(&text, ", ", full.empty() ? "which is not opened" : full);
  return Printable(text);
}

void PrintLists(std::ostream& out, const v1::Qcow2Info& qcow2) {
  if (!qcow2.snapshots().empty()) {
    out << "snapshots:\n";
    Table table({"  ID", "NAME", "CREATED", "DISK", "VM STATE", "VM CLOCK"}, 3, 5);
    for (const v1::InternalSnapshot& one : qcow2.snapshots()) {
      table.Add({absl::StrCat("  ", Printable(one.id())), Printable(one.name()), TimeText(one.create_time()),
                 FormatSize(one.disk_size_bytes()), FormatSize(one.vm_state_size_bytes()),
                 absl::FormatDuration(absl::Nanoseconds(one.vm_clock_nanoseconds()))});
    }
    table.Print(out);
  }
  if (qcow2.bitmaps().empty()) return;
  out << "bitmaps:\n";
  Table table({"  NAME", "GRANULARITY", "STATE"}, 1, 1);
  for (const v1::DirtyBitmap& one : qcow2.bitmaps()) {
    table.Add({absl::StrCat("  ", Printable(one.name())), FormatSize(one.granularity_bytes()),
               one.inconsistent() ? "inconsistent"
               : one.enabled()    ? "enabled"
                                  : "disabled"});
  }
  table.Print(out);
}

void PrintLuks(std::ostream& out, const v1::LuksInfo& luks) {
  out << "cipher:     " << Printable(luks.cipher_name()) << ' ' << Printable(luks.cipher_mode())
      << ", a key of " << luks.key_bits() << " bits\n"
      << "hash:       " << Printable(luks.hash()) << '\n'
      << "uuid:       " << Printable(luks.uuid()) << '\n'
      << "payload:    from byte " << luks.payload_offset_bytes() << '\n'
      << "key slots:  " << absl::StrJoin(luks.active_key_slots(), ", ") << '\n';
}

void PrintQcow2(std::ostream& out, const v1::Qcow2Info& qcow2) {
  out << "compat:     " << Printable(qcow2.compat()) << '\n'
      << "clusters:   " << FormatSize(qcow2.cluster_size_bytes())
      << (qcow2.extended_l2() ? ", in 32 parts (extended L2 entries)" : "") << '\n'
      << "refcounts:  " << qcow2.refcount_bits() << " bits" << (qcow2.lazy_refcounts() ? ", lazy" : "")
      << '\n'
      << "compressed: " << EnumName(v1::CompressionType_descriptor(), qcow2.compression_type()) << '\n';
  if (!qcow2.backing_file().empty()) {
    out << "backing:    "
        << NamedFile(qcow2.backing_file(), qcow2.backing_format(), qcow2.full_backing_file()) << '\n';
  }
  if (!qcow2.data_file().empty()) {
    out << "data file:  "
        << NamedFile(qcow2.data_file(), qcow2.data_file_raw() ? "raw" : "", qcow2.full_data_file()) << '\n';
  }
  if (!qcow2.encryption_format().empty())
    out << "encrypted:  " << Printable(qcow2.encryption_format()) << '\n';
  if (qcow2.dirty()) out << "dirty:      yes; its refcounts have to be counted again before it is written\n";
  if (qcow2.corrupt()) out << "corrupt:    yes; it has to be repaired before it is written\n";
  PrintLists(out, qcow2);
}

void PrintOne(std::ostream& out, const v1::ImageInfo& info) {
  out << "path:       " << Printable(info.path()) << '\n'
      << "format:     " << EnumName(v1::ImageFormat_descriptor(), info.format()) << '\n'
      << "size:       " << FormatExactSize(info.size_bytes()) << '\n'
      << "allocated:  " << FormatExactSize(info.allocated_bytes()) << '\n'
      << "in use:     " << (info.in_use() ? "yes" : "no") << '\n';
  if (info.has_luks()) PrintLuks(out, info.luks());
  if (info.has_qcow2()) PrintQcow2(out, info.qcow2());
}

}  // namespace

void PrintImage(Console& console, const v1::ImageInfo& info) {
  if (console.json) return PrintJson(console.out, info);
  PrintOne(console.out, info);
  for (const v1::ImageInfo& below : info.backing_chain()) {
    console.out << '\n';
    PrintOne(console.out, below);
  }
  console.out << std::flush;
}

}  // namespace berth::berthctl
