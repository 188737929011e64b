#include "image/qcow2/dirty_bitmap.h"

#include <algorithm>
#include <bit>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "image/block/extent.h"
#include "image/qcow2/format/bitmap_directory.h"

namespace berth::qcow2 {
namespace {

class BitmapChannel final : public StatusChannel {
 public:
  explicit BitmapChannel(std::shared_ptr<const DirtyBitmap> bitmap) : bitmap_(std::move(bitmap)) {}

  Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<StatusExtent>* out) override {
    if (bitmap_->deleted()) return Task<IoResult>(IoResult::Error(EIO));
    for (size_t i = 0; i < kMaxExtents && length > 0; ++i) {
      const StatusExtent run = bitmap_->Run(offset, length);
      if (i > 0 && out->back().status == run.status) {
        out->back().length += run.length;  // It changed meanwhile.
      } else {
        out->push_back(run);
      }
      offset += run.length;
      length -= run.length;
    }
    return Task<IoResult>(IoResult::Ok());
  }

 private:
  const std::shared_ptr<const DirtyBitmap> bitmap_;
};

class Context final : public StatusContext {
 public:
  explicit Context(std::shared_ptr<const DirtyBitmap> bitmap)
      : StatusContext(absl::StrCat("qemu:dirty-bitmap:", bitmap->name()), /*wide=*/false),
        bitmap_(std::move(bitmap)) {}

  absl::StatusOr<std::unique_ptr<StatusChannel>> Open(Reactor&) override {
    return std::make_unique<BitmapChannel>(bitmap_);
  }

 private:
  const std::shared_ptr<const DirtyBitmap> bitmap_;
};

}  // namespace

DirtyBitmap::DirtyBitmap(std::string name, uint32_t granularity_bits, uint64_t disk_size, bool enabled)
    : name_(std::move(name)),
      granularity_bits_(granularity_bits),
      bits_(BitmapBits(disk_size, granularity_bits)),
      enabled_(enabled),
      words_((bits_ + 63) / 64) {}

void DirtyBitmap::MarkDirty(uint64_t offset, uint64_t length) {
  const uint64_t first = offset >> granularity_bits_;
  const uint64_t last = std::min((offset + length - 1) >> granularity_bits_, bits_ - 1);
  for (uint64_t word = first / 64; word <= last / 64; ++word) {
    uint64_t mask = ~uint64_t{0};
    if (word == first / 64) mask &= ~uint64_t{0} << (first % 64);
    if (word == last / 64) mask &= ~uint64_t{0} >> (63 - last % 64);
    // Most are dirty already, and a look costs no other core its cache line.
    if ((words_[word].load(std::memory_order_relaxed) & mask) == mask) continue;
    words_[word].fetch_or(mask, std::memory_order_relaxed);
  }
}

void DirtyBitmap::Clear() {
  for (std::atomic<uint64_t>& word : words_) word.store(0, std::memory_order_relaxed);
}

StatusExtent DirtyBitmap::Run(uint64_t offset, uint64_t length) const {
  const uint64_t first = offset >> granularity_bits_;
  if (first >= bits_) return {length, 0};
  const bool dirty = Get(first);
  const uint64_t end = std::min(bits_, ((offset + length - 1) >> granularity_bits_) + 1);
  uint64_t bit = first + 1;
  while (bit < end) {
    const uint64_t word = words_[bit / 64].load(std::memory_order_relaxed);
    const uint64_t others = (dirty ? ~word : word) >> (bit % 64);
    if (others != 0) {
      bit = std::min(end, bit + static_cast<uint64_t>(std::countr_zero(others)));
      break;
    }
    bit = std::min(end, (bit / 64 + 1) * 64);
  }
  // The last bit may be of less than a grain.
  const uint64_t until = bit == bits_ ? offset + length : std::min(bit << granularity_bits_, offset + length);
  return {until - offset, dirty ? uint64_t{1} : uint64_t{0}};
}

void DirtyBitmap::SetBytes(uint64_t first, absl::Span<const uint8_t> bytes) {
  for (uint64_t i = 0; i < bytes.size() && (first + i) * 8 < bits_; ++i) {
    const uint64_t at = (first + i) * 8;
    uint64_t byte = bytes[i];
    if (bits_ - at < 8) byte &= (uint64_t{1} << (bits_ - at)) - 1;
    words_[at / 64].fetch_or(byte << (at % 64), std::memory_order_relaxed);
  }
}

bool DirtyBitmap::GetBytes(uint64_t first, absl::Span<uint8_t> bytes) const {
  std::fill(bytes.begin(), bytes.end(), uint8_t{0});
  bool any = false;
  for (uint64_t i = 0; i < bytes.size() && (first + i) * 8 < bits_; ++i) {
    const uint64_t at = (first + i) * 8;
    bytes[i] = static_cast<uint8_t>(words_[at / 64].load(std::memory_order_relaxed) >> (at % 64));
    any = any || bytes[i] != 0;
  }
  return any;
}

std::shared_ptr<StatusContext> DirtyBitmapContext(std::shared_ptr<const DirtyBitmap> bitmap) {
  return std::make_shared<Context>(std::move(bitmap));
}

}  // namespace berth::qcow2
