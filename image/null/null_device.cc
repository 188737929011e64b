#include "image/null/null_device.h"

#include <cstring>

namespace berth {
namespace {

class NullChannel final : public BlockChannel {
 public:
  Task<IoResult> Read(uint64_t, absl::Span<uint8_t> out) override {
    memset(out.data(), 0, out.size());
    return Done();
  }
  Task<IoResult> Write(uint64_t, absl::Span<const uint8_t>, WriteFlags) override { return Done(); }
  Task<IoResult> Flush() override { return Done(); }
  Task<IoResult> Zero(uint64_t, uint64_t, ZeroFlags) override { return Done(); }
  Task<IoResult> Discard(uint64_t, uint64_t) override { return Done(); }
  Task<IoResult> Prefetch(uint64_t, uint64_t) override { return Done(); }
  Task<IoResult> Extents(uint64_t, uint64_t length, std::vector<Extent>* out) override {
    out->push_back({length, /*allocated=*/false, /*zero=*/true});
    return Done();
  }

 private:
  static Task<IoResult> Done() { return Task<IoResult>(IoResult::Ok()); }
};

}  // namespace

NullDevice::NullDevice(uint64_t size)
    : traits_{.resizable = true, .can_discard = true, .fast_zero = true}, size_(size) {}

absl::StatusOr<std::unique_ptr<BlockChannel>> NullDevice::OpenChannel(Reactor&) {
  return std::make_unique<NullChannel>();
}

absl::Status NullDevice::Resize(uint64_t new_size) {
  size_.store(new_size, std::memory_order_relaxed);
  return absl::OkStatus();
}

}  // namespace berth
