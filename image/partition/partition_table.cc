#include "image/partition/partition_table.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace berth {
namespace {

constexpr uint64_t kSector = 512;  // Master boot records count in these.
constexpr size_t kRecordEntries = 446;
constexpr uint8_t kProtective = 0xee;
// Extended partitions in a chain; a ring of them ends here.
constexpr int kMostLogical = 256;

constexpr uint32_t kMinGptHeader = 92;
constexpr uint32_t kMaxGptEntries = 1024;
constexpr uint32_t kMaxGptEntrySize = 4096;
constexpr int kFirstLogical = 5;

template <typename Number>
Number Little(const uint8_t* bytes) {
  Number number = 0;
  for (size_t i = sizeof(Number); i-- > 0;) number = static_cast<Number>(number << 8 | bytes[i]);
  return number;
}

absl::Status Missing(int number, absl::string_view table) {
  return absl::NotFoundError(absl::StrCat("there is no partition ", number, " in the disk's ", table));
}

absl::StatusOr<Partition> Checked(uint64_t first, uint64_t blocks, uint64_t block, uint64_t size,
                                  int number) {
  const uint64_t on_disk = size / block;
  if (blocks == 0 || first > on_disk || blocks > on_disk - first) {
    return absl::InvalidArgumentError(absl::StrCat("partition ", number, " is said to have ", blocks,
                                                   " blocks from ", first, " on; the disk has ", on_disk));
  }
  return Partition{first * block, blocks * block};
}

using Sector = std::array<uint8_t, kSector>;

struct RecordEntry {
  uint8_t type;
  uint64_t first;
  uint64_t sectors;

  bool used() const { return type != 0 && sectors != 0; }
  bool extended() const { return type == 0x05 || type == 0x0f || type == 0x85; }
};

RecordEntry EntryOf(const Sector& record, int index) {
  const uint8_t* bytes = record.data() + kRecordEntries + 16 * index;
  return {bytes[4], Little<uint32_t>(bytes + 8), Little<uint32_t>(bytes + 12)};
}

class Table {
 public:
  Table(uint64_t size, ReadDisk read, int number) : size_(size), read_(read), number_(number) {}

  absl::StatusOr<Partition> Find() {
    Sector record;
    absl::StatusOr<bool> is_record = ReadRecord(0, &record);
    if (!is_record.ok()) return is_record.status();
    if (!*is_record) {
      return absl::NotFoundError("the disk has no partition table: no master boot record, so no GPT either");
    }
    for (int i = 0; i < 4; ++i) {
      if (EntryOf(record, i).type == kProtective) return FindInGpt();
    }
    if (number_ >= kFirstLogical) return FindLogical(record);
    if (number_ > 4) return Missing(number_, "master boot record");
    const RecordEntry entry = EntryOf(record, number_ - 1);
    if (!entry.used()) return Missing(number_, "master boot record");
    if (entry.extended()) {
      return absl::NotFoundError(absl::StrCat(
          "partition ", number_, " is an extended one, which only holds others; they count from ",
          kFirstLogical, " on"));
    }
    return Checked(entry.first, entry.sectors, kSector, size_, number_);
  }

 private:
  // Whether there is a master boot record, or an extended one.
  absl::StatusOr<bool> ReadRecord(uint64_t sector, Sector* record) {
    if (sector >= size_ / kSector) return false;
    if (absl::Status status = read_(sector * kSector, absl::MakeSpan(*record)); !status.ok()) return status;
    return (*record)[510] == 0x55 && (*record)[511] == 0xaa;
  }

  absl::StatusOr<Partition> FindLogical(const Sector& record) {
    int next_number = kFirstLogical;
    for (int i = 0; i < 4; ++i) {
      const RecordEntry extended = EntryOf(record, i);
      if (!extended.used() || !extended.extended()) continue;
      uint64_t at = extended.first;
      for (int depth = 0; depth < kMostLogical; ++depth) {
        Sector link;
        absl::StatusOr<bool> is_record = ReadRecord(at, &link);
        if (!is_record.ok()) return is_record.status();
        if (!*is_record) break;
        const RecordEntry logical = EntryOf(link, 0);
        if (logical.used() && !logical.extended() && next_number++ == number_) {
          return Checked(at + logical.first, logical.sectors, kSector, size_, number_);
        }
        const RecordEntry next = EntryOf(link, 1);
        if (!next.used() || !next.extended()) break;
        at = extended.first + next.first;
      }
    }
    return Missing(number_, "extended partitions");
  }

  absl::StatusOr<Partition> FindInGpt() {
    absl::Status first_error;
    for (const uint64_t block : {uint64_t{512}, uint64_t{4096}}) {
      if (size_ / block < 3) continue;
      for (const uint64_t header : {uint64_t{1}, size_ / block - 1}) {
        absl::StatusOr<Partition> found = FindInGpt(block, header);
        // What is missing in a table that is whole is missing; a broken one may have a copy.
        if (found.ok() || absl::IsNotFound(found.status())) return found;
        if (first_error.ok()) first_error = found.status();
      }
    }
    if (first_error.ok()) first_error = absl::InvalidArgumentError("the disk is too small for its GPT");
    return first_error;
  }

  absl::StatusOr<Partition> FindInGpt(uint64_t block, uint64_t at) {
    Sector header;
    if (absl::Status status = read_(at * block, absl::MakeSpan(header)); !status.ok()) return status;
    if (std::memcmp(header.data(), "EFI PART", 8) != 0) return Broken("has no signature");
    const uint32_t header_size = Little<uint32_t>(&header[12]);
    if (header_size < kMinGptHeader || header_size > kSector) return Broken("has an impossible size");
    const uint32_t header_sum = Little<uint32_t>(&header[16]);
    std::fill_n(&header[16], 4, uint8_t{0});
    if (crc32(0, header.data(), header_size) != header_sum) return Broken("has a wrong checksum");
    if (Little<uint64_t>(&header[24]) != at) return Broken("belongs elsewhere");
    const uint64_t entries_at = Little<uint64_t>(&header[72]);
    const uint32_t count = Little<uint32_t>(&header[80]);
    const uint32_t entry_size = Little<uint32_t>(&header[84]);
    if (count == 0 || count > kMaxGptEntries || entry_size < 128 || entry_size > kMaxGptEntrySize ||
        entry_size % 128 != 0) {
      return Broken("has an impossible number or size of entries");
    }
    const uint64_t bytes = uint64_t{count} * entry_size;
    if (entries_at >= size_ / block || bytes > size_ - entries_at * block)
      return Broken("names entries outside");
    std::vector<uint8_t> entries(bytes);
    if (absl::Status status = read_(entries_at * block, absl::MakeSpan(entries)); !status.ok()) return status;
    if (crc32(0, entries.data(), static_cast<uInt>(bytes)) != Little<uint32_t>(&header[88])) {
      return Broken("has entries with a wrong checksum");
    }
    if (static_cast<uint32_t>(number_) > count) return Missing(number_, "GPT");
    const uint8_t* entry = entries.data() + uint64_t{entry_size} * (static_cast<uint32_t>(number_) - 1);
    if (std::all_of(entry, entry + 16, [](uint8_t byte) { return byte == 0; }))
      return Missing(number_, "GPT");
    const uint64_t first = Little<uint64_t>(entry + 32);
    const uint64_t last = Little<uint64_t>(entry + 40);
    return Checked(first, last < first || last == UINT64_MAX ? 0 : last - first + 1, block, size_, number_);
  }

  static absl::Status Broken(absl::string_view how) {
    return absl::InvalidArgumentError(absl::StrCat("the disk's GPT ", how, "; repair it with gdisk"));
  }

  const uint64_t size_;
  const ReadDisk read_;
  const int number_;
};

}  // namespace

absl::StatusOr<Partition> FindPartition(uint64_t size, ReadDisk read, int number) {
  if (number < 1) {
    return absl::InvalidArgumentError(absl::StrCat("partition ", number, ": partitions count from 1 on"));
  }
  return Table(size, read, number).Find();
}

}  // namespace berth
